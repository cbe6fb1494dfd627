"""A comparison as a document: its numbers as text, policies side by side, a row a metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from shiq_bench.records.record import Metric
from shiq_bench.report.blocks import DROP, Block, Cell, Column, Comparison, Key, Place
from shiq_bench.report.document import Document, Header, Row, Section, Table
from shiq_bench.report.format import EMPTY, count, decimals, metric_label, plus_minus


def document(comparison: Comparison, width: int | None = None) -> Document:
    """A section for every block.

    Args:
        width: characters that a table may take, see :func:`tables`; None is any number.
    """
    sections = []
    for block in comparison.blocks:
        found = tuple(tables(block, width))
        claims = () if found else ("No evaluations yet.",)
        sections.append(Section(block.title, found, claims, block.captions))
    return Document(tuple(sections), comparison.captions)


def tables(block: Block, width: int | None) -> list[Table]:
    """One table a mode with the splits side by side; where that is too wide, one a split and mode;
    where that still is, the policies in several, the reference in the first."""
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
