"""``shiq-bench table``, ``compare`` and ``report``: what the records of runs show."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shiq_bench.cli.options import AllowMixed, Plugins, ResultFolders, live, load_plugins
from shiq_bench.records.errors import UserError

if TYPE_CHECKING:
    from shiq_bench.records.record import Metric, RunRecord


def table(
    runs: Annotated[list[str] | None, typer.Argument(help="Run ids; all of the folder by default.")] = None,
    results: ResultFolders = None,
    format: Annotated[str, typer.Option(help="rich, md, latex (booktabs), html or csv.")] = "rich",
    out: Annotated[Path | None, typer.Option(help="File to write instead of printing; the folder of --paper.")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Write every table, and every study there are runs of, with a manifest.")
    ] = False,
    study: Annotated[
        list[Path] | None,
        typer.Option("--study", help="With --paper: a study beside the shipped ones; repeat for more."),
    ] = None,
    allow_mixed: AllowMixed = False,
    plugin: Plugins = None,
) -> None:
    """Print the table of stored runs again, from their records alone."""
    from rich.console import Console

    from shiq_bench.report import tables

    load_plugins(plugin)
    folders = results or [Path("results")]
    if paper:
        if format != "rich":
            raise UserError("--paper writes every format: leave out --format")
        _paper(runs, folders, out or folders[0], study or [], allow_mixed)
        return
    if study:
        raise UserError("--study is for --paper: to draw one study type shiq-bench study")
    records, torn = _records(folders, runs)
    metrics = _metrics(records)
    tables.print_table(records, metrics, format=format, out=out, allow_mixed=allow_mixed, console=Console())
    if torn:
        raise typer.Exit(1)


def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="A run id, or a method: algo, or algo:key=value,key=value.")],
    other: Annotated[str, typer.Argument(metavar="B", help="What A is compared with, named alike.")],
    task: Annotated[str, typer.Option(help="Task whose runs a method stands for.")] = "",
    results: ResultFolders = None,
    format: Annotated[str, typer.Option(help="rich, md, latex, html or csv.")] = "rich",
    examples: Annotated[int, typer.Option(min=0, help="Prompts to show on which the two differ most.")] = 5,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare records of different source versions.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Two runs, or two methods over their shared seeds: differences, settings, and the prompts that tell them apart."""
    from rich.console import Console

    from shiq_bench.report import pairwise

    load_plugins(plugin)
    records, torn = _records(results or [Path("results")])
    found = [pairwise.select(records, name, task) for name in (one, other)]
    known = _metrics(found[0]).get(found[0][0].spec.task, ())
    made = pairwise.versus(found[0], found[1], (one, other), known, count=examples, allow_mixed=allow_mixed)
    pairwise.print_versus(made, format=format, console=Console())
    if torn:
        raise typer.Exit(1)


def report(
    results: ResultFolders = None,
    out: Annotated[Path | None, typer.Option(help="Page to write; report.html in the first folder by default.")] = None,
    allow_mixed: AllowMixed = False,
    plugin: Plugins = None,
) -> None:
    """Write one HTML page of all stored runs, to be opened anywhere: tables, pictures, episodes, settings."""
    from rich.console import Console

    from shiq_bench.records.files import write_atomic
    from shiq_bench.report.page import page, payload

    load_plugins(plugin)
    folders = results or [Path("results")]
    records, torn = _records(folders)
    path = out or folders[0] / "report.html"
    said = Console(stderr=True)
    with said.status(f"comparing {len(records)} runs") if said.is_terminal else nullcontext():
        html = page(payload(records, _metrics(records), allow_mixed=allow_mixed))
    write_atomic(path, html)
    typer.echo(f"{path}: {len(records)} runs, {len(html) / 1e6:.1f} MB; open it in a browser, it needs no network")
    if torn:
        raise typer.Exit(1)


def _paper(runs: list[str] | None, folders: list[Path], out: Path, given: list[Path], allow_mixed: bool) -> None:
    from shiq_bench.studies.paper import MANIFEST, paper

    if runs:
        raise UserError("--paper is of whole folders: leave out the run ids")
    with live() as report:
        made, problems = paper(folders, out, [str(path) for path in given], allow_mixed=allow_mixed, report=report)
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    typer.echo(f"{len(made)} files in {out}, and what each shows in {out / MANIFEST}")
    if problems:
        raise typer.Exit(1)


def _records(folders: list[Path], run_ids: list[str] | None = None) -> tuple[list[RunRecord], bool]:
    """The readable records of some folders, at least one, and whether others could not be read, which is said.

    Raises:
        UserError: there are none.
    """
    from shiq_bench.records.run_store import load_all

    records, problems = load_all(*folders, run_ids=run_ids or None)
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    if not records and problems:
        raise typer.Exit(1)
    if not records:
        raise UserError(
            f"no runs in {', '.join(map(str, folders))}: start one with shiq-bench run --algo shiq --task bfcl"
        )
    return records, bool(problems)


def _metrics(records: list[RunRecord]) -> dict[str, Sequence[Metric]]:
    """Of every task that is known here, what its records may hold."""
    from shiq_bench.api.registry import tasks

    known = set(tasks.names())
    return {name: tasks.get(name).metrics for name in {r.spec.task for r in records} if name in known}
