"""The picture of a study, as PNG and PDF: titles, axes and a legend; what it shows is written in the study's page.

Drawn in one style: Okabe and Ito's colours, a line style and a marker for every method, bands that are 95% intervals.
The same records give the same bytes: no file holds a date.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log10
from textwrap import fill
from typing import TYPE_CHECKING, Any

from shiq_bench.report.multi_task import PROFILES, improvements, profiles
from shiq_bench.report.reward_kl_frontier import front, origin
from shiq_bench.report.study_results import StudyResults, View, series, start
from shiq_bench.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito (2008) without yellow, which is lost on white, and with a grey. Black is the focus.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
LINES = ("--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 1)), "-")
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "*", "h")

#: Inches of one pair of axes with its labels, and of the title; of a line of the legend, its handles and a character.
AXES, TITLE = (5.2, 3.8), 0.4
LEGEND, HANDLE, CHARACTER = 0.2, 0.75, 0.075
DPI = 150

RC: Any = {
    "font.family": "DejaVu Sans", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "lines.linewidth": 1.4,
    "lines.markersize": 4.0, "legend.frameon": False, "legend.fontsize": 8.5, "pdf.fonttype": 42,
}  # fmt: skip

_REFERENCE = "reference"


@dataclass(frozen=True)
class Look:
    """How one method is drawn, in every picture of a study."""

    colour: str
    line: Any
    marker: str
    width: float


def looks(study: StudyResults) -> dict[str, Look]:
    """Method -> look; no two are alike, in colour or without."""
    others = [m for m in study.methods if m != study.focus]
    out = {study.focus: Look("#000000", "-", "o", 2.8)} if study.focus else {}
    for i, method in enumerate(others):
        out[method] = Look(COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)], 1.4)
    return out


def draw(study: StudyResults) -> dict[str, bytes]:
    """The picture as ``png`` and ``pdf``."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(study.views))
    rows, width = -(-len(study.views) // columns), AXES[0] * max(columns, 1.4)
    names = [*study.methods, _REFERENCE]
    across = max(1, int(width / (HANDLE + CHARACTER * max(map(len, names)))))
    height = TITLE + rows * AXES[1] + -(-len(names) // across) * LEGEND
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        figure = Figure(figsize=(width, height), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(_literal(fill(study.title, int(width * 8))), x=0.01, ha="left", fontsize=12, weight="bold")
        handles: dict[str, Any] = {}
        draw_view = {"front": _front_axes, "across": _across_axes}.get(study.kind, _axes)
        for i, view in enumerate(study.views, 1):
            axes = figure.add_subplot(rows, columns, i)
            axes.set_title(_literal(view.title))
            handles |= draw_view(study, view, axes)
        if order := [m for m in names if m in handles]:
            figure.legend(
                [handles[m] for m in order], [_literal(m) for m in order], loc="outside lower center", ncols=across,
                handlelength=3.4, columnspacing=1.6,
            )  # fmt: skip
        png, pdf = io.BytesIO(), io.BytesIO()
        canvas.print_figure(png, format="png", dpi=DPI, metadata={"Software": None})
        canvas.print_figure(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def _literal(text: str) -> str:
    """A dollar sign is no formula."""
    return text.replace("$", r"\$")


def _axes(study: StudyResults, view: View, axes: Axes) -> dict[str, Any]:
    """Draw one view; returns what the legend shows."""
    axes.set(xlabel="updates" if study.kind == "curves" else _literal(study.x_label), ylabel=_literal(study.label))
    lines = {(p, m): found for p in view.panels for m in view.methods if (found := series(study, p, m))}
    begun = {p: e for p in view.panels if (e := start(study, p)).mean is not None}
    bottom, top = _limits(study, [e for line in lines.values() for _, e in line], list(begun.values()))
    axes.set_ylim(bottom, top)
    for axis, is_log in ((axes.xaxis, study.log_x), (axes.yaxis, study.log_y)):
        if is_log:
            logarithmic(axis, top / bottom if axis is axes.yaxis else inf)
    values = sorted({x for line in lines.values() for x, _ in line})
    if not study.log_x and len(values) <= 12:
        axes.set_xticks(values, [f"{x:g}" for x in values])
    handles: dict[str, Any] = {}
    for estimate in begun.values():
        handles[_REFERENCE] = axes.axhline(estimate.mean or 0.0, color="#999999", linewidth=1.0, linestyle=":")
    styles = looks(study)
    for i, ((_, method), line) in enumerate(lines.items()):
        # Beneath the others, and wider: a line that equals it is seen on top of it.
        look, front = styles[method], 3 if method == study.focus else 4
        x, mean = [x for x, _ in line], [e.mean or 0.0 for _, e in line]
        low = [max(m if e.low is None else e.low, bottom) for (_, e), m in zip(line, mean, strict=True)]
        high = [m if e.high is None else e.high for (_, e), m in zip(line, mean, strict=True)]
        handles[method] = _line(axes, look, x, mean, (low, high), first=i, zorder=front)
    return handles


def _line(
    axes: Axes, look: Look, x: Sequence[float], y: Sequence[float], band: Any = None, *, first: int = 0, zorder: int = 4
) -> Any:
    """A method's line with about seven markers, from the ``first`` point on, over its band; returns its handle."""
    if band is not None:
        axes.fill_between(x, *band, color=look.colour, alpha=0.13, linewidth=0, zorder=2)
    every = max(1, len(x) // 7)
    return axes.plot(
        x, y, color=look.colour, linestyle=look.line, marker=look.marker, linewidth=look.width,
        markevery=(first % every, every), zorder=zorder,
    )[0]  # fmt: skip


def _front_axes(study: StudyResults, view: View, axes: Axes) -> dict[str, Any]:
    """Draw the fronts of one view, every point with its intervals and its value; returns what the legend shows."""
    axes.set(xlabel=_literal(study.x_metric_label), ylabel=_literal(study.label))
    handles: dict[str, Any] = {}
    styles = looks(study)
    for panel in view.panels:
        if (begun := origin(study, panel)) is not None:
            handles[_REFERENCE] = axes.plot(
                *begun, color="#999999", linestyle="", marker="*", markersize=9, zorder=5
            )[0]  # fmt: skip
        for method in view.methods:
            look, points = styles[method], front(study, panel, method)
            if not points:
                continue
            x, y = [p.x.mean or 0.0 for p in points], [p.y.mean or 0.0 for p in points]
            wide, tall = [p.x.half or 0.0 for p in points], [p.y.half or 0.0 for p in points]
            axes.errorbar(x, y, tall, wide, fmt="none", ecolor=look.colour, elinewidth=0.8, alpha=0.5)
            handles[method] = _line(axes, look, x, y)
            for point, at in zip(points, zip(x, y, strict=True), strict=True):
                axes.annotate(
                    f"{point.value:g}", at, xytext=(4, -8), textcoords="offset points", fontsize=6.5,
                    color=look.colour, zorder=6,
                )  # fmt: skip
    drawn = [point.x.mean or 0.0 for p in view.panels for m in view.methods for point in front(study, p, m)]
    if axes.get_xlim()[0] < 0 <= min(drawn, default=0.0):
        axes.set_xlim(left=-0.04 * axes.get_xlim()[1])  # an interval may reach where no KL can be
    return handles


def _across_axes(study: StudyResults, view: View, axes: Axes) -> dict[str, Any]:
    """Draw profiles with their bands, or the probabilities of improvement; returns what the legend shows."""
    styles, handles = looks(study), {}
    if view.title == PROFILES:
        axes.set(xlabel="normalised score", ylabel="share of runs above it", ylim=(-0.02, 1.02))
        for method, profile in profiles(study).items():
            band = None if profile.low is None else (profile.low, profile.high)
            handles[method] = _line(axes, styles[method], profile.thresholds, profile.share, band)
        return handles
    found = improvements(study)
    axes.set(
        xlabel=_literal(f"P({study.focus} is better)"), xlim=(-0.02, 1.02), yticks=[], ylim=(0.6 - len(found), 0.7)
    )
    axes.axvline(0.5, color="#999999", linewidth=1.0, linestyle=":")
    for i, (method, e) in enumerate(found.items()):
        mean = e.mean or 0.0
        low, high = (mean if v is None else v for v in (e.low, e.high))
        look = styles[method]
        axes.plot([low, high], [-i, -i], color=look.colour, linewidth=1.4, zorder=3)
        axes.text(0.0, 0.12 - i, _literal(method), fontsize=8.0)
        axes.plot([mean], [-i], color=look.colour, marker=look.marker, linestyle="", zorder=4)
    return handles


def logarithmic(axis: Any, ratio: float) -> None:
    """Make an axis logarithmic, with plain numbers at the powers of ten, and between them where it spans few of those.

    Args:
        ratio: of its ends.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 50 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(_tick))
    axis.set_minor_formatter(NullFormatter())


def _tick(x: float, _: int | None) -> str:
    return f"{x:g}" if 1e-3 <= x < 1e5 else f"$10^{{{round(log10(x))}}}$" if x > 0 else ""


def _limits(study: StudyResults, drawn: Sequence[Estimate], begun: Sequence[Estimate]) -> tuple[float, float]:
    """Of the means, with room; a band that goes lower is cut, since a logarithm has no zero."""
    means = [e.mean for e in (*drawn, *begun) if e.mean is not None]
    highs = [e.high for e in drawn if e.high is not None]
    if not means:
        return (0.1, 1.0) if study.log_y else (0.0, 1.0)
    top = max(*means, *highs) if highs else max(means)
    if not study.log_y:
        low = min(*means, *[e.low for e in drawn if e.low is not None], 0.0)
        return low, top + 0.05 * (top - low or 1.0)
    positive = [m for m in means if m > 0] or [1e-12]
    return max(min(positive), study.floor) / 1.6, max(top, min(positive)) * 1.6
