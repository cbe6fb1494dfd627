"""One metric over another as something varies: points, fronts, and who is better at equal x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from shiq_bench.report.document import Table, simple_table
from shiq_bench.report.final_performance import headers_beside, reference_row, values_beside
from shiq_bench.report.format import EMPTY, interval, listed, number, p_value
from shiq_bench.report.prose import lead_of, notes_of, problems_of, too_few, wins_where
from shiq_bench.report.study_results import (
    Findings,
    PairwiseTest,
    StudyResults,
    judged,
    measured,
    start,
)
from shiq_bench.stats.intervals import Estimate, mean_ci_t


@dataclass(frozen=True)
class Point:
    """Where a method ends at one value of what varies: the mean over seeds on both axes."""

    value: float
    x: Estimate
    y: Estimate


def front(sheet: StudyResults, panel: str, method: str) -> list[Point]:
    """A method's points in the order of what varies, over the units that have both numbers."""
    out = []
    across = measured(sheet, panel, method, sheet.x_metric)
    for value, ys in measured(sheet, panel, method).items():
        xs = across.get(value, {})
        both = sorted(xs.keys() & ys.keys())
        if both:
            x, y = mean_ci_t(xs[u] for u in both), mean_ci_t(ys[u] for u in both)
            out.append(Point(value or 0.0, x, y))
    return out


def origin(sheet: StudyResults, panel: str) -> tuple[float, float] | None:
    """The reference on both axes; what is not measured of it is a distance to itself, and 0."""
    y = start(sheet, panel).mean
    return None if y is None else (start(sheet, panel, sheet.x_metric).mean or 0.0, y)


def gaps(sheet: StudyResults, panel: str, one: str, other: str) -> dict[str, tuple[float, float, float]]:
    """Unit -> by how much one front is better than another at equal x, and the shared range of x, low and high.

    A unit's front is the polyline through its runs in the order of x, and the difference its mean
    over the range that both cover. Units whose ranges do not meet have none.
    """
    a, b = _polylines(sheet, panel, one), _polylines(sheet, panel, other)
    out = {}
    for unit in sorted(a.keys() & b.keys()):
        (xa, ya), (xb, yb) = a[unit], b[unit]
        low, high = max(xa[0], xb[0]), min(xa[-1], xb[-1])
        if low < high:
            # Both are linear between these, so that the trapezoid rule is exact.
            knots = np.unique(np.clip(np.concatenate([xa, xb]), low, high))
            better = sheet.sign * (np.interp(knots, xb, yb) - np.interp(knots, xa, ya))
            out[unit] = (float(np.trapezoid(better, knots)) / (high - low), float(low), float(high))
    return out


def _polylines(sheet: StudyResults, panel: str, method: str) -> dict[str, np.ndarray]:
    """Unit -> x and y of its runs, by x. ``[2, points]``"""
    across = measured(sheet, panel, method, sheet.x_metric)
    found: dict[str, list[tuple[float, float]]] = {}
    for value, ys in measured(sheet, panel, method).items():
        for unit, y in ys.items():
            if unit in across.get(value, {}):
                found.setdefault(unit, []).append((across[value][unit], y))
    return {unit: np.array(sorted(points)).T for unit, points in found.items()}


def front_findings(sheet: StudyResults) -> Findings:
    """What is said of a study whose kind is ``front``."""
    claims, points, pairs = [], [], []
    for panel in sheet.panels:
        compared = {pair: gaps(sheet, panel, *pair) for pair in combinations(sheet.methods, 2)}
        found = judged([(b, None, {unit: g[0] for unit, g in d.items()}) for (_, b), d in compared.items()])
        duelled = dict(zip(compared, found, strict=True))
        claims.append(_front_claim(sheet, panel, duelled))
        points.append(_points_table(sheet, panel))
        pairs.append(_pairs_table(sheet, panel, duelled, [list(d.values()) for d in compared.values()]))
    tables = tuple(table for both in zip(points, pairs, strict=True) for table in both if table.rows)
    lead = (
        f"{lead_of(replace(sheet, focus=''), 'points and bars, ')} Labels: {sheet.x_label}. Each {sheet.unit[:-1]}'s "
        f"front is interpolated linearly between its runs; two are compared by their mean difference at equal "
        f"{sheet.x_metric_label} over the range that both cover. One is better where {wins_where('pairs')}."
    )
    return Findings(lead, tuple(claims), tables, problems_of(sheet), notes_of(sheet), tables)


def _front_claim(sheet: StudyResults, panel: str, duelled: Mapping[tuple[str, str], PairwiseTest]) -> str:
    ends = {(m, p.value): p for m in sheet.methods for p in front(sheet, panel, m)}
    if not ends:
        return f"{panel}: no finished run."
    best = min(sheet.sign * (p.y.mean or 0.0) for p in ends.values())
    word = "lowest" if sheet.better == "lower" else "highest"
    first = [
        f"{method} at {sheet.x_label} {value:g} ({interval(p.y)}, {sheet.x_metric_label} {number(p.x.mean)})"
        for (method, value), p in ends.items()
        if sheet.sign * (p.y.mean or 0.0) == best
    ]
    text = f"{panel}: {word} mean: {listed(first)}."
    if not duelled:
        return text
    won = [
        f"{a if duel.verdict == 'wins' else b} than {b if duel.verdict == 'wins' else a} "
        f"(by {number(abs(duel.difference.mean or 0.0))})"
        for (a, b), duel in duelled.items()
        if duel.verdict != "undecided"
    ]
    met = {pair: duel for pair, duel in duelled.items() if duel.difference.units}
    undecided = [f"{a} against {b}" for (a, b), duel in met.items() if duel.verdict == "undecided"]
    apart = [f"{a} and {b}" for a, b in duelled if (a, b) not in met]
    text += f" Better at equal {sheet.x_metric_label}: {listed(won)}"
    text += f"; undecided: {', '.join(undecided)}." if undecided else "."
    text += f" Not compared, for no {sheet.unit[:-1]} has both in one range: {', '.join(apart)}." if apart else ""
    return text + too_few(sheet, [*met.values()])


def _points_table(sheet: StudyResults, panel: str) -> Table:
    headers = ("method", sheet.x_label, sheet.x_metric_label, sheet.label, *headers_beside(sheet), "n")
    rows = []
    for method in sheet.methods:
        there = {p.value: p for p in front(sheet, panel, method)}
        for x in dict.fromkeys(c.x or 0.0 for c in sheet.of(panel, method)):
            point, beside = there.get(x), values_beside(sheet, panel, method, x)
            shown = (EMPTY, EMPTY, *beside, "0")
            if point is not None:
                shown = (interval(point.x), interval(point.y), *beside, str(point.y.units))
            rows.append((method, f"{x:g}", *shown))
    if (begun := origin(sheet, panel)) is not None:
        rows.append(reference_row(sheet, panel, len(headers), "", *map(number, begun)))
    return simple_table(panel, headers, rows)


def _pairs_table(
    sheet: StudyResults,
    panel: str,
    duelled: Mapping[tuple[str, str], PairwiseTest],
    ranges: Sequence[Sequence[tuple[float, float, float]]],
) -> Table:
    rows = []
    for ((a, b), duel), shared in zip(duelled.items(), ranges, strict=True):
        low, high = (mean_ci_t(g[i] for g in shared).mean for i in (1, 2))
        where = f"{number(low)} to {number(high)}" if shared else EMPTY
        ahead = f"{sum(g[0] > 0 for g in shared)} of {len(shared)}"
        rows.append((f"{a} against {b}", where, interval(duel.difference), ahead, p_value(duel.p)))
    headers = ("at equal " + sheet.x_metric_label, "range (mean)", "the first is better by", "ahead on", "p")
    return simple_table(f"{panel}: fronts in pairs", headers, rows)
