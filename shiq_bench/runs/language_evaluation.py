"""How the reference of a language model does, once for all methods and seeds; and lm-eval on any policy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shiq_bench.api.task import Task
from shiq_bench.evaluation.evaluate import Mode, evaluate
from shiq_bench.generation.generator import Generator
from shiq_bench.models.source import ModelSource
from shiq_bench.records.cache import cached_folder
from shiq_bench.records.files import write_json
from shiq_bench.records.hashing import stable_hash
from shiq_bench.records.provenance import source_hash
from shiq_bench.records.record import Evaluation
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.language_data import data_key
from shiq_bench.training.policy import Policy, Scorer

if TYPE_CHECKING:
    from shiq_bench.runs.context import Run


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
