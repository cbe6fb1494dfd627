"""Tables laid out as text, before any renderer: lines, panels, headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, log10

from shiq_bench.records.metric import Metric
from shiq_bench.report.blocks import DROP, Block, Cell, Column, Key, Place, cell_n
from shiq_bench.stats.intervals import Estimate

_ARROW = {"higher": " ↑", "lower": " ↓", "neither": ""}
EMPTY = "–"


@dataclass(frozen=True)
class Line:
    """A row: its label, one text a column, and which are winners or differences."""

    label: str
    texts: tuple[str, ...]
    bold: tuple[bool, ...]
    difference: bool = False


@dataclass(frozen=True)
class Panel:
    """A table that fits: header (split, policy, state of the runs) a column, and rows."""

    title: str
    headers: tuple[tuple[str, str, str], ...]
    lines: tuple[Line, ...]

    @property
    def heads(self) -> list[list[str]]:
        """Header lines of the terminal: a split once, then the label's words and the state's parts."""
        splits = len({h[0] for h in self.headers if h[0]}) > 1
        first = [[h[0]] if splits else [] for h in self.headers]
        labels = [h[1].split(" ") for h in self.headers]
        states = [h[2].split(", ") if h[2] else [] for h in self.headers]
        words, parts = max(map(len, labels)), max(map(len, states))
        # A space and not nothing: the terminal would drop an empty line and shift the rest.
        return [
            [*(t or " " for t in f), *w, *[" "] * (words - len(w)), *s, *[" "] * (parts - len(s))]
            for f, w, s in zip(first, labels, states, strict=True)
        ]

    @property
    def breaks(self) -> list[int]:
        """Columns with which a further split begins; the terminal leaves a gap before them."""
        return [i for i, header in enumerate(self.headers) if header[0] and i]

    def columns(self, low: int, high: int) -> Panel:
        """The panel with these columns alone."""
        lines = (replace(x, texts=x.texts[low:high], bold=x.bold[low:high]) for x in self.lines)
        return Panel(self.title, self.headers[low:high], tuple(lines))

    @property
    def marked(self) -> bool:
        """Whether any cell is a winner, which takes a character in the terminal."""
        return any(any(line.bold) for line in self.lines)

    @property
    def width(self) -> int:
        """Characters it takes in the terminal."""
        label = max((len(line.label) for line in self.lines), default=0)
        columns = [
            max(len(t) for t in [*head, *(line.texts[i] for line in self.lines)]) for i, head in enumerate(self.heads)
        ]
        return label + sum(columns) + (2 + self.marked) * len(columns) + 2 * len(self.breaks)


@dataclass(frozen=True)
class Section:
    """Panels under one title, and the lines underneath."""

    title: str
    panels: tuple[Panel, ...]
    captions: tuple[str, ...]


def decimals_of(block: Block, metric: Metric) -> int:
    """:func:`decimals` for all that a block shows of a metric."""
    return decimals([c.estimate for k, c in block.cells.items() if k[3] == metric.name], metric)


def decimals(estimates: Sequence[Estimate], metric: Metric) -> int:
    """Decimals that give the widest interval two digits, or the largest mean three without one."""
    if metric.percent:
        return 1
    halves = [e.half for e in estimates if e.half]
    largest = max(halves or [abs(e.mean) for e in estimates if e.mean], default=0.0)
    return min(5, max(0, (1 if halves else 2) - floor(log10(largest)))) if largest else 1


def cell_text(cell: Cell | None, metric: Metric, decimals: int, signed: bool = False) -> str:
    """A cell as a table prints it."""
    return EMPTY if cell is None else estimate_text(cell.estimate, metric, decimals, signed)


def estimate_text(estimate: Estimate, metric: Metric, decimals: int, signed: bool = False) -> str:
    """``0.25 ± 0.04``, a share in percent; a dash where it is undefined."""
    if estimate.mean is None:
        return EMPTY
    scale = 100 if metric.percent else 1
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    mean = round(scale * estimate.mean, decimals) + 0.0
    text = f"{mean:+.{decimals}f}" if signed else f"{mean:.{decimals}f}"
    half = estimate.half
    return f"{text} ± {scale * half:.{decimals}f}" if half else text


def texts(block: Block, differences: bool = False) -> dict[Key, str]:
    """Every cell (or every difference to the reference) as all renderers write it: ``0.28 ± 0.18``, percent as such."""
    metrics = {m.name: (m, decimals_of(block, m)) for m in block.metrics}
    values = block.differences if differences else block.cells
    return {
        key: cell_text(cell, *metrics[key[3]], signed=differences)
        + (DROP if differences and key in block.drops else "")
        for key, cell in values.items()
    }


def metric_label(metric: Metric) -> str:
    """What it is, in which unit, and which way is better."""
    return f"{metric.title}{' (%)' if metric.percent else ''}{_ARROW[metric.better]}"


def _panel(block: Block, title: str, places: Sequence[Place], columns: Sequence[Column]) -> Panel:
    headers: list[tuple[str, str, str]] = []
    for split, _ in places:
        for i, column in enumerate(columns):
            headers.append((split if i == 0 else "", column.label, column.state))
        headers.append(("", "n", ""))
    lines = []
    for metric in block.metrics:
        for values, difference in ((block.cells, False), (block.differences, True)):
            row = [values.get((*place, c.label, metric.name)) for place in places for c in columns]
            if not any(row):
                continue
            decimals = decimals_of(block, metric)
            texts: list[str] = []
            bold: list[bool] = []
            for place in places:
                cells = [values.get((*place, c.label, metric.name)) for c in columns]
                counts = Counter(cell_n(c) for c in cells if c is not None)
                # What most columns have, the larger on a tie; trials differ everywhere, so their range.
                usual = max(counts, key=lambda n: (counts[n], float(n.split("-")[-1] or 0)), default="")
                trials = metric.name in block.rates and not difference
                if trials and len(counts) > 1:
                    every = [n for c in cells if c is not None for n in c.n]
                    usual = f"{min(every):g}-{max(every):g}"
                for column, cell in zip(columns, cells, strict=True):
                    text = cell_text(cell, metric, decimals, signed=difference)
                    if difference and (*place, column.label, metric.name) in block.drops:
                        text += DROP
                    short = cell is not None and column.done and len(cell.n) < len(column.done)
                    if cell is not None and short:
                        text += f" ({len(cell.n)} of {len(column.done)} seeds)"
                    elif cell is not None and cell_n(cell) != usual and not trials:
                        text += f" ({cell_n(cell)})"
                    texts.append("" if difference and column.label == "reference" else text)
                    bold.append(not difference and (*place, column.label, metric.name) in block.best)
                texts.append(usual)
                bold.append(False)
            label = "  minus reference" if difference else metric_label(metric)
            lines.append(Line(label, tuple(texts), tuple(bold), difference))
    return Panel(title, tuple(headers), tuple(lines))


def panels(block: Block, width: int | None) -> list[Panel]:
    """One panel a mode with the splits side by side; where that is too wide, one a split and mode;
    where that still is, the policies in several, the reference in the first."""
    beside = []
    for mode in dict.fromkeys(mode for _, mode in block.places):
        places = [p for p in block.places if p[1] == mode]
        # Heads name the splits only to tell them apart.
        title = place_title(block, places[0]) if len(places) == 1 else mode_title(block, mode)
        beside.append(_panel(block, title, places, block.columns))
    if width is None or all(p.width <= width for p in beside):
        return beside
    panels = []
    for place in block.places:
        title = place_title(block, place)
        columns = list(block.columns)
        while columns:
            take = len(columns)
            while take > 1 and _panel(block, title, [place], columns[:take]).width > width:
                take -= 1
            panels.append(_panel(block, title, [place], columns[:take]))
            columns = columns[take:]
    return panels


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
