"""What a language model is trained on: offline data, fresh samples, and the model of the data's behaviour."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from shiq_bench.api.needs import Labels, Mismatched, Pairs, Reference, Support
from shiq_bench.api.task import Task
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.dataset import read_dataset, read_manifest, read_trajectories, write_trajectories
from shiq_bench.data.groups import Row, group_rows, in_unit_range, make_pairs, prepare, with_mismatches
from shiq_bench.data.schema import ORIGIN, describe
from shiq_bench.evaluation.evaluate import sample
from shiq_bench.generation.generator import Generator
from shiq_bench.models.chat import ChatCodec
from shiq_bench.models.source import ModelSource, Progress
from shiq_bench.models.template import Template
from shiq_bench.models.tool_calls import Format
from shiq_bench.records.cache import cached_folder
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash
from shiq_bench.records.provenance import code_hash
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.context import Run
from shiq_bench.runs.validation import MISSING, missing_support
from shiq_bench.tabular.exact import missing_mass
from shiq_bench.training.policy import Policy, load_policy
from shiq_bench.training.reference import reference_pass
from shiq_bench.training.starting_policy import WeightedLikelihood, demonstrations
from shiq_bench.training.trainer import Collect, train

#: Raise it when offline data or reference evaluations would come out differently for one key.
DATA_VERSION = 5

#: Raise it when a behaviour model would come out differently for one key.
BEHAVIOUR_VERSION = 2

#: Settings of the run that decide a behaviour model, beside its data.
FIT = (
    "steps", "groups_per_step", "learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm", "precision",
    "layout", "seed",
)  # fmt: skip


def data_key(spec: RunSpec, task: Task, source: ModelSource) -> dict[str, Any]:
    """What decides the offline data, and no more: methods and seeds share it."""
    own = (c for c in type(task).__mro__ if issubclass(c, Task) and c is not Task)
    return {
        "version": DATA_VERSION,
        "weights": source.weights_hash,
        "task": spec.task,
        # What reads a model's calls decides verdicts as much as the task does.
        "code": code_hash(*own, ChatCodec, Template, Format),
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
    key = {**data_key(spec, task, source), "samples": spec.samples, "gold": spec.gold, "data_seed": spec.data_seed}

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
            found += [t for t, s in drawn if s.scored]
        order = {p: i for i, p in enumerate(task.prompts("rl"))}
        write_trajectories(folder / "trajectories.parquet", sorted(found, key=lambda t: order[t.prompt_id]))

    folder = cached_folder("data", key, build)
    trajectories = [t for t in read_trajectories(folder / "trajectories.parquet") if any(t.action_mask)]
    if not trajectories:
        raise UserError(
            f"no training data: task {spec.task} has none of its own, and samples={spec.samples}, gold={spec.gold}"
        )
    return trajectories


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


def training_groups(
    run: Run, source: ModelSource, reference: Policy, trajectories: list[Trajectory]
) -> list[list[Row]]:
    """Training groups, with the statistics of a reference that stays as it is."""
    spec, need = run.spec, run.algorithm.need(Reference)
    mismatches: list[Trajectory] | None = None
    if run.algorithm.need(Mismatched):
        trajectories, mismatches = with_mismatches(trajectories, spec.max_length)
    stats, mismatch_stats = None, None
    if need and not need.refresh:
        with run.timed("reference pass"):
            run.report("reference pass", 0, len(trajectories))
            stats = reference_pass(reference, source.weights_hash, trajectories, spec.precision)
            if mismatches:
                mismatch_stats = reference_pass(reference, source.weights_hash, mismatches, spec.precision)
    return prepare(trajectories, stats, run.algorithm, spec.center_rewards, mismatches, mismatch_stats)


def fitted_behaviour(run: Run, source: ModelSource, trajectories: Sequence[Trajectory]) -> Path:
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
        policy = load_policy(source, layout=spec.layout)
        if spec.steps:
            with tempfile.TemporaryDirectory() as scratch:
                train(
                    policy, None, group_rows([Row(t) for t in weighted]), WeightedLikelihood(),
                    replace(spec, save_every=10**9), Path(scratch),
                    on_step=run.counter("fitting the behaviour model"),
                )  # fmt: skip
        policy.model.save_pretrained(folder)

    with run.timed("behaviour model"):
        return cached_folder("behaviour", key, build)


def collect_fresh(run: Run, source: ModelSource, policy: Policy, scratch: Path) -> Collect:
    """Fresh episodes: the policy's weights go to the sampler by way of a folder."""
    spec, task, codec = run.spec, run.task, source.codec()

    def draw(prompt_ids: Sequence[str], step: int) -> list[Trajectory]:
        policy.model.save_pretrained(scratch)
        drawn = sample(
            task, codec, run.generator(source, scratch, stale=True), prompt_ids, spec,
            n=run.resolved.fresh_samples, temperature=1.0, seed=f"fresh {spec.seed} {step}", source="policy",
        )  # fmt: skip
        kept = [t for t, s in drawn if s.scored]
        return in_unit_range(kept, run.algorithm, task.largest_return) if kept else []

    asked = task.prompts("rl")
    fit = [e.prompt_id for e in task.episodes(asked, codec, spec.max_length) if not e.done]
    if len(fit) < len(asked):
        run.deviations.append(f"{len(asked) - len(fit)} of {len(asked)} prompts do not fit and are not trained on")
    return Collect(fit, draw)


def describe_stored(run: Run, trajectories: list[Trajectory]) -> dict[str, Any]:
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
