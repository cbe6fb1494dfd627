"""The main job on language models: data, reference pass, training, evaluation. Every stage is a cached file."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from shiq_bench.api import needs
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.groups import in_unit_range
from shiq_bench.evaluation.evaluate import evaluate, evaluate_stored
from shiq_bench.models.lora import parse_lora
from shiq_bench.models.source import ModelSource, quiet
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import check_writable
from shiq_bench.runs.language_data import (
    collect_fresh,
    describe_fresh,
    describe_stored,
    fitted_behaviour,
    given_data,
    stored_data,
    training_groups,
)
from shiq_bench.runs.language_evaluation import lm_eval_of, places, reference_evaluations
from shiq_bench.runs.validation import deviations
from shiq_bench.training.lora import WithoutAdapters, trainable, with_adapters
from shiq_bench.training.policy import ActingPolicy, Policy, Scorer, load_policy
from shiq_bench.training.reference import reference_pass
from shiq_bench.training.starting_policy import resolve_model
from shiq_bench.training.trainer import save_heads, trackers, train

if TYPE_CHECKING:
    from shiq_bench.runs.context import Run


def open_language(run: Run) -> None:
    """Refuse what cannot be trained as a language model, and open what the settings name, before anything is written.

    Raises:
        UserError: with what to type instead.
    """
    spec, algorithm = run.spec, run.algorithm
    quiet()
    # What the engine supplies is what it declares; a plugin may have made up a need of its own.
    known = tuple(c for c in vars(needs).values() if isinstance(c, type) and c is not needs.Need)
    if missing := [type(n).__name__ for n in algorithm.needs if not isinstance(n, known)]:
        names = ", ".join(missing)
        raise UserError(f"{spec.algo} needs {names}, which the engine does not supply")
    trackers(spec)
    if spec.model != "tiny" or spec.data:
        source = resolve_model(spec, run.task, run.report)
        source.codec()
        run.record = replace(run.record, weights_hash=source.weights_hash)
        run.given = given_data(run, source) if spec.data else []


def language_stages(run: Run, resume: bool) -> None:
    """Data, reference pass, training and evaluation of a run, and its record.

    Args:
        resume: go on from the last checkpoint, if there is one.

    Raises:
        UserError: the data do not serve the algorithm, or anything on the way that the user can mend.
        Diverged, Interrupted: training ended early.
    """
    spec, task, algorithm, fresh = run.spec, run.task, run.algorithm, run.resolved.fresh
    with run.timed("starting policy"):
        source = resolve_model(spec, task, run.report)
        codec = source.codec()
    size = sum(p.stat().st_size for p in source.folder.glob("*.safetensors")) / 2**20
    # Two checkpoints with optimiser states and moving copies of the policy, the policy, and models fitted for it.
    copies = 10 + 2 * sum(isinstance(n, needs.Reference | needs.TargetNetwork) for n in algorithm.needs)
    check_writable(run.folder, need_mb=(copies + 2 * bool(algorithm.need(needs.BehaviourModel))) * size)

    reference = load_policy(source)
    with run.timed("preparing the task"):
        task.prepare(run.report)
    settled = {"settled": dict(found)} if (found := task.resolved_options(codec, spec)) else {}
    if not spec.steps:
        run.record = replace(
            run.record, weights_hash=source.weights_hash, data=settled,
            evaluations=reference_evaluations(run, source, reference), gaps=run.gaps,
        )  # fmt: skip
        return

    run.deviations += deviations(run.resolved)
    trajectories = [] if fresh else stored_data(run, source)
    data = settled | (describe_fresh(run) if fresh else describe_stored(run, trajectories))
    trajectories = in_unit_range(trajectories, algorithm, task.largest_return) if trajectories else []
    evaluations = reference_evaluations(run, source, reference)
    run.keep(weights_hash=source.weights_hash, evaluations=evaluations, data=data, deviations=run.deviations)
    groups = [] if fresh else training_groups(run, source, reference, trajectories)
    fitted = fitted_behaviour(run, source, trajectories) if algorithm.need(needs.BehaviourModel) else None
    stored = _stored(run, source, reference)

    trained_folder = run.folder / "policy"
    if torch.cuda.is_available() and not fresh:
        run.close()  # give vLLM's memory back to training
    with run.timed("training"), tempfile.TemporaryDirectory() as scratch:
        need = algorithm.need(needs.BehaviourModel)
        begun = fitted if need and need.start else None
        policy, beside = _starting_policy(run, source, reference, begun)
        policy.equip(algorithm, spec.seed)
        behaviour = load_policy(source, fitted) if fitted else None
        run.stop.active = True
        result = train(
            policy, source.tokenizer(), groups, algorithm, spec, run.folder / "checkpoints",
            resume=resume, stop=run.stop, on_step=run.counter("training"), behaviour=behaviour,
            collect=collect_fresh(run, source, policy, Path(scratch)) if fresh else None,
        )  # fmt: skip
        run.stop.active = False
        run.keep(training=result.history, consumed=_consumed(run, result.history, trajectories))
        policy.eval()
        if spec.lora and begun:  # adapters over weights that nobody else has: saved as one model
            heads, policy = policy.heads, Policy(policy.model.merge_and_unload(), policy.vocab)
            policy.heads = heads
        _save(policy, behaviour, source, trained_folder)

    with run.timed("evaluating the trained policy"):
        acting: Scorer = policy
        if algorithm.reweights:
            acting = ActingPolicy(policy, behaviour, algorithm)
            generator = run.generator(source, fitted or trained_folder, guide=acting)
            if spec.engine != generator.name:
                run.deviations.append("sampled by transformers: acting mixes two models' logits")
        else:
            generator = run.generator(source, trained_folder)
        for split, mode in places(spec):
            what = f"evaluating the trained policy: {split}, {mode}"
            evaluation, gap = evaluate(
                task, codec, generator, acting, beside, spec,
                who="trained", split=split, mode=mode, step=spec.steps, on_progress=run.progress(what),
                against=next(e.examples for e in evaluations if (e.split, e.mode) == (split, mode)),
            )  # fmt: skip
            run.gaps[f"trained {split} {mode}"] = gap
            evaluations.append(evaluation)
        for split, (answers, columns) in stored.items():
            evaluations.append(evaluate_stored(acting, answers, columns, split=split, step=spec.steps))
        if spec.lm_eval:
            evaluations += lm_eval_of(run, source, "trained", acting, reference.model, lambda: generator)
    run.record = replace(run.record, evaluations=evaluations, gaps=run.gaps)


def _starting_policy(run: Run, source: ModelSource, reference: Policy, begun: Path | None) -> tuple[Policy, Scorer]:
    """What is trained, and the reference beside it: with adapters, one module (unless it begins from ``begun``)."""
    if not run.spec.lora:
        return load_policy(source, begun), reference
    lora, seed = parse_lora(run.spec.lora), run.spec.seed
    policy = with_adapters(load_policy(source, begun) if begun else reference, lora, seed)
    trained, of = trainable(policy)
    run.keep(data={**run.record.data, "lora": {"r": lora.r, "trainable": trained, "of": of}})
    return policy, reference if begun else WithoutAdapters(policy)


def _stored(
    run: Run, source: ModelSource, reference: Policy
) -> dict[str, tuple[list[Trajectory], list[tuple[np.ndarray, np.ndarray]]]]:
    """Judged answers of each split evaluated, and the reference's statistics on them, where the task has any."""
    out = {}
    for split in run.spec.splits:
        if run.task.preferences(split):
            asked = set(run.task.prompts(split)[: run.spec.eval_limit or None])
            found = [t for t in run.task.trajectories(split, source.codec(), run.spec) if t.prompt_id in asked]
            if found:
                with run.timed("reference pass"):
                    out[split] = found, reference_pass(reference, source.weights_hash, found, "padded", "fp32")
    return out


def _save(policy: Policy, behaviour: Policy | None, source: ModelSource, folder: Path) -> None:
    """The policy as any tool can load it; what else it acts by in subfolders, where no tool mistakes it for a shard."""
    policy.model.save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)
    if policy.heads is not None:
        (folder / "heads").mkdir(exist_ok=True)
        save_heads(policy, folder / "heads")
    if behaviour is not None:
        behaviour.model.save_pretrained(folder / "behaviour")


def _consumed(run: Run, history: list[dict[str, float]], trajectories: list[Trajectory]) -> dict[str, float]:
    # Counted from the history, for an interrupted run has forgotten what it drew.
    fresh = run.resolved.fresh_samples * sum(h.get("prompts", 0.0) for h in history)
    return {
        "updates": float(len(history)),
        "action_tokens": sum(h["tokens"] for h in history),
        "trajectories": sum(h["trajectories"] for h in history),
        "samples_drawn": fresh + sum(t.source == "reference" for t in trajectories),
        "reward_calls": fresh + len(trajectories),
    }
