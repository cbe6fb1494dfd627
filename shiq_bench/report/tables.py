"""A comparison as text: its numbers in tables, policies side by side, a row a metric; and as a frame, a row a number.

The same records give the same bytes: nothing here reads a clock or a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from shiq_bench.records.record import Metric, RunRecord, Status
from shiq_bench.records.spec import RunSpec
from shiq_bench.report import render
from shiq_bench.report.blocks import DROP, Block, Cell, Column, Comparison, Key, Place, last, plain
from shiq_bench.report.comparison import compare
from shiq_bench.report.document import Document, Header, Row, Section, Table
from shiq_bench.report.format import EMPTY, count, decimals, metric_label, plus_minus
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
    room = render.room(format, None if out else console)
    render.show(_made(comparison, format, room), format, console, out)


def text(comparison: Comparison, format: str, width: int = render.WIDTH) -> str:
    """A comparison in one of :data:`shiq_bench.report.render.FORMATS`; ``rich`` is fixed text of that width."""
    room = width if format == "rich" else render.room(format)
    return render.text(_made(comparison, format, room), format, width)


def _made(comparison: Comparison, format: str, room: int | None) -> Document | pd.DataFrame:
    return frame(comparison.blocks) if format == "csv" else document(comparison, room)


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


def document(comparison: Comparison, width: int | None = None) -> Document:
    """A section for every block, whose tables take at most so many characters; None is any number."""
    sections = []
    for block in comparison.blocks:
        found = tuple(tables(block, width))
        claims = () if found else ("No evaluations yet.",)
        sections.append(Section(block.title, found, claims, block.captions))
    return Document(tuple(sections), comparison.captions)


def tables(block: Block, width: int | None) -> list[Table]:
    """One table a mode with the splits side by side; where that is too wide, one a split and mode, or several of it."""
    made = partial(_table, block, (texts(block), texts(block, differences=True)))
    beside = []
    for mode in dict.fromkeys(mode for _, mode in block.places):
        places = [p for p in block.places if p[1] == mode]
        # Heads name the splits only to tell them apart.
        title = place_title(block, places[0]) if len(places) == 1 else mode_title(block, mode)
        beside.append(made(title, places, block.columns))
    if width is None or all(t.width <= width for t in beside):
        return beside
    narrow = []
    for place in block.places:
        title, columns = place_title(block, place), block.columns
        while columns:
            take = len(columns)
            while take > 1 and made(title, [place], columns[:take]).width > width:
                take -= 1
            narrow.append(made(title, [place], columns[:take]))
            columns = columns[take:]
    return narrow


def texts(block: Block, differences: bool = False) -> dict[Key, str]:
    """Every cell (or every difference to the reference) as all renderers write it: ``0.28 ± 0.18``, percent as such."""
    shown = {
        m.name: (m, decimals([c.estimate for k, c in block.cells.items() if k[3] == m.name], m)) for m in block.metrics
    }
    return {
        key: plus_minus(cell.estimate, *shown[key[3]], signed=differences)
        + (DROP if differences and key in block.drops else "")
        for key, cell in (block.differences if differences else block.cells).items()
    }


def place_title(block: Block, place: Place) -> str:
    """Split and mode, in words."""
    return f"{place[0]}, {mode_title(block, place[1])}"


def mode_title(block: Block, mode: str) -> str:
    """How answers were drawn, in words."""
    if mode == "stored":
        return "stored answers, by the policy's implicit reward"
    if mode != "sampled":
        return mode
    return f"sampled, temperature 1, {block.conditions['eval_samples']} a prompt"


def _table(
    block: Block, said: Sequence[Mapping[Key, str]], title: str, places: Sequence[Place], columns: Sequence[Column]
) -> Table:
    headers: list[Header] = []
    for split, _ in places:
        headers += [Header(c.label, split if c is columns[0] else "", c.state) for c in columns]
        headers.append(Header("n"))
    rows = [
        _row(block, metric, places, columns, values, shown)
        for metric in block.metrics
        for values, shown in zip((block.cells, block.differences), said, strict=True)
        if any((*place, c.label, metric.name) in values for place in places for c in columns)
    ]
    return Table(title, tuple(headers), tuple(rows))


def _row(
    block: Block,
    metric: Metric,
    places: Sequence[Place],
    columns: Sequence[Column],
    values: Mapping[Key, Cell],
    said: Mapping[Key, str],
) -> Row:
    """A metric, or its difference to the reference; behind the policies of each place the n that most of them have."""
    difference = values is block.differences
    trials = metric.name in block.rates and not difference
    row: list[str] = []
    bold: set[int] = set()
    for place in places:
        keys = [(*place, c.label, metric.name) for c in columns]
        counts = Counter(count(values[k].n) for k in keys if k in values)
        # What most columns have, the larger on a tie; trials differ everywhere, so their range.
        usual = max(counts, key=lambda n: (counts[n], float(n.split("-")[-1] or 0)), default="")
        if trials:
            usual = count([n for k in keys if k in values for n in values[k].n])
        for column, key in zip(columns, keys, strict=True):
            text = said.get(key, EMPTY)
            if (cell := values.get(key)) is not None:
                if column.done and len(cell.n) < len(column.done):
                    text += f" ({len(cell.n)} of {len(column.done)} seeds)"
                elif count(cell.n) != usual and not trials:
                    text += f" ({count(cell.n)})"
            if key in block.best and not difference:
                bold.add(len(row))
            row.append("" if difference and column.label == "reference" else text)
        row.append(usual)
    label = "minus reference" if difference else metric_label(metric)
    return Row(label, tuple(row), frozenset(bold), difference)
