"""``shiq-bench score``."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shiq_bench.api.registry import tasks
from shiq_bench.cli.options import Plugins, lacking, live
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import check_out, read_lines, write_atomic


def score(
    answers: Annotated[Path, typer.Argument(metavar="IN", help="JSON lines: one answer each.")],
    task: Annotated[str, typer.Option(help="Task the answers belong to; see `shiq-bench list`.")],
    out: Annotated[Path, typer.Option(help="File of verdicts, one a line.")],
    plugin: Plugins = None,
) -> None:
    """Score answers from a file with the task's own checkers: no model, no torch."""
    lines = read_lines(answers)
    check_out(out, answers)
    with closing(tasks.get(task)()) as scorer, live() as report:
        scores = scorer.score_lines(lines, report)
    with lacking(scores.problems, answers):
        if not scores.results:
            raise UserError(f"{answers} holds no answer that can be scored: nothing was written")
        write_atomic(out, "".join(json.dumps(dict(result)) + "\n" for result in scores.results).encode())
        headings, *rows = scores.table
        printed = Table(*headings, box=None, pad_edge=False)
        for at, row in enumerate(rows, 1):
            printed.add_row(*row, style="bold" if at >= scores.groups else None)
        console = Console()
        console.print(printed)
        for note in scores.notes:
            console.print(note, style="dim", highlight=False)
