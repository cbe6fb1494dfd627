"""Run records to tables: the reference beside every trained policy, with intervals and n.

:func:`compare` does the arithmetic once; the rest only lays it out. The same records give the same bytes: nothing here
reads a clock or a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shiq_bench.records.record import Metric, RunRecord
from shiq_bench.report import render
from shiq_bench.report.blocks import Comparison
from shiq_bench.report.comparison import compare
from shiq_bench.report.frame import frame
from shiq_bench.report.pivots import document

if TYPE_CHECKING:
    from rich.console import Console


def run_table(record: RunRecord, metrics: Sequence[Metric] = (), *, console: Console | None = None) -> None:
    """Print the table of one run: reference and trained, every split, greedy and sampled."""
    print_table([record], metrics, console=console)


def print_table(
    records: Iterable[RunRecord],
    metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]] = (),
    *,
    format: str = "rich",
    out: Path | None = None,
    allow_mixed: bool = False,
    console: Console | None = None,
) -> None:
    """:func:`compare`, and print it, or write it to a file.

    Args:
        format: one of :data:`shiq_bench.report.render.FORMATS`; ``csv`` holds every number, a row each.
        out: a file to write, whole or not at all, instead of printing.

    Raises:
        UserError: as :func:`compare`, no such format, or a file that cannot be written.
    """
    from rich.console import Console

    render.check_format(format)
    records, console = list(records), console or Console()
    with console.status(f"comparing {len(records)} runs") if console.is_terminal else nullcontext():
        comparison = compare(records, metrics, allow_mixed=allow_mixed)
    render.show(partial(document, comparison), partial(frame, comparison.blocks), format, console, out)


def text(comparison: Comparison, format: str, width: int = render.WIDTH) -> str:
    """A comparison in one of :data:`shiq_bench.report.render.FORMATS`; ``rich`` is fixed text of that width."""
    return render.text(partial(document, comparison), partial(frame, comparison.blocks), format, width)
