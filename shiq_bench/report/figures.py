"""A study's records to files: PNG and PDF with the findings under the axes, a page of Markdown, the numbers as CSV.

Drawn from records alone, in one style: Okabe and Ito's colours, a line style and a marker for every
method, bands that are 95% intervals. The same records give the same bytes: no file holds a date.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiq_bench.records.escaping import in_csv, in_line, in_markdown
from shiq_bench.records.files import write_atomic
from shiq_bench.report.findings import findings
from shiq_bench.report.multi_task import PROFILES, improvements, profiles
from shiq_bench.report.reward_kl_frontier import front, origin
from shiq_bench.report.study_results import Findings, Grid, StudyResults, View, series, start
from shiq_bench.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import RenderableType

#: Okabe and Ito (2008) without yellow, which is lost on white, and with a grey. Black is the focus.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
LINES = ("--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 1)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")

#: Inches of one pair of axes, and of the margins around each.
AXES = (4.6, 3.0)
LEFT, RIGHT, ABOVE, BELOW = 0.75, 0.2, 0.35, 0.5
#: Inches of the title, and between the text and the edge.
TITLE, EDGE = 0.32, 0.15
#: Points of text under the axes, and the inches that a line of it and of a legend take.
TEXT, LINE, LEGEND = 8.0, 0.146, 0.2
DPI = 150

RC: Any = {
    "font.family": "DejaVu Sans", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "lines.linewidth": 1.4,
    "lines.markersize": 4.0, "legend.frameon": False, "legend.fontsize": 8.5,
    # Hinted, a line would be as wide as its pixels say, and not as it was measured.
    "pdf.fonttype": 42, "text.hinting": "none",
}  # fmt: skip

#: In a page: what follows is not repeated in the index.
NUMBERS = "<!-- numbers -->"
INDEX = "theory.md"


@dataclass(frozen=True)
class Look:
    """How one method is drawn, in every picture of a study."""

    colour: str
    line: Any
    marker: str
    width: float


def looks(sheet: StudyResults) -> dict[str, Look]:
    """Method -> look; no two are alike, in colour or without."""
    others = [m for m in sheet.methods if m != sheet.focus]
    out = {sheet.focus: Look("#000000", "-", "o", 2.8)} if sheet.focus else {}
    for i, method in enumerate(others):
        markers = MARKERS[1:]
        out[method] = Look(COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], markers[i % len(markers)], 1.4)
    return out


def files_of(sheet: StudyResults) -> dict[str, bytes]:
    """Everything about one study by its suffix: ``png`` and ``pdf`` (where it is drawn), ``md`` and ``csv``."""
    said = findings(sheet)
    files: dict[str, bytes] = {}
    if sheet.kind != "table":
        files |= draw(sheet, said)
    files["md"] = page(sheet, said).encode()
    files["csv"] = numbers(sheet).encode()
    return files


def write(sheet: StudyResults, out: Path) -> list[Path]:
    """Write :func:`files_of` a study, under its name.

    Raises:
        UserError: the folder cannot be written.
    """
    files = {out / f"{sheet.name}.{suffix}": data for suffix, data in files_of(sheet).items()}
    for path, data in files.items():
        write_atomic(path, data)
    return [*files]


# --- the picture ---------------------------------------------------------------------------------


def draw(sheet: StudyResults, said: Findings) -> dict[str, bytes]:
    """The picture as ``png`` and ``pdf``, what it shows written underneath."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        layout = _Layout.of(sheet, said)
        figure = Figure(figsize=(layout.width, layout.height))
        canvas = FigureCanvasAgg(figure)
        layout.text(figure, 0.12, _literal(sheet.title), fontsize=12, fontweight="bold")
        handles: dict[str, Any] = {}
        draw_view = {"front": _front_axes, "across": _across_axes}.get(sheet.kind, _axes)
        for i, view in enumerate(sheet.views):
            handles |= draw_view(sheet, view, figure.add_axes(layout.box(i)))
        order = [m for m in (*sheet.methods, _REFERENCE) if m in handles]
        below = TITLE + layout.panels
        if order:
            figure.legend(
                [handles[m] for m in order], [_literal(m) for m in order], loc="upper center",
                bbox_to_anchor=(0.5, 1 - below / layout.height), ncols=layout.across, handlelength=3.4,
                borderaxespad=0.0, columnspacing=1.6,
            )  # fmt: skip
        below += layout.legend
        layout.text(figure, below, "\n".join(layout.sentences), fontsize=TEXT)
        below += (len(layout.sentences) + 1) * LINE
        layout.text(figure, below, "\n".join(layout.tables), fontsize=TEXT, family="DejaVu Sans Mono")
        png, pdf = io.BytesIO(), io.BytesIO()
        canvas.print_figure(png, format="png", dpi=DPI, metadata={"Software": None})
        canvas.print_figure(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


_REFERENCE = "reference"


@dataclass(frozen=True)
class _Layout:
    """Where things stand on the figure, in inches from its top: title, axes, legend, sentences, tables."""

    columns: int
    rows: int
    width: float
    across: int
    legend: float
    sentences: tuple[str, ...]
    tables: tuple[str, ...]

    @classmethod
    def of(cls, sheet: StudyResults, said: Findings) -> _Layout:
        columns = min(2, len(sheet.views))
        tables = [_literal(line) for grid in said.embedded for line in (*aligned(grid), "")]
        width = columns * (AXES[0] + LEFT + RIGHT) if columns > 1 else 1.5 * AXES[0] + LEFT + RIGHT
        width = max(width, 2 * EDGE + max((_inches(line, mono=True) for line in tables), default=0.0))
        names = [*sheet.methods, _REFERENCE]
        across = max(1, int(width / (0.75 + max(map(_inches, names)))))
        sentences = [
            line
            for part in (said.lead, *(f"• {line}" for line in (*said.claims, *said.problems)))
            for line in _wrapped(_literal(part), width - 2 * EDGE)
        ]
        legend = -(-len(names) // across) * LEGEND + 0.15
        return cls(columns, -(-len(sheet.views) // columns), width, across, legend, tuple(sentences), tuple(tables))

    @property
    def panels(self) -> float:
        return self.rows * (AXES[1] + ABOVE + BELOW)

    @property
    def height(self) -> float:
        lines = len(self.sentences) + bool(self.tables) + len(self.tables)
        return TITLE + self.panels + self.legend + lines * LINE + EDGE

    def box(self, i: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of the i-th axes, as shares of the figure."""
        row, column = divmod(i, self.columns)
        wide = (self.width - self.columns * (LEFT + RIGHT)) / self.columns
        left = LEFT + column * (wide + LEFT + RIGHT)
        bottom = self.height - TITLE - (row + 1) * (AXES[1] + ABOVE + BELOW) + BELOW
        return left / self.width, bottom / self.height, wide / self.width, AXES[1] / self.height

    def text(self, figure: Figure, top: float, text: str, **style: Any) -> None:
        spacing = LINE * 72 / TEXT / 1.1  # a line of matplotlib's is 1.1 times its size
        figure.text(EDGE / self.width, 1 - top / self.height, text, va="top", linespacing=spacing, **style)


def _inches(text: str, mono: bool = False) -> float:
    """How wide a line under the axes is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans Mono" if mono else "DejaVu Sans", size=TEXT)
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / 72


def _wrapped(text: str, inches: float) -> list[str]:
    """Lines that fit, all but the first one indented."""
    lines: list[str] = []
    now, width, space, indent = "", 0.0, _inches("a b") - _inches("ab"), "   "
    for word in text.split(" "):
        wide = _inches(word)
        if now.strip() and width + space + wide > inches:
            lines.append(now)
            now, width = indent + word, len(indent) * space + wide
        else:
            now, width = (f"{now} {word}", width + space + wide) if now else (word, wide)
    return [*lines, now]


def _literal(text: str) -> str:
    """A dollar sign is no formula."""
    return text.replace("$", r"\$")


def _axes(sheet: StudyResults, view: View, axes: Axes) -> dict[str, Any]:
    """Draw one view; returns what the legend shows."""
    axes.set_title(_literal(view.title))
    axes.set_xlabel("updates" if sheet.kind == "curves" else _literal(sheet.x_label))
    axes.set_ylabel(_literal(sheet.label))
    lines = {(p, m): found for p in view.panels for m in view.methods if (found := series(sheet, p, m))}
    begun = {p: e for p in view.panels if (e := start(sheet, p)).mean is not None}
    bottom, top = _limits(sheet, [e for line in lines.values() for _, e in line], list(begun.values()))
    axes.set_ylim(bottom, top)
    for axis, is_log in ((axes.xaxis, sheet.log_x), (axes.yaxis, sheet.log_y)):
        if is_log:
            _logarithmic(axis, top / bottom if axis is axes.yaxis else inf)
    values = sorted({x for line in lines.values() for x, _ in line})
    if not sheet.log_x and len(values) <= 12:
        axes.set_xticks(values, [f"{x:g}" for x in values])
    handles: dict[str, Any] = {}
    for estimate in begun.values():
        handles[_REFERENCE] = axes.axhline(estimate.mean or 0.0, color="#999999", linewidth=1.0, linestyle=":")
    styles = looks(sheet)
    for i, ((_, method), line) in enumerate(lines.items()):
        # Beneath the others, and wider: a line that equals it is seen on top of it.
        look, front = styles[method], 3 if method == sheet.focus else 4
        x = [x for x, _ in line]
        mean = [e.mean or 0.0 for _, e in line]
        low = [e.mean if e.low is None else e.low for _, e in line]
        high = [e.mean if e.high is None else e.high for _, e in line]
        axes.fill_between(
            x, [max(v or 0.0, bottom) for v in low], [v or 0.0 for v in high], color=look.colour, alpha=0.13,
            linewidth=0, zorder=2,
        )  # fmt: skip
        every = max(1, len(x) // 7)
        handles[method] = axes.plot(
            x, mean, color=look.colour, linestyle=look.line, marker=look.marker, linewidth=look.width,
            markevery=(i % every, every), zorder=front,
        )[0]  # fmt: skip
    return handles


def _front_axes(sheet: StudyResults, view: View, axes: Axes) -> dict[str, Any]:
    """Draw the fronts of one view, every point with its intervals and its value; returns what the legend shows."""
    axes.set_title(_literal(view.title))
    axes.set_xlabel(_literal(sheet.x_metric_label))
    axes.set_ylabel(_literal(sheet.label))
    handles: dict[str, Any] = {}
    styles = looks(sheet)
    for panel in view.panels:
        if (begun := origin(sheet, panel)) is not None:
            handles[_REFERENCE] = axes.plot(
                *begun, color="#999999", linestyle="", marker="*", markersize=9, zorder=5
            )[0]  # fmt: skip
        for method in view.methods:
            look, points = styles[method], front(sheet, panel, method)
            if not points:
                continue
            x, y = [p.x.mean or 0.0 for p in points], [p.y.mean or 0.0 for p in points]
            wide, tall = [p.x.half or 0.0 for p in points], [p.y.half or 0.0 for p in points]
            axes.errorbar(x, y, tall, wide, fmt="none", ecolor=look.colour, elinewidth=0.8, alpha=0.5)
            handles[method] = axes.plot(
                x, y, color=look.colour, linestyle=look.line, marker=look.marker, linewidth=look.width, zorder=4
            )[0]
            for point, at in zip(points, zip(x, y, strict=True), strict=True):
                axes.annotate(
                    f"{point.value:g}", at, xytext=(4, -8), textcoords="offset points", fontsize=6.5,
                    color=look.colour, zorder=6,
                )  # fmt: skip
    drawn = [point.x.mean or 0.0 for p in view.panels for m in view.methods for point in front(sheet, p, m)]
    if axes.get_xlim()[0] < 0 <= min(drawn, default=0.0):
        axes.set_xlim(left=-0.04 * axes.get_xlim()[1])  # an interval may reach where no KL can be
    return handles


def _across_axes(sheet: StudyResults, view: View, axes: Axes) -> dict[str, Any]:
    """Draw profiles with their bands, or the probabilities of improvement; returns what the legend shows."""
    axes.set_title(_literal(view.title))
    styles, handles = looks(sheet), {}
    if view.title == PROFILES:
        axes.set_xlabel("normalised score")
        axes.set_ylabel("share of runs above it")
        axes.set_ylim(-0.02, 1.02)
        for method, profile in profiles(sheet).items():
            look, x = styles[method], profile.thresholds
            if profile.low is not None and profile.high is not None:
                axes.fill_between(
                    x, profile.low, profile.high, color=look.colour, alpha=0.13, linewidth=0, zorder=2
                )  # fmt: skip
            handles[method] = axes.plot(
                x, profile.share, color=look.colour, linestyle=look.line, marker=look.marker, linewidth=look.width,
                markevery=max(1, len(x) // 7), zorder=4,
            )[0]  # fmt: skip
        return handles
    found = improvements(sheet)
    axes.set_xlabel(_literal(f"P({sheet.focus} is better)"))
    axes.set_xlim(-0.02, 1.02)
    axes.set_yticks([])
    axes.set_ylim(0.6 - len(found), 0.7)
    axes.axvline(0.5, color="#999999", linewidth=1.0, linestyle=":")
    for i, (method, e) in enumerate(found.items()):
        mean = e.mean or 0.0
        low, high = (mean if v is None else v for v in (e.low, e.high))
        look = styles[method]
        axes.plot([low, high], [-i, -i], color=look.colour, linewidth=1.4, zorder=3)
        axes.text(0.0, 0.12 - i, _literal(method), fontsize=TEXT)
        axes.plot([mean], [-i], color=look.colour, marker=look.marker, linestyle="", zorder=4)
    return handles


def _logarithmic(axis: Any, ratio: float) -> None:
    """A logarithmic axis with plain numbers at the powers of ten, and between them where there are few of those."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 50 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x)))
    axis.set_minor_formatter(NullFormatter())


def _tick(x: float) -> str:
    return f"{x:g}" if 1e-3 <= x < 1e5 else f"$10^{{{round(log10(x))}}}$" if x > 0 else ""


def _limits(sheet: StudyResults, drawn: Sequence[Estimate], begun: Sequence[Estimate]) -> tuple[float, float]:
    """Of the means, with room; a band that goes lower is cut, since a logarithm has no zero."""
    means = [e.mean for e in (*drawn, *begun) if e.mean is not None]
    highs = [e.high for e in drawn if e.high is not None]
    if not means:
        return (0.1, 1.0) if sheet.log_y else (0.0, 1.0)
    top = max(*means, *highs) if highs else max(means)
    if not sheet.log_y:
        low = min(*means, *[e.low for e in drawn if e.low is not None], 0.0)
        return low, top + 0.05 * (top - low or 1.0)
    positive = [m for m in means if m > 0] or [1e-12]
    return max(min(positive), sheet.floor) / 1.6, max(top, min(positive)) * 1.6


def aligned(grid: Grid) -> list[str]:
    """A table in fixed-width text, its title first."""
    rows = [grid.headers, *grid.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(grid.headers))]
    texts = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [grid.title, *(t.rstrip() for t in texts)]


# --- text ----------------------------------------------------------------------------------------


def page(sheet: StudyResults, said: Findings) -> str:
    """The study in Markdown: question, picture, what it shows, numbers, what is missing."""
    out = [f"# {in_markdown(sheet.title)}", "", in_markdown(sheet.asks), ""]
    if sheet.kind == "table":
        out += [line for grid in said.grids for line in (*pipes(grid), "")]
    else:
        out += [f"![{in_markdown(sheet.title)}]({sheet.name}.png)", ""]
    out += [in_markdown(said.lead), "", *(f"- {in_markdown(line)}" for line in (*said.claims, *said.problems)), ""]
    embedded = [line for grid in said.embedded for line in (*pipes(grid), "")]
    notes = [f"- {in_markdown(note)}" for note in said.notes]
    if sheet.kind == "table":
        out += [*notes, "", NUMBERS, ""]
    else:
        rest = [line for grid in said.grids if grid not in said.embedded for line in (*pipes(grid), "")]
        out += [*embedded, *notes, "", NUMBERS, "", *rest]
    files = " and ".join(
        f"[{sheet.name}.{s}]({sheet.name}.{s})" for s in ("csv", "pdf")[: 1 if sheet.kind == "table" else 2]
    )
    return "\n".join([*out, f"Every number with its run: {files}."]) + "\n"


def pipes(grid: Grid) -> list[str]:
    """A Markdown table, its title in bold above."""
    rule = "|:--|" + "--:|" * (len(grid.headers) - 1)
    rows = [f"| {' | '.join(in_markdown(c) for c in row)} |" for row in (grid.headers, *grid.rows)]
    return [f"**{in_markdown(grid.title)}**", "", rows[0], rule, *rows[1:]]


def index(out: Path, names: Sequence[str]) -> Path:
    """Write ``theory.md``: the pages of a folder one after the other, without their tables of numbers."""
    parts = ["# The theory, made visible", ""]
    for name in names:
        path = out / f"{name}.md"
        if path.is_file():
            text = path.read_text(encoding="utf-8").split(NUMBERS)[0].rstrip()
            parts += [f"#{text}", "", f"[Numbers]({name}.md)", ""]
    write_atomic(out / INDEX, ("\n".join(parts).rstrip() + "\n").encode())
    return out / INDEX


def numbers(sheet: StudyResults) -> str:
    """CSV, one row a point: what is drawn or tabled, and the run it comes from (of language models, one a seed)."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["panel", "method", "x", "metric", "mean", "low", "high", "n", "run_id"])
    metrics = [sheet.metric, *([sheet.x_metric] if sheet.kind == "front" else [])]
    for panel, method, metric in product(sheet.panels, sheet.methods, metrics):
        runs: dict[float | None, list[str]] = {}
        for cell in sheet.of(panel, method):
            if cell.record is not None:
                runs.setdefault(cell.x, []).append(cell.record.run_id)
        for x, e in series(sheet, panel, method, metric):
            run = " ".join(runs.get(None if None in runs else x, []))
            digits = map(_digits, (e.mean, e.low, e.high))
            rows.writerow([in_csv(panel), in_csv(method), f"{x:g}", in_csv(metric), *digits, e.units, in_csv(run)])
    return file.getvalue()


def _digits(x: float | None) -> str:
    return "" if x is None else f"{x:.10g}"


def terminal(sheet: StudyResults) -> RenderableType:
    """For a rich console: the tables of a study that is a table, and what it shows."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    said = findings(sheet)
    parts: list[RenderableType] = [Text(in_line(sheet.title), style="bold cyan")]
    for grid in said.grids if sheet.kind == "table" else said.embedded:
        table = Table(
            title=Text(in_line(grid.title), style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
            pad_edge=False, padding=(0, 1, 0, 0), header_style="bold",
        )  # fmt: skip
        for i, header in enumerate(grid.headers):
            table.add_column(Text(in_line(header)), justify="left" if i == 0 else "right", overflow="fold")
        for row in grid.rows:
            table.add_row(*(Text(in_line(c), style="bold red" if c.endswith(" !") else "") for c in row))
        parts += [table, Text("")]
    parts += [Text(in_line(said.lead), style="dim"), *(Text(in_line(line)) for line in (*said.claims, *said.problems))]
    return Group(*parts, *(Text(in_line(note), style="dim") for note in said.notes), Text(""))
