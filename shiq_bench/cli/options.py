"""Options that several commands share, and what they do with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shiq_bench.runs.progress import LiveReport


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    for path in paths or []:
        from shiq_bench.api.registry import load_plugin

        load_plugin(path)
    return paths


Results = Annotated[Path, typer.Option(help="Folder of run records.")]
ResultFolders = Annotated[
    list[Path] | None, typer.Option("--results", help="Folder of run records (results); may be given several times.")
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", callback=_load_plugins, help="A Python file that registers algorithms or tasks."),
]
Model = Annotated[str | None, typer.Option(help="'tiny', a folder, or a hub id.")]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value: any setting of the run, the algorithm or the task.")
]
AllowMixed = Annotated[bool, typer.Option("--allow-mixed", help="Mix records of different source versions.")]

#: Context of a command that takes every setting as a flag of its own name, beside the options it declares.
SETTINGS_AS_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def typed_settings(
    context: typer.Context, known: Mapping[str, Mapping[str, Any]], task: str, data: str | None, **declared: Any
) -> dict[str, Any]:
    """The settings typed as flags: ``--data``, those that the command declares, and others by their own names.

    Args:
        known: owner -> name -> type of all that can be set.
        declared: None where an option was not given.

    Raises:
        UserError: a flag is no setting; the nearest is suggested.
    """
    from shiq_bench.runs.settings import data_setting, parse_flags

    given = {name: value for name, value in declared.items() if value is not None}
    if data is not None:
        given[data_setting(task, data)] = data
    options = [name for option in context.command.params for name in option.opts]
    return given | parse_flags(context.args, known, options)


def live() -> LiveReport:
    """Progress on standard error."""
    from rich.console import Console

    from shiq_bench.runs.progress import LiveReport

    return LiveReport(Console(stderr=True))


@contextmanager
def lacking(problems: Sequence[str], label: Path | str = "skipped") -> Iterator[None]:
    """Say what cannot be read, behind a label, do with the rest what is to be done, and end with exit code 1."""
    for problem in problems:
        typer.echo(f"{label}: {problem}", err=True)
    yield
    if problems:
        raise typer.Exit(1)
