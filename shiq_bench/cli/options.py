"""Options that several commands share, and what they do with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shiq_bench.records.errors import UserError

if TYPE_CHECKING:
    from shiq_bench.records.metric import Metric
    from shiq_bench.records.record import RunRecord
    from shiq_bench.runs.progress import LiveReport

Results = Annotated[Path, typer.Option(help="Folder of run records.")]
ResultFolders = Annotated[
    list[Path] | None, typer.Option("--results", help="Folder of run records (results); may be given several times.")
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file that registers algorithms or tasks.")
]
Model = Annotated[str | None, typer.Option(help="'tiny', a folder, or a hub id.")]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value: any setting of the run, the algorithm or the task.")
]
AllowMixed = Annotated[bool, typer.Option("--allow-mixed", help="Mix records of different source versions.")]

#: Context of a command that takes every setting as a flag of its own name, beside the options it declares.
SETTINGS_AS_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def load_plugins(paths: list[Path] | None) -> None:
    """Import the files given by ``--plugin``.

    Raises:
        UserError: no such file, or it cannot be imported.
    """
    from shiq_bench.api.registry import load_plugin

    for path in paths or []:
        load_plugin(path)


def option_names(context: typer.Context) -> list[str]:
    """The options that a command declares, such as ``--algo``."""
    return [name for option in context.command.params for name in option.opts]


def live() -> LiveReport:
    """Progress on standard error."""
    from rich.console import Console

    from shiq_bench.runs.progress import LiveReport

    return LiveReport(Console(stderr=True))


def read_records(folders: list[Path], run_ids: list[str] | None = None) -> tuple[list[RunRecord], bool]:
    """The readable records of some folders, at least one, and whether others could not be read, which is said.

    Raises:
        UserError: there are none.
    """
    from shiq_bench.records.run_store import load_several

    records, problems = load_several(folders, run_ids=run_ids or None)
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    if not records and problems:
        raise typer.Exit(1)
    if not records:
        raise UserError(
            f"no runs in {', '.join(map(str, folders))}: start one with shiq-bench run --algo shiq --task bfcl"
        )
    return records, bool(problems)


def metrics_of(records: list[RunRecord]) -> dict[str, Sequence[Metric]]:
    """Of every task that is known here, what its records may hold."""
    from shiq_bench.api.registry import tasks

    known = set(tasks.names())
    return {name: tasks.get(name).metrics for name in {r.spec.task for r in records} if name in known}
