"""A comparison of two as a document and as a frame. What a model wrote is text, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from shiq_bench.records.escaping import visible
from shiq_bench.records.hashing import canonical_json
from shiq_bench.report import render
from shiq_bench.report.document import Document, Header, Row, Section, Table, simple_table
from shiq_bench.report.format import decimals, metric_label, p_value, plus_minus
from shiq_bench.report.pairwise import Difference, Example, Versus
from shiq_bench.stats.intervals import Estimate

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

#: Lines that either side of an example may take, and characters of a line where no terminal says how many.
LINES, CHARACTERS = 20, 100

FRAME = (
    "one", "other", "split", "mode", "metric", "mean_one", "mean_other", "difference", "low", "high", "stderr",
    "interval_over", "p", "prompts", "seeds",
)  # fmt: skip


def print_versus(versus: Versus, *, format: str = "rich", console: Console | None = None) -> None:
    """Print it in one of :data:`shiq_bench.report.render.FORMATS`.

    Raises:
        UserError: no such format.
    """
    render.show(partial(document, versus), partial(frame, versus), format, console)


def text(versus: Versus, format: str, width: int = render.WIDTH) -> str:
    """What :func:`print_versus` prints; ``rich`` is fixed text of that width."""
    return render.text(partial(document, versus), partial(frame, versus), format, width)


def frame(versus: Versus) -> pd.DataFrame:
    """One row a metric, at full precision."""
    import pandas as pd

    rows = []
    for row in versus.rows:
        d = row.difference
        about = (versus.one, versus.other, row.split, row.mode, row.metric.name, row.one, row.other)
        rows.append((*about, d.mean, d.low, d.high, d.stderr, row.over, row.p, row.prompts, row.seeds))
    return pd.DataFrame(rows, columns=list(FRAME))


def document(versus: Versus, width: int | None = None) -> Document:
    """The numbers, what differs in the settings, and the examples side by side, shortened to fit the width."""
    names = (versus.one, versus.other)
    tables = []
    for place in dict.fromkeys((r.split, r.mode) for r in versus.rows):
        rows = [_row(r) for r in versus.rows if (r.split, r.mode) == place]
        headers = map(Header, (*names, "difference", "p", "prompts", "seeds"))
        tables.append(Table(f"{place[0]}, {place[1]}", tuple(headers), tuple(rows)))
    if versus.settings:
        tables.append(simple_table("settings that differ", ("", *names), versus.settings))
    sections = [Section(versus.title, tuple(tables), notes=versus.captions)]
    if versus.examples and versus.by:
        half = CHARACTERS if width is None else max(10, (width - 3) // 2)
        examples = tuple(_example(versus, e, half) for e in versus.examples)
        sections.append(Section(f"prompts that differ most by {versus.by.title}", examples))
    return Document(tuple(sections))


def _row(difference: Difference) -> Row:
    d, metric = difference.difference, difference.metric
    known = [Estimate(x, None, None, None, 0, 0) for x in (difference.one, difference.other)]
    digits = decimals([d] if d.half else known, metric)
    means = (plus_minus(e, metric, digits) for e in known)
    counts = (str(difference.prompts), str(difference.seeds))
    texts = (*means, plus_minus(d, metric, digits, signed=True), p_value(difference.p), *counts)
    return Row(metric_label(metric), texts)


def _example(versus: Versus, example: Example, width: int) -> Table:
    """What either did on one prompt, a row a line."""
    assert versus.by is not None
    scale, unit = (100, " points") if versus.by.percent else (1, "")
    amount = f"{versus.by.title} {scale * example.difference:+.3g}{unit}"
    sides = (told(*pair, versus) for pair in ((example.one, example.other), (example.other, example.one)))
    lines = zip_longest(*(shortened(side, width) for side in sides), fillvalue="")
    title = f"{example.prompt} ({example.split}, {example.mode}): {amount}"
    rows = tuple(Row(one, (other,)) for one, other in lines)
    return Table(title, (Header(versus.other),), rows, corner=versus.one, left=True)


def told(example: Mapping[str, Any], beside: Mapping[str, Any], versus: Versus) -> list[str]:
    """An episode in lines: its numbers and what its task has kept of it, short before long, where the two differ."""
    known = {row.metric.name for row in versus.rows}
    numbers = [k for k in example if k in known and isinstance(example[k], int | float) and example[k] != beside.get(k)]
    lines = [", ".join(f"{k} {example[k]:g}" for k in numbers)]
    details, others = example.get("details") or {}, beside.get("details") or {}
    texts = {
        name: value if isinstance(value, str) else canonical_json(value)
        for name, value in details.items()
        if name not in others or value != others[name]
    }
    for name, text in sorted(texts.items(), key=lambda item: len(item[1])):
        first, *rest = visible(text).split("\n")
        lines += [f"{visible(str(name))}: {first}", *rest]
    return lines


def shortened(lines: Sequence[str], width: int, most: int = LINES) -> list[str]:
    """Lines no wider than a column, and no more than fit; what was cut is said."""
    folded = [part for line in lines for part in ([line[i : i + width] for i in range(0, len(line), width)] or [""])]
    if len(folded) <= most:
        return folded
    return [*folded[: most - 1], f"… {len(folded) - most + 1} more lines"]
