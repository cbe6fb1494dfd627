"""A comparison of two as text: for a terminal, as Markdown, as CSV. What a model wrote is text, and nothing else."""

from __future__ import annotations

import csv as table
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.escaping import in_csv, in_line, in_markdown, visible
from shiq_bench.records.hashing import canonical_json
from shiq_bench.report.layout import EMPTY, Line, Panel, Section, decimals, estimate_text, metric_label
from shiq_bench.report.pairwise import Example, Row, Versus
from shiq_bench.report.tables import WIDTH, markdown_sections, pipe, terminal_sections
from shiq_bench.stats.intervals import Estimate

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: What a comparison of two can be printed as.
FORMATS = ("rich", "md", "csv")

#: Lines that either side of an example may take.
LINES = 20


def print_versus(versus: Versus, *, format: str = "rich", console: Console | None = None) -> None:
    """Print it as ``rich``, ``md`` or ``csv``.

    Raises:
        UserError: another format.
    """
    from rich.console import Console

    if format not in FORMATS:
        raise UserError(f"no comparison format is called {format!r}{suggest(format, FORMATS)}")
    console = console or Console()
    if format != "rich":
        console.file.write(markdown(versus) if format == "md" else csv(versus))
        return
    if not console.is_terminal and console.width < WIDTH:
        console = Console(file=console.file, width=WIDTH, color_system=None)
    console.print(terminal(versus, console.width))


def terminal(versus: Versus, width: int = WIDTH) -> RenderableType:
    """For a rich console: the numbers, and the examples side by side, shortened to fit the width."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [terminal_sections([_section(versus)], ())]
    half = max(10, (width - 3) // 2)
    for example in versus.examples:
        shown = Table(
            title=Text(_headline(versus, example), style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
            show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="",
        )  # fmt: skip
        for name in (versus.one, versus.other):
            shown.add_column(Text(in_line(name), style="bold"), width=half, overflow="fold")
        pairs = ((example.one, example.other), (example.other, example.one))
        sides = (Text("\n".join(shortened(told(*pair, versus), half))) for pair in pairs)
        shown.add_row(*sides)
        parts += [Text(""), shown]
    return Group(*parts)


def terminal_text(versus: Versus, width: int = WIDTH) -> str:
    """What :func:`terminal` prints, without colour."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(terminal(versus, width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip() + "\n"


def markdown(versus: Versus) -> str:
    """The same as pipe tables."""
    out = [markdown_sections([_section(versus)], ())]
    for example in versus.examples:
        pairs = ((example.one, example.other), (example.other, example.one))
        sides = (shortened(told(*pair, versus), 100) for pair in pairs)
        cells = ["<br>".join(map(in_markdown, side)) for side in sides]
        head = [in_markdown(name) for name in (versus.one, versus.other)]
        out += [f"**{in_markdown(_headline(versus, example))}**", "", pipe(head), "|:--|:--|", pipe(cells), ""]
    return "\n".join(out).rstrip() + "\n"


def csv(versus: Versus) -> str:
    """One row a metric, ten significant digits; undefined is an empty field."""
    out = io.StringIO()
    writer = table.writer(out, lineterminator="\n")
    writer.writerow(
        ["one", "other", "split", "mode", "metric", "mean_one", "mean_other", "difference", "low", "high", "stderr",
         "interval_over", "p", "prompts", "seeds"]
    )  # fmt: skip
    for r in versus.rows:
        e = r.difference
        numbers = [r.one, r.other, e.mean, e.low, e.high, e.stderr]
        digits = ["" if x is None else f"{x:.10g}" for x in numbers]
        p = "" if r.p is None else f"{r.p:.10g}"
        texts = map(in_csv, (versus.one, versus.other, r.split, r.mode, r.metric.name))
        writer.writerow([*texts, *digits, r.over, p, r.prompts, r.seeds])
    return out.getvalue()


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


def _headline(versus: Versus, example: Example) -> str:
    assert versus.by is not None
    scale, unit = (100, " points") if versus.by.percent else (1, "")
    amount = f"{versus.by.title} {scale * example.difference:+.3g}{unit}"
    return in_line(f"{example.prompt} ({example.split}, {example.mode}): {amount}")


def _section(versus: Versus) -> Section:
    panels = []
    for place in dict.fromkeys((r.split, r.mode) for r in versus.rows):
        lines = [_line(r) for r in versus.rows if (r.split, r.mode) == place]
        headers = (versus.one, versus.other, "difference", "p", "prompts", "seeds")
        panels.append(Panel(f"{place[0]}, {place[1]}", tuple(("", h, "") for h in headers), tuple(lines)))
    if versus.settings:
        lines = [Line(n, (a, b), (False, False)) for n, a, b in versus.settings]
        heads = tuple(("", h, "") for h in (versus.one, versus.other))
        panels.append(Panel("settings that differ", heads, tuple(lines)))
    captions = versus.captions
    if versus.examples and versus.by:
        captions = (*captions, f"Examples: the prompts that differ most by {versus.by.title}.")
    return Section(versus.title, tuple(panels), captions)


def _line(row: Row) -> Line:
    known = [Estimate(x, None, None, None, 0, 0) for x in (row.one, row.other)]
    digits = decimals([row.difference] if row.difference.half else known, row.metric)
    texts = (
        *(estimate_text(e, row.metric, digits) for e in known),
        estimate_text(row.difference, row.metric, digits, signed=True),
        EMPTY if row.p is None else "<0.001" if row.p < 0.001 else f"{row.p:.3f}",
        str(row.prompts),
        str(row.seeds),
    )
    return Line(metric_label(row.metric), texts, (False,) * len(texts))
