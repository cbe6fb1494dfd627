"""The main job on language models: data, reference pass, training, evaluation. Every stage is a cached file."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from shiq_bench.adapters import parse_lora
from shiq_bench.api import (
    BehaviourModel,
    Labels,
    MaxRatio,
    Mismatched,
    Need,
    OnPolicy,
    Pairs,
    QHeads,
    Reference,
    Rewards,
    SumLogits,
    Support,
    TargetNetwork,
    Task,
    ValueHead,
)
from shiq_bench.chat import ChatCodec
from shiq_bench.config import Resolved
from shiq_bench.dataset import BUILD, ORIGIN, check_free, describe, read_dataset, read_manifest, write_dataset
from shiq_bench.demands import MISSING, check_prompts, deviations, fresh_samples, missing_support
from shiq_bench.evaluation.evaluate import Mode, evaluate, evaluate_stored, sample
from shiq_bench.exact import missing_mass
from shiq_bench.generation import Generator
from shiq_bench.models import ModelSource, Progress, WeightedLikelihood, demonstrations, resolve_model
from shiq_bench.records import Evaluation, RunSpec, Trajectory, UserError, stable_hash
from shiq_bench.store import (
    cached_folder,
    check_writable,
    code_hash,
    hash_files,
    read_trajectories,
    source_hash,
    write_json,
    write_trajectories,
)
from shiq_bench.toolcalls import Format
from shiq_bench.training.data import Row, group_rows, in_unit_range, make_pairs, prepare, with_mismatches
from shiq_bench.training.lora import WithoutAdapters, trainable, with_adapters
from shiq_bench.training.policy import ActingPolicy, Policy, Scorer
from shiq_bench.training.reference import reference_pass
from shiq_bench.training.stopping import StopFlag
from shiq_bench.training.trainer import Collect, save_heads, trackers, train

if TYPE_CHECKING:
    from shiq_bench.run import Run

#: Raise it when offline data or reference evaluations would come out differently for one key.
DATA_VERSION = 3
#: Raise it when a behaviour model would come out differently for one key.
BEHAVIOUR_VERSION = 1
SUPPLIED: tuple[type[Need], ...] = (
    Reference, Rewards, Pairs, Labels, Mismatched, Support, ValueHead, QHeads, TargetNetwork, BehaviourModel,
    SumLogits, MaxRatio, OnPolicy,
)  # fmt: skip
#: Settings of the run that decide a behaviour model, beside its data.
FIT = (
    "steps", "groups_per_step", "learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm", "precision",
    "layout", "seed",
)  # fmt: skip


def check_language(resolved: Resolved, fresh: bool) -> None:
    """Refuse what cannot be trained as a language model, before anything is loaded or written.

    Args:
        fresh: every update learns from the current policy's own samples.

    Raises:
        UserError: with what to type instead.
    """
    spec, algorithm = resolved.spec, resolved.algorithm
    _quiet()
    missing = [n for n in algorithm.needs if not isinstance(n, SUPPLIED)]
    if missing:
        names = ", ".join(type(n).__name__ for n in missing)
        raise UserError(f"{spec.algo} needs {names}, which the engine does not supply")
    trackers(spec)
    if fresh:
        check_prompts(resolved, len(resolved.task.prompts("rl")))


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def language_stages(run: Run, resume: bool, fresh: bool) -> None:
    """Data, reference pass, training and evaluation of a run, and its record.

    Args:
        resume: go on from the last checkpoint, if there is one.
        fresh: every update learns from the current policy's own samples.

    Raises:
        UserError: the data do not serve the algorithm, or anything on the way that the user can mend.
        Diverged, Interrupted: training ended early.
    """
    spec, task, algorithm = run.spec, run.task, run.algorithm
    with run.timed("starting policy"):
        source = resolve_model(spec, task, run.report)
        codec = source.codec()
    size = sum(p.stat().st_size for p in source.folder.glob("*.safetensors")) / 2**20
    # Two checkpoints with optimiser states and moving copies of the policy, the policy, and models fitted for it.
    copies = 10 + 2 * sum(isinstance(n, Reference | TargetNetwork) for n in algorithm.needs)
    check_writable(run.folder, need_mb=(copies + 2 * bool(algorithm.need(BehaviourModel))) * size)

    reference = source.policy()
    with run.timed("preparing the task"):
        task.prepare(run.report)
    settled = {"settled": dict(found)} if (found := task.settled(codec, spec)) else {}
    if not spec.steps:
        run.record = replace(
            run.record, weights_hash=source.weights_hash, data=settled,
            evaluations=_reference_evaluations(run, source, reference), gaps=run.gaps,
        )  # fmt: skip
        return

    run.deviations += deviations(run.resolved, fresh)
    trajectories = [] if fresh else _offline_data(run, source)
    data = settled | (_describe_fresh(run) if fresh else _describe(run, trajectories))
    trajectories = in_unit_range(trajectories, algorithm, task.largest_return) if trajectories else []
    evaluations = _reference_evaluations(run, source, reference)
    run.keep(weights_hash=source.weights_hash, evaluations=evaluations, data=data, deviations=run.deviations)
    groups = [] if fresh else _groups(run, source, reference, trajectories)
    fitted = _fitted_behaviour(run, source, trajectories) if algorithm.need(BehaviourModel) else None
    stored = _stored(run, source, reference)

    trained_folder = run.folder / "policy"
    if torch.cuda.is_available() and not fresh:
        run.close()  # give vLLM's memory back to training
    with run.timed("training"), tempfile.TemporaryDirectory() as scratch:
        need = algorithm.need(BehaviourModel)
        begun = fitted if need and need.start else None
        policy, beside = _starting_policy(run, source, reference, begun)
        policy.equip(algorithm, spec.seed)
        behaviour = source.policy(fitted) if fitted else None
        run.stop.active = True
        result = train(
            policy, source.tokenizer(), groups, algorithm, spec, run.folder / "checkpoints",
            resume=resume, stop=run.stop, on_step=_counter(run, "training"), behaviour=behaviour,
            collect=_collect(run, source, policy, Path(scratch)) if fresh else None,
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
        for split, mode in _places(spec):
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
            evaluations += _lm_eval(run, source, "trained", acting, reference.model, lambda: generator)
    run.record = replace(run.record, evaluations=evaluations, gaps=run.gaps)


def _starting_policy(run: Run, source: ModelSource, reference: Policy, begun: Path | None) -> tuple[Policy, Scorer]:
    """What is trained, and the reference beside it: with adapters, one module (unless it begins from ``begun``)."""
    if not run.spec.lora:
        return source.policy(begun), reference
    lora, seed = parse_lora(run.spec.lora), run.spec.seed
    policy = with_adapters(source.policy(begun) if begun else reference, lora, seed)
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


def _places(spec: RunSpec) -> list[tuple[str, Mode]]:
    """Where policies are evaluated: splits and modes."""
    modes: tuple[Mode, ...] = ("greedy", "sampled") if spec.eval_samples else ("greedy",)
    return [(split, mode) for split in spec.splits for mode in modes]


def _counter(run: Run, what: str) -> Callable[[Mapping[str, float]], None]:
    """Reports the progress of a training."""
    steps = 0

    def on_step(logs: Mapping[str, float]) -> None:
        nonlocal steps
        steps = int(logs.get("step", steps + 1)) if "loss" in logs else steps
        run.report.numbers(logs)
        run.report(what, steps, run.spec.steps)

    return on_step


def _save(policy: Policy, behaviour: Policy | None, source: ModelSource, folder: Path) -> None:
    """The policy as any tool can load it; what else it acts by in subfolders, where no tool mistakes it for a shard."""
    policy.model.save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)
    if policy.heads is not None:
        (folder / "heads").mkdir(exist_ok=True)
        save_heads(policy, folder / "heads")
    if behaviour is not None:
        behaviour.model.save_pretrained(folder / "behaviour")


# --- data ----------------------------------------------------------------------------------------


def _data_key(spec: RunSpec, task: Task, source: ModelSource) -> dict[str, Any]:
    """What decides the offline data, and no more: methods and seeds share it."""
    return {
        "version": DATA_VERSION,
        "weights": source.weights_hash,
        "task": spec.task,
        # What reads a model's calls decides verdicts as much as the task does.
        "code": code_hash(*(c for c in type(task).__mro__ if issubclass(c, Task) and c is not Task), ChatCodec, Format),
        "options": dict(spec.task_options),
        "judges": task.fingerprint(),
        "engine": spec.engine,
        "max_tokens": spec.max_tokens,
        "max_length": spec.max_length,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def offline_data(
    spec: RunSpec, task: Task, source: ModelSource, generator: Callable[[], Generator], report: Progress
) -> list[Trajectory]:
    """The task's own trajectories, its demonstrations, and samples of the reference.

    Args:
        generator: starts the sampler, or has it already; not called where the data are cached.

    Raises:
        UserError: there are none.
    """
    key = {**_data_key(spec, task, source), "samples": spec.samples, "gold": spec.gold, "data_seed": spec.data_seed}

    def build(folder: Path) -> None:
        codec = source.codec()
        found = list(task.trajectories("rl", codec, spec))
        if spec.gold and not found:
            found += demonstrations(task, "rl", codec, spec.max_length)
        if spec.samples:
            drawn = sample(
                task, codec, generator(), task.prompts("rl"), spec,
                n=spec.samples, temperature=1.0, seed=f"data {spec.data_seed}", source="reference",
                on_progress=lambda done, total: report("drawing offline data", done, total),
            )  # fmt: skip
            # What could not be scored has no reward to learn from.
            found += [t for t, s in zip(drawn.trajectories, drawn.scores, strict=True) if s.scored]
        order = {p: i for i, p in enumerate(task.prompts("rl"))}
        write_trajectories(folder / "trajectories.jsonl", sorted(found, key=lambda t: order[t.prompt_id]))

    folder = cached_folder("data", key, build)
    trajectories = [t for t in read_trajectories(folder / "trajectories.jsonl") if any(t.action_mask)]
    if not trajectories:
        raise UserError(
            f"no training data: task {spec.task} has none of its own, and samples={spec.samples}, gold={spec.gold}"
        )
    return trajectories


def _offline_data(run: Run, source: ModelSource) -> list[Trajectory]:
    """The trajectories of the dataset given, else the run's own."""
    with run.timed("offline data"):
        return run.given or offline_data(
            run.spec, run.task, source, lambda: run.generator(source, source.folder), run.report
        )


def given_data(run: Run, source: ModelSource) -> list[Trajectory]:
    """The trajectories of the dataset that ``spec.data`` names, in its order, and what the record must say of them.

    Raises:
        UserError: they cannot serve this run, before anything is written.
    """
    spec, folder = run.spec, Path(run.spec.data)
    trajectories = read_dataset(folder, run.task, source.tokenizer(), spec.max_length, spec.data_hash)
    origin = read_manifest(folder)
    if origin["weights_hash"] != source.weights_hash and any(t.source == "reference" for t in trajectories):
        run.deviations.append("the data were sampled from another policy than the reference")
    made, asked = origin["task_options"], dict(spec.task_options)
    if other := sorted(k for k in {*made, *asked} if made.get(k) != asked.get(k)):
        run.deviations.append(
            f"the data were made with other options of the task: {', '.join(f'{k}={made.get(k)}' for k in other)}"
        )
    return trajectories


def build_dataset(
    spec: RunSpec, task: Task, out: Path, report: Progress, plugins: Sequence[Path] = ()
) -> dict[str, Any]:
    """Do the offline stage of a run, and keep its trajectories as a dataset.

    Args:
        spec: as of :func:`~shiq_bench.config.resolve_data`.
        out: a folder that does not exist yet, or is empty.
        plugins: named in the command that makes the dataset again.

    Returns:
        The manifest.

    Raises:
        UserError: ``out`` is taken or cannot be written, or there is nothing to draw from.
    """
    from shiq_bench.run import git, packages, start_generator

    check_free(out)
    if spec.model == "table":
        raise UserError(f"task {spec.task} is a table unless a model is asked for: add --model tiny")
    _quiet()
    report("starting policy", 0, 0)
    source = resolve_model(spec, task, report)
    task.prepare(report)
    started: list[Generator] = []

    def generator() -> Generator:
        started.append(start_generator(spec, source, source.folder, report))
        return started[-1]

    try:
        trajectories = offline_data(spec, task, source, generator, report)
    finally:
        for one in started:
            one.close()
        task.close()
    settings = {name: getattr(spec, name) for name in BUILD if name not in ("model", "gpu_memory")}
    origin = {
        "task": spec.task,
        "task_options": dict(spec.task_options),
        "split": "rl",
        "model": spec.model,
        **settings,
        "weights_hash": source.weights_hash,
        "source_hash": source_hash(),
        "code_hash": code_hash(type(task)),
        "git_commit": git("rev-parse", "HEAD"),
        "packages": packages(),
        "licence": task.licence,
        "notes": task.notes(),
        "command": _command(spec, settings, task, out.name, plugins),
    }
    return write_dataset(out, trajectories, source.tokenizer(), origin)


def _command(spec: RunSpec, settings: Mapping[str, Any], task: Task, name: str, plugins: Sequence[Path]) -> str:
    """What to type to make a dataset again, every setting spelt out."""
    words = ["shiq-bench", "data", "build", "--task", spec.task, "--model", spec.model, "--out", name]
    for plugin in plugins:
        words += ["--plugin", str(plugin)]
    # What the task reads is no part of a run's identity, and yet it takes it.
    own = {f.name: getattr(task, f.name) for f in fields(task) if f.metadata.get("data")}  # type: ignore[arg-type]
    for prefix, options in (("run", settings), ("task", {**own, **spec.task_options})):
        for key, value in options.items():
            text = str(value).lower() if isinstance(value, bool | None) else str(value)
            words += ["--set", f"{prefix}.{key}={text}"]
    return shlex.join(words)


def _groups(run: Run, source: ModelSource, reference: Policy, trajectories: list[Trajectory]) -> list[list[Row]]:
    """Training groups, with the statistics of a reference that stays as it is."""
    spec, need = run.spec, run.algorithm.need(Reference)
    mismatches: list[Trajectory] | None = None
    if run.algorithm.need(Mismatched):
        by_prompt = [[row.trajectory for row in group] for group in group_rows([Row(t) for t in trajectories])]
        trajectories = [t for group in by_prompt for t in group]
        mismatches = [t for group in with_mismatches(by_prompt, spec.max_length) for t in group]
    stats, mismatch_stats = None, None
    if need and not need.refresh:
        with run.timed("reference pass"):
            run.report("reference pass", 0, len(trajectories))
            stats = reference_pass(reference, source.weights_hash, trajectories, spec.layout, spec.precision)
            if mismatches:
                mismatch_stats = reference_pass(reference, source.weights_hash, mismatches, spec.layout, spec.precision)
    return prepare(trajectories, stats, run.algorithm, spec.center_rewards, mismatches, mismatch_stats)


def _fitted_behaviour(run: Run, source: ModelSource, trajectories: Sequence[Trajectory]) -> Path:
    """A folder with the starting policy fitted to the data by maximum likelihood, weights of trajectories respected."""
    spec = run.spec
    key = {
        "version": BEHAVIOUR_VERSION,
        "torch": torch.__version__,
        "weights": source.weights_hash,
        "data": stable_hash([[t.prompt_id, t.token_ids, t.action_mask, t.weight] for t in trajectories]),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        **{name: getattr(spec, name) for name in FIT},
    }
    # Weights in the place of rewards: WeightedLikelihood wants one a token.
    weighted = [replace(t, rewards=tuple(t.weight * a for a in t.action_mask)) for t in trajectories]

    def build(folder: Path) -> None:
        policy = source.policy()
        if spec.steps:
            with tempfile.TemporaryDirectory() as scratch:
                train(
                    policy, None, group_rows([Row(t) for t in weighted]), WeightedLikelihood(),
                    replace(spec, save_every=10**9), Path(scratch), stop=StopFlag(),
                    on_step=_counter(run, "fitting the behaviour model"),
                )  # fmt: skip
        policy.model.save_pretrained(folder)

    with run.timed("behaviour model"):
        return cached_folder("behaviour", key, build)


def _collect(run: Run, source: ModelSource, policy: Policy, scratch: Path) -> Collect:
    """Fresh episodes: the policy's weights go to the sampler by way of a folder."""
    spec, task, codec = run.spec, run.task, source.codec()

    def draw(prompt_ids: Sequence[str], step: int) -> list[Trajectory]:
        policy.model.save_pretrained(scratch)
        drawn = sample(
            task, codec, run.generator(source, scratch, stale=True), prompt_ids, spec,
            n=fresh_samples(run.resolved), temperature=1.0, seed=f"fresh {spec.seed} {step}", source="policy",
        )  # fmt: skip
        kept = [t for t, s in zip(drawn.trajectories, drawn.scores, strict=True) if s.scored]
        return in_unit_range(kept, run.algorithm, task.largest_return) if kept else []

    asked = task.prompts("rl")
    fit = [e.prompt_id for e in task.episodes(asked, codec, spec.max_length) if not e.done]
    if len(fit) < len(asked):
        run.deviations.append(f"{len(asked) - len(fit)} of {len(asked)} prompts do not fit and are not trained on")
    return Collect(fit, draw)


# --- what the record says ------------------------------------------------------------------------


def _reference_evaluations(run: Run, source: ModelSource, reference: Policy) -> list[Evaluation]:
    found = [_reference_evaluation(run, source, reference, split, mode) for split, mode in _places(run.spec)]
    return found + (_reference_lm_eval(run, source, reference) if run.spec.lm_eval else [])


def _reference_evaluation(run: Run, source: ModelSource, reference: Policy, split: str, mode: Mode) -> Evaluation:
    """The reference's own numbers: the same for every method and seed, so computed once."""
    spec = run.spec
    key = {
        **_data_key(spec, run.task, source), "split": split, "mode": mode, "eval_limit": spec.eval_limit,
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


def _lm_eval(
    run: Run, source: ModelSource, who: str, policy: Scorer, model: Any, generator: Callable[[], Generator]
) -> list[Evaluation]:
    """Tasks of lm-eval on one policy; ``model`` is any of the policy's kind, for its config."""
    from shiq_bench.evaluation.harness import EngineLM, run_lm_eval, task_names  # ten seconds of imports

    spec = run.spec
    lm = EngineLM(policy, model, source.tokenizer(), generator, run.progress(f"lm-eval, the {who} policy"))
    return run_lm_eval(
        task_names(spec.lm_eval), lm, policy=who, step=spec.steps if who == "trained" else 0,
        limit=spec.lm_eval_limit, metadata={"pairs": _heldout_pairs(run.task)},
    )  # fmt: skip


def _heldout_pairs(task: Task) -> list[dict[str, Any]]:
    return [asdict(pair) for pair in task.preferences("heldout")]


def _reference_lm_eval(run: Run, source: ModelSource, reference: Policy) -> list[Evaluation]:
    """:func:`_lm_eval` on the reference, computed once like all its numbers."""
    from shiq_bench.evaluation.harness import shipped, task_names

    key = {
        "weights": source.weights_hash,
        "tasks": task_names(run.spec.lm_eval),
        "limit": run.spec.lm_eval_limit,
        "lm_eval": version("lm-eval"),
        "yaml": hash_files(list(shipped().glob("*.yaml"))),
        "code": source_hash(),
        "pairs": stable_hash(_heldout_pairs(run.task)),
        "engine": run.spec.engine,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }

    def build(folder: Path) -> None:
        found = _lm_eval(
            run, source, "reference", reference, reference.model, lambda: run.generator(source, source.folder)
        )
        write_json(folder / "evaluations.json", [asdict(e) for e in found])

    with run.timed("evaluating the reference"):
        data = json.loads((cached_folder("reference-lm-eval", key, build) / "evaluations.json").read_text())
    return [Evaluation(**e) for e in data]


def _describe(run: Run, trajectories: list[Trajectory]) -> dict[str, Any]:
    """Counts and means of the offline data, pairs and ties included, for the record.

    Raises:
        UserError: nothing can be preferred to anything.
    """
    groups: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        groups.setdefault(t.prompt_id, []).append(t)
    out = describe(trajectories)
    if run.spec.data:
        origin = read_manifest(Path(run.spec.data))
        out["dataset"] = {name: origin[name] for name in ORIGIN}
    need = run.algorithm.need(Pairs)
    if (need or run.algorithm.need(Labels)) and all(len(g) == 1 for g in groups.values()):
        what = "pairs" if need else "labels, judged against a prompt's mean return,"
        raise UserError(f"one completion a prompt: {what} need two; raise samples")
    if need:
        sets = [make_pairs(g, need, run.spec.labels, run.spec.data_seed, run.spec.pairs) for g in groups.values()]
        out |= {"pairs": sum(len(s.pairs) for s in sets), "ties_dropped": sum(s.ties for s in sets)}
        if not out["pairs"]:
            raise UserError(
                f"{run.spec.algo} needs preference pairs, and every prompt's returns are tied: "
                "draw more samples, or keep gold"
            )
        if empty := sum(not s.pairs for s in sets):
            run.deviations.append(f"{empty} of {len(sets)} prompts have no preference pair (all returns tied)")
    world = run.task.world(0)
    if world is not None and run.algorithm.need(Support) and (missing := missing_mass(world)) > MISSING:
        run.deviations.append(missing_support(run.spec.algo, missing))
    return out


def _describe_fresh(run: Run) -> dict[str, Any]:
    return {"prompts": len(run.task.prompts("rl")), "fresh_samples_a_prompt": fresh_samples(run.resolved)}


def _consumed(run: Run, history: list[dict[str, float]], trajectories: list[Trajectory]) -> dict[str, float]:
    # Counted from the history, for an interrupted run has forgotten what it drew.
    fresh = fresh_samples(run.resolved) * sum(h.get("prompts", 0.0) for h in history)
    return {
        "updates": float(len(history)),
        "action_tokens": sum(h["tokens"] for h in history),
        "trajectories": sum(h["trajectories"] for h in history),
        "samples_drawn": fresh + sum(t.source == "reference" for t in trajectories),
        "reward_calls": fresh + len(trajectories),
    }
