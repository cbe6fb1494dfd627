"""``shiq-bench study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shiq_bench.cli.options import Plugins, Results, load_plugins
from shiq_bench.records.errors import UserError


def study(
    name: Annotated[
        str, typer.Argument(help="A shipped study, the path of a YAML file, or all: those shipped that run on tables.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="In place of the study's: 'tiny', a folder, or a hub id.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value for every run, over the file's settings, not its panels or methods."),
    ] = None,
    results: Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Folder of pictures; <results>/studies by default.")] = None,
    executor: Annotated[
        str, typer.Option(help="inline (this process), local, ray or slurm; inline for a few tables, else local.")
    ] = "",
    workers: Annotated[int, typer.Option(help="Runs at once; 0: as many as fit.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="The shipped studies, one line each.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs, their cost and what is there.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Re-run results that another version of the code produced.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Mix records of different source versions.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Run what a study still lacks, and draw its pictures and tables from the records."""
    from rich.console import Console

    from shiq_bench.runs.settings import parse_sets
    from shiq_bench.studies.study import print_list, print_studies, run_studies
    from shiq_bench.sweep.worker import stoppable

    load_plugins(plugin)
    if list_ or not name:
        print_list(Console())
        return
    given = parse_sets([*([] if model is None else [f"model={model}"]), *(sets or [])])
    if dry_run:
        print_studies(name, given, results, Console(), fresh=fresh)
        return
    stoppable()
    failed = run_studies(
        name, given, results, out or results / "studies", Console(), Console(stderr=True), fresh=fresh,
        allow_mixed=allow_mixed, executor=executor, workers=workers, plugins=plugin or (),
    )  # fmt: skip
    if failed:
        raise UserError(f"{failed} runs failed, and are missing from what was drawn: see the lines above")
