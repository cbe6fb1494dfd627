"""The main job on language models: data, reference pass, training, evaluation. Every stage is a cached file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shiq_bench.api import needs
from shiq_bench.api.task import Task
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.groups import in_unit_range
from shiq_bench.evaluation.evaluate import Mode, evaluate, evaluate_stored
from shiq_bench.generation.generator import Generator
from shiq_bench.models.lora import parse_lora
from shiq_bench.models.source import ModelSource, quiet
from shiq_bench.records.cache import cached_folder
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import check_writable, write_json
from shiq_bench.records.hashing import stable_hash
from shiq_bench.records.provenance import source_hash
from shiq_bench.records.record import Evaluation
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.context import Run
from shiq_bench.runs.language_data import (
    collect_fresh,
    data_key,
    describe_stored,
    fitted_behaviour,
    given_data,
    offline_data,
    training_groups,
)
from shiq_bench.runs.validation import deviations
from shiq_bench.training.policy import ActingPolicy, Policy, Scorer, load_policy
from shiq_bench.training.reference import WithoutAdapters, reference_pass, with_adapters
from shiq_bench.training.starting_policy import resolve_model
from shiq_bench.training.trainer import save_heads, trackers, train


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
        raise UserError(f"{spec.algo} needs {', '.join(missing)}, which the engine does not supply")
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

    reference = load_policy(source, layout=spec.layout)
    with run.timed("preparing the task"):
        task.prepare(run.report)
    found = dict(task.resolved_options(codec, spec))
    if reference.layout != spec.layout:
        found["layout"] = f"{reference.layout}, for attention in this model is not over prefix trees"
    settled = {"settled": found} if found else {}
    if not spec.steps:
        run.record = replace(
            run.record, weights_hash=source.weights_hash, data=settled,
            evaluations=reference_evaluations(run, source, reference), gaps=run.gaps,
        )  # fmt: skip
        return

    run.deviations += deviations(run.resolved)
    trajectories: list[Trajectory] = []
    if fresh:
        data = {"prompts": len(task.prompts("rl")), "fresh_samples_a_prompt": run.resolved.fresh_samples}
    else:
        with run.timed("offline data"):
            trajectories = run.given or offline_data(
                spec, task, source, lambda: run.generator(source, source.folder), run.report
            )
        data = describe_stored(run, trajectories)
        trajectories = in_unit_range(trajectories, algorithm, task.largest_return)
    evaluations = reference_evaluations(run, source, reference)
    run.keep(weights_hash=source.weights_hash, evaluations=evaluations, data=settled | data, deviations=run.deviations)
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
        behaviour = load_policy(source, fitted, spec.layout) if fitted else None
        run.stop.active = True
        history = train(
            policy, source.tokenizer(), groups, algorithm, spec, run.folder / "checkpoints",
            resume=resume, stop=run.stop, on_step=run.counter("training"), behaviour=behaviour,
            collect=collect_fresh(run, source, policy, Path(scratch)) if fresh else None,
        )  # fmt: skip
        run.stop.active = False
        run.keep(training=history, consumed=_consumed(run, history, trajectories))
        policy.eval()
        if spec.lora and begun:  # adapters over weights that nobody else has: saved as one model
            heads, policy = policy.heads, Policy(policy.model.merge_and_unload(), policy.vocab, policy.layout)
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
        return load_policy(source, begun, run.spec.layout), reference
    lora, seed = parse_lora(run.spec.lora), run.spec.seed
    policy = with_adapters(load_policy(source, begun, run.spec.layout) if begun else reference, lora, seed)
    trained, of = policy.model.get_nb_trainable_parameters()
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
                    out[split] = found, reference_pass(reference, source.weights_hash, found, "fp32")
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


# --- how the reference does, once for all methods and seeds; and lm-eval on any policy


def places(spec: RunSpec) -> list[tuple[str, Mode]]:
    """Where policies are evaluated: splits and modes."""
    modes: tuple[Mode, ...] = ("greedy", "sampled") if spec.eval_samples else ("greedy",)
    return [(split, mode) for split in spec.splits for mode in modes]


def reference_evaluations(run: Run, source: ModelSource, reference: Policy) -> list[Evaluation]:
    found = [_reference_evaluation(run, source, reference, split, mode) for split, mode in places(run.spec)]
    return found + (_reference_lm_eval(run, source, reference) if run.spec.lm_eval else [])


def _reference_evaluation(run: Run, source: ModelSource, reference: Policy, split: str, mode: Mode) -> Evaluation:
    """The reference's own numbers: the same for every method and seed, so computed once."""
    spec = run.spec
    key = {
        **data_key(spec, run.task, source), "split": split, "mode": mode, "eval_limit": spec.eval_limit,
        **({"eval_samples": spec.eval_samples, "eval_seed": spec.eval_seed} if mode == "sampled" else {}),
    }  # fmt: skip
    what = f"evaluating the reference: {split}, {mode}"

    def build(folder: Path) -> None:
        evaluation, gap = evaluate(
            run.task, source.codec(), run.generator(source, source.folder), reference, None, spec,
            who="reference", split=split, mode=mode, step=0, on_progress=run.progress(what),
        )  # fmt: skip
        write_json(folder / "evaluation.json", {"evaluation": asdict(evaluation), "gap": gap})

    with run.timed("evaluating the reference"):
        data = json.loads((cached_folder("reference-evaluation", key, build) / "evaluation.json").read_text())
    run.gaps[f"reference {split} {mode}"] = data["gap"]
    return Evaluation(**data["evaluation"])


def lm_eval_of(
    run: Run, source: ModelSource, who: str, policy: Scorer, model: Any, generator: Callable[[], Generator]
) -> list[Evaluation]:
    """Tasks of lm-eval on one policy; ``model`` is any of the policy's kind, for its config."""
    from shiq_bench.evaluation.lm_eval_model import EngineLM
    from shiq_bench.evaluation.lm_eval_tasks import run_lm_eval, task_names  # ten seconds of imports

    spec = run.spec
    lm = EngineLM(policy, model, source.tokenizer(), generator, run.progress(f"lm-eval, the {who} policy"))
    return run_lm_eval(
        task_names(spec.lm_eval), lm, policy=who, step=spec.steps if who == "trained" else 0,
        limit=spec.lm_eval_limit, metadata={"pairs": _heldout_pairs(run.task)},
    )  # fmt: skip


def _heldout_pairs(task: Task) -> list[dict[str, Any]]:
    return [asdict(pair) for pair in task.preferences("heldout")]


def _reference_lm_eval(run: Run, source: ModelSource, reference: Policy) -> list[Evaluation]:
    """:func:`lm_eval_of` on the reference, computed once like all its numbers."""
    from shiq_bench.evaluation.lm_eval_tasks import task_names

    key = {
        "weights": source.weights_hash,
        "tasks": task_names(run.spec.lm_eval),
        "limit": run.spec.lm_eval_limit,
        "lm_eval": version("lm-eval"),
        "code": source_hash(),
        "pairs": stable_hash(_heldout_pairs(run.task)),
        "engine": run.spec.engine,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }

    def build(folder: Path) -> None:
        found = lm_eval_of(
            run, source, "reference", reference, reference.model, lambda: run.generator(source, source.folder)
        )
        write_json(folder / "evaluations.json", [asdict(e) for e in found])

    with run.timed("evaluating the reference"):
        data = json.loads((cached_folder("reference-lm-eval", key, build) / "evaluations.json").read_text())
    return [Evaluation(**e) for e in data]
