"""Numbers as text: the one way a mean, an interval, a p or a count is written in whatever is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor, isfinite, log10

from shiq_bench.records.record import Metric
from shiq_bench.stats.intervals import Estimate

#: Where there is no number.
EMPTY = "–"

#: Numbers at or under this are rounding, and are printed as such.
ROUNDING = 1e-12

_ARROW = {"higher": " ↑", "lower": " ↓", "neither": ""}


def number(x: float | None) -> str:
    """Two or three digits: ``0.0123``, ``1.2e-05``."""
    if x is None:
        return EMPTY
    if x == 0 or 1e-3 <= abs(x) < 1e4:
        return f"{x:.3g}" if abs(x) < 100 else f"{x:.0f}"
    return f"{x:.1e}"


def interval(e: Estimate) -> str:
    """``0.012 [0.010, 0.014]``; the mean alone where all values are alike, which bounds nothing."""
    return f"{number(e.mean)} [{number(e.low)}, {number(e.high)}]" if e.half else number(e.mean)


def p_value(p: float | None) -> str:
    """``0.031``, ``<0.001``."""
    return EMPTY if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def digits(x: float | None) -> float | None:
    """Ten significant digits, as files of numbers have; None for what is not finite."""
    return None if x is None or not isfinite(x) else float(f"{x:.10g}")


def span(counts: Iterable[int]) -> str:
    """``6``, or ``6 to 8``: how few and how many."""
    found = {*counts}
    return " to ".join(str(n) for n in sorted({min(found), max(found)})) if found else EMPTY


def count(n: Sequence[float]) -> str:
    """``160`` when every seed has as many, else ``150-160``."""
    return "-".join(f"{x:g}" for x in sorted({min(n), max(n)})) if n else ""


def decimals(estimates: Sequence[Estimate], metric: Metric) -> int:
    """Decimals that give the widest interval two digits, or the largest mean three without one."""
    if metric.percent:
        return 1
    halves = [e.half for e in estimates if e.half]
    largest = max(halves or [abs(e.mean) for e in estimates if e.mean], default=0.0)
    return min(5, max(0, (1 if halves else 2) - floor(log10(largest)))) if largest else 1


def plus_minus(estimate: Estimate, metric: Metric, decimals: int, signed: bool = False) -> str:
    """``0.25 ± 0.04``, a share in percent; a dash where it is undefined."""
    if estimate.mean is None:
        return EMPTY
    scale = 100 if metric.percent else 1
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    mean = round(scale * estimate.mean, decimals) + 0.0
    text = f"{mean:+.{decimals}f}" if signed else f"{mean:.{decimals}f}"
    return f"{text} ± {scale * estimate.half:.{decimals}f}" if estimate.half else text


def metric_label(metric: Metric) -> str:
    """What it is, in which unit, and which way is better."""
    return f"{metric.title}{' (%)' if metric.percent else ''}{_ARROW[metric.better]}"


def listed(names: Sequence[str]) -> str:
    """``A, B and C``, or ``none``."""
    if len(names) < 2:
        return names[0] if names else "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"
