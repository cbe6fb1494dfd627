"""Run records to tables: the reference beside every trained policy, with intervals and n; and to one row a number.

:func:`compare` does the arithmetic once; the rest only lays it out. The same records give the same bytes: nothing here
reads a clock or a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from shiq_bench.records.record import Metric, RunRecord, Status
from shiq_bench.records.spec import RunSpec
from shiq_bench.report import render
from shiq_bench.report.blocks import Block, Comparison, last, plain
from shiq_bench.report.comparison import compare
from shiq_bench.report.pivots import document
from shiq_bench.stats.intervals import Estimate
from shiq_bench.stats.ranking import Test
from shiq_bench.stats.tests import detectable

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

#: Of what a run consumed, what has a column of its own: tokens and trajectories trained on, samples drawn.
CONSUMED = ("updates", "action_tokens", "trajectories", "samples_drawn")

FRAME = (
    "task", "conditions", "split", "mode", "policy", "metric", "title", "kind", "unit", "better",
    "mean", "low", "high", "stderr", "interval_over", "n", "n_max", "seeds", *get_args(Status), "step", "best",
    "p", "p_holm", "p_units", "detectable", *CONSUMED,
    "run_ids",
)  # fmt: skip


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


def frame(blocks: Iterable[Block]) -> pd.DataFrame:
    """Ordered task > split > mode > policy > metric, at full precision."""
    import pandas as pd

    return pd.DataFrame([row for block in blocks for row in _rows(block)], columns=list(FRAME))


def _rows(block: Block) -> Iterable[dict[str, Any]]:
    defaults = {f.name: f.default for f in fields(RunSpec) if f.default is not MISSING}
    unusual = {k: v for k, v in block.conditions.items() if k not in {"task", "task_options"} and v != defaults.get(k)}
    told = {"model": block.conditions["model"], **block.conditions["task_options"], **unusual}
    conditions = " ".join(f"{k}={plain(v)}" for k, v in told.items())
    for split, mode in block.places:
        for column in block.columns:
            steps = [x.step for r in column.done if (x := last(r, "trained", (split, mode))) is not None]
            for metric in block.metrics:
                key = (split, mode, column.label, metric.name)
                for kind, values in (("value", block.cells), ("minus_reference", block.differences)):
                    cell = values.get(key)
                    if cell is None and (kind != "value" or column.done or not column.runs):
                        continue  # not measured here; only columns without any finished run keep empty rows
                    tests = block.to_best if kind == "value" else block.to_reference
                    test = tests.get(key, Test(None, None, 0))
                    e = cell.estimate if cell else Estimate(None, None, None, None, 0, 0)
                    yield {
                        "task": block.conditions["task"], "conditions": conditions, "split": split, "mode": mode,
                        "policy": column.label, "metric": metric.name, "title": metric.title, "kind": kind,
                        "unit": "share" if metric.percent else "", "better": metric.better,
                        "mean": e.mean, "low": e.low, "high": e.high, "stderr": e.stderr,
                        "interval_over": cell.over if cell else "none", "n": min(cell.n, default=0) if cell else 0,
                        "n_max": max(cell.n, default=0) if cell else 0,
                        "seeds": len(cell.n) if cell and column.runs else 0,
                        **{status: column.count(status) for status in get_args(Status)},
                        "step": max(steps, default=0), "best": key in block.best and kind == "value",
                        "p": test.p, "p_holm": test.adjusted, "p_units": test.units,
                        "detectable": detectable(e) if kind == "minus_reference" else None,
                        **{name: column.consumed.get(name) for name in CONSUMED},
                        "run_ids": " ".join(r.run_id for r in column.runs),
                    }  # fmt: skip
