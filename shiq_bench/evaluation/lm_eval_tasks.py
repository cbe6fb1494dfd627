"""Tasks of lm-eval on a policy; what lm-eval prints, and the random states it leaves behind, stay out of the run."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.api.task
import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from shiq_bench.api.registry import tasks
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.record import Evaluation
from shiq_bench.stats.clustered import summarise

#: What ``Evaluation.mode`` says of these.
MODE = "lm-eval"


def shipped() -> Path:
    """Folder of our own tasks: YAML files that ``lm_eval --include_path`` takes too."""
    return Path(next(iter(importlib.import_module(tasks.package).__path__))) / "_lm_eval"


def task_names(text: str) -> list[str]:
    """Names joined by commas, each once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@functools.cache
def _official() -> TaskManager:
    """Every task that comes with lm-eval: ten thousand files, so they are read once, and only if asked for."""
    return TaskManager()


def _managers(
    names: Sequence[str], include: Sequence[Path], metadata: Mapping[str, Any] | None = None
) -> dict[str, TaskManager]:
    """Who knows each name.

    Raises:
        UserError: nobody does; the nearest is suggested.
    """
    own = TaskManager(include_path=[shipped(), *include], include_defaults=False, metadata=dict(metadata or {}))
    managers: dict[str, TaskManager] = {}
    for name in names:
        managers[name] = own if name in own.task_index else _official()
        if name not in managers[name].task_index:
            hint = suggest(name, [*own.all_tasks, *_official().all_tasks]).split(" known:")[0].rstrip(";")
            raise UserError(f"lm-eval has no task {name!r}{hint} (`lm_eval ls tasks` lists them)")
    return managers


def check_tasks(names: Sequence[str], include: Sequence[Path] = ()) -> None:
    """Find a wrong name before any model is loaded.

    Raises:
        UserError: there is no such task; the nearest is suggested.
    """
    with _contained():
        _managers(names, include)


def _load(names: Sequence[str], include: Sequence[Path], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks themselves, groups and tags taken apart, with their documents."""
    found: dict[str, Any] = {}
    for name, manager in _managers(names, include, metadata).items():
        try:
            found |= manager.load([name])["tasks"]
        except UserError:
            raise
        except Exception as error:  # a task is code and data from anywhere, and raises what it likes
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"lm-eval task {name} cannot be loaded: {type(error).__name__}: {reason[:200]}; "
                "most tasks fetch their data from the hub: run once where it can be reached, or leave the task out"
            ) from error
    for name, task in found.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(f"lm-eval task {name} runs code a model wrote, or shows it pictures: leave it out")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return found


def run_lm_eval(
    names: Sequence[str],
    lm: TemplateLM,
    *,
    policy: str,
    step: int,
    limit: int = 0,
    include: Sequence[Path] = (),
    metadata: Mapping[str, Any] | None = None,
) -> list[Evaluation]:
    """Evaluate a model on tasks of lm-eval, with lm-eval's own seeds and settings.

    Args:
        names: tasks, groups or tags.
        policy: ``reference`` or ``trained``, for the record.
        step: optimiser updates behind it.
        limit: documents of each task; 0 is all.
        include: folders of further tasks.
        metadata: what our own tasks are told, and those of ``include``.

    Returns:
        One evaluation a task, its name in the place of a split. Examples are documents, with the
        metrics that are means over them (under ``metric,filter`` where a task filters answers in
        several ways); a metric of the whole corpus is a mean without error.

    Raises:
        UserError: an unknown name, data that cannot be had, or a task that does not go with the model.
    """
    with _contained():
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        found = _load(names, include, metadata or {})
        results = evaluate(lm, {"tasks": found}, limit=limit or None, bootstrap_iters=0, log_samples=True)
    return [
        Evaluation(policy, name, MODE, step, *_measured(results["results"][name], results["samples"][name]))
        for name in found
    ]


def _measured(
    totals: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, float | None]], list[dict[str, Any]]]:
    """Metrics and examples of one task, from lm-eval's totals and samples."""
    filters = {sample["filter"] for sample in samples}
    documents: dict[str, dict[str, Any]] = {}
    columns: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in samples:
        which = str(sample["doc_id"])
        documents.setdefault(which, {"prompt_id": which})
        for metric in sample["metrics"]:
            columns.setdefault((metric, sample["filter"]), {})[which] = sample[metric]
    metrics: dict[str, dict[str, float | None]] = {}
    for (metric, kind), values in columns.items():
        name, total = metric if len(filters) == 1 else f"{metric},{kind}", float(totals[f"{metric},{kind}"])
        single = all(isinstance(v, bool | int | float | np.number | np.bool_) for v in values.values())
        # A perplexity has a number for each document too, and is not their mean.
        if single and math.isclose(float(np.mean(list(values.values()))), total, abs_tol=1e-9):
            for which, value in values.items():
                documents[which][name] = float(value)
            metrics |= summarise(list(documents.values()), [name])
        else:
            metrics[name] = {"mean": total if math.isfinite(total) else None, "n": len(values), "stderr": None}
    return metrics, list(documents.values())


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Run lm-eval, and put back the random states it sets; no bars and no remarks meanwhile."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    logger, module = logging.getLogger("lm_eval"), lm_eval.api.task
    level, bar = logger.level, module.tqdm
    logger.setLevel(logging.ERROR)
    module.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        module.tqdm = bar
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
