"""``shiq-bench table``, ``compare`` and ``report``: what the records of runs show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from shiq_bench.cli.options import AllowMixed, Plugins, ResultFolders, lacking, live
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
    from shiq_bench.report import tables

    folders = results or [Path("results")]
    if paper:
        if format != "rich":
            raise UserError("--paper writes every format: leave out --format")
        _paper(runs, folders, out or folders[0], study or [], allow_mixed)
        return
    if study:
        raise UserError("--study is for --paper: to draw one study type shiq-bench study")
    with _records(folders, runs) as records:
        metrics = _metrics(records)
        tables.print_table(records, metrics, format=format, out=out, allow_mixed=allow_mixed, console=Console())


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
    from shiq_bench.report import pairwise

    with _records(results or [Path("results")]) as records:
        found = [pairwise.select(records, name, task) for name in (one, other)]
        known = _metrics(found[0]).get(found[0][0].spec.task, ())
        made = pairwise.versus(found[0], found[1], (one, other), known, count=examples, allow_mixed=allow_mixed)
        pairwise.print_versus(made, format, Console())


def report(
    results: ResultFolders = None,
    out: Annotated[Path | None, typer.Option(help="Page to write; report.html in the first folder by default.")] = None,
    allow_mixed: AllowMixed = False,
    plugin: Plugins = None,
) -> None:
    """Write one HTML page of all stored runs, to be opened anywhere: tables, pictures, episodes, settings."""
    from shiq_bench.records.files import write_atomic
    from shiq_bench.report.page import page, payload

    folders = results or [Path("results")]
    path = out or folders[0] / "report.html"
    said = Console(stderr=True)
    with _records(folders) as records:
        with said.status(f"comparing {len(records)} runs") if said.is_terminal else nullcontext():
            html = page(payload(records, _metrics(records), allow_mixed=allow_mixed))
        write_atomic(path, html)
        typer.echo(f"{path}: {len(records)} runs, {len(html) / 1e6:.1f} MB; open it in a browser, it needs no network")


def _paper(runs: list[str] | None, folders: list[Path], out: Path, given: list[Path], allow_mixed: bool) -> None:
    from shiq_bench.studies.paper import MANIFEST, paper

    if runs:
        raise UserError("--paper is of whole folders: leave out the run ids")
    with live() as report:
        made, problems = paper(folders, out, [str(path) for path in given], allow_mixed=allow_mixed, report=report)
    with lacking(problems):
        typer.echo(f"{len(made)} files in {out}, and what each shows in {out / MANIFEST}")


@contextmanager
def _records(folders: list[Path], run_ids: list[str] | None = None) -> Iterator[list[RunRecord]]:
    """The readable records of some folders, at least one; what else is there is said.

    Raises:
        UserError: there are none.
    """
    from shiq_bench.records.run_store import load_all

    records, problems = load_all(*folders, run_ids=run_ids or None)
    with lacking(problems):
        if not records and not problems:
            where = ", ".join(map(str, folders))
            raise UserError(f"no runs in {where}: start one with shiq-bench run --algo shiq --task bfcl")
        if not records:
            raise typer.Exit(1)
        yield records


def _metrics(records: list[RunRecord]) -> dict[str, Sequence[Metric]]:
    """Of every task that is known here, what its records may hold."""
    from shiq_bench.api.registry import tasks

    known = set(tasks.names())
    return {name: tasks.get(name).metrics for name in {r.spec.task for r in records} if name in known}
