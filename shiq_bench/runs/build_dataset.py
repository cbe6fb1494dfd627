"""The offline stage of a run alone, kept as a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from shiq_bench.api.task import Task
from shiq_bench.data.dataset import check_free, write_dataset
from shiq_bench.data.schema import BUILD
from shiq_bench.generation.generator import Generator
from shiq_bench.models.source import Progress, quiet
from shiq_bench.records.errors import UserError
from shiq_bench.records.provenance import code_hash, git, packages, source_hash
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.context import start_generator
from shiq_bench.runs.language_data import offline_data
from shiq_bench.training.starting_policy import resolve_model


def build_dataset(
    spec: RunSpec, task: Task, out: Path, report: Progress, plugins: Sequence[Path] = ()
) -> dict[str, Any]:
    """Do the offline stage of a run, and keep its trajectories as a dataset.

    Args:
        spec: as of :func:`~shiq_bench.runs.settings.resolve_data`.
        out: a folder that does not exist yet, or is empty.
        plugins: named in the command that makes the dataset again.

    Returns:
        The manifest.

    Raises:
        UserError: ``out`` is taken or cannot be written, or there is nothing to draw from.
    """
    check_free(out)
    if spec.model == "table":
        raise UserError(f"task {spec.task} is a table unless a model is asked for: add --model tiny")
    quiet()
    report("starting policy", 0, 0)
    source = resolve_model(spec, task, report)
    task.prepare(report)
    with ExitStack() as opened:
        opened.callback(task.close)

        def generator() -> Generator:
            return opened.enter_context(closing(start_generator(spec, source, source.folder, report)))

        trajectories = offline_data(spec, task, source, generator, report)
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
