"""One metric over another as something varies: points, fronts, and who is better at equal x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from shiq_bench.report.document import Table, simple_table
from shiq_bench.report.final_performance import headers_beside, reference_row, values_beside
from shiq_bench.report.format import EMPTY, interval, listed, number, p_value
from shiq_bench.report.study_results import (
    Findings,
    PairwiseTest,
    StudyResults,
    lead_of,
    measured,
    paired_tests,
    start,
    too_few,
    wins_where,
)
from shiq_bench.stats.intervals import Estimate, mean_ci_t

Pair = tuple[str, str]
Gaps = dict[str, tuple[float, float, float]]
Tested = Mapping[Pair, PairwiseTest]


@dataclass(frozen=True)
class Point:
    """Where a method ends at one value of what varies: the mean over seeds on both axes."""

    value: float
    x: Estimate
    y: Estimate


def front(study: StudyResults, panel: str, method: str) -> list[Point]:
    """A method's points in the order of what varies, over the units that have both numbers."""
    return [
        Point(value or 0.0, *map(mean_ci_t, zip(*ends.values(), strict=True)))
        for value, ends in _ends(study, panel, method).items()
        if ends
    ]


def _ends(study: StudyResults, panel: str, method: str) -> dict[float | None, dict[str, tuple[float, float]]]:
    """What varies -> unit -> where it ends on both axes, of the units that have both numbers."""
    across = measured(study, panel, method, study.x_metric)
    return {
        value: {unit: (across[value][unit], y) for unit, y in sorted(ys.items()) if unit in across.get(value, {})}
        for value, ys in measured(study, panel, method).items()
    }


def origin(study: StudyResults, panel: str) -> tuple[float, float] | None:
    """The reference on both axes; what is not measured of it is a distance to itself, and 0."""
    y = start(study, panel).mean
    return None if y is None else (start(study, panel, study.x_metric).mean or 0.0, y)


def gaps(study: StudyResults, panel: str, one: str, other: str) -> Gaps:
    """Unit -> by how much one front is better than another at equal x, and the shared range of x, low and high.

    A unit's front is the polyline through its runs in the order of x, and the difference its mean
    over the range that both cover. Units whose ranges do not meet have none.
    """
    a, b = _polylines(study, panel, one), _polylines(study, panel, other)
    out: Gaps = {}
    for unit in sorted(a.keys() & b.keys()):
        (xa, ya), (xb, yb) = a[unit], b[unit]
        low, high = max(xa[0], xb[0]), min(xa[-1], xb[-1])
        if low < high:
            # Both are linear between these, so that the trapezoid rule is exact.
            knots = np.unique(np.clip(np.concatenate([xa, xb]), low, high))
            better = study.sign * (np.interp(knots, xb, yb) - np.interp(knots, xa, ya))
            out[unit] = (float(np.trapezoid(better, knots)) / (high - low), float(low), float(high))
    return out


def _polylines(study: StudyResults, panel: str, method: str) -> dict[str, np.ndarray]:
    """Unit -> x and y of its runs, by x. ``[2, points]``"""
    found: dict[str, list[tuple[float, float]]] = {}
    for ends in _ends(study, panel, method).values():
        for unit, point in ends.items():
            found.setdefault(unit, []).append(point)
    return {unit: np.array(sorted(points)).T for unit, points in found.items()}


def front_findings(study: StudyResults) -> Findings:
    """What is said of a study whose kind is ``front``."""
    claims, points, pairs = [], [], []
    for panel in study.panels:
        compared = {pair: gaps(study, panel, *pair) for pair in combinations(study.methods, 2)}
        found = paired_tests([(b, None, {unit: g[0] for unit, g in d.items()}) for (_, b), d in compared.items()])
        tested = dict(zip(compared, found, strict=True))
        claims.append(_front_claim(study, panel, tested))
        points.append(_points_table(study, panel))
        pairs.append(_pairs_table(study, panel, compared, tested))
    tables = tuple(table for both in zip(points, pairs, strict=True) for table in both if table.rows)
    lead = (
        f"{lead_of(replace(study, focus=''), 'points and bars, ')} Labels: {study.x_label}. Each {study.unit[:-1]}'s "
        f"front is interpolated linearly between its runs; two are compared by their mean difference at equal "
        f"{study.x_metric_label} over the range that both cover. One is better where {wins_where('pairs')}."
    )
    return Findings.of(study, lead, claims, tables, tables)


def _front_claim(study: StudyResults, panel: str, tested: Tested) -> str:
    ends = {(m, p.value): p for m in study.methods for p in front(study, panel, m)}
    if not ends:
        return f"{panel}: no finished run."
    best = min(study.sign * (p.y.mean or 0.0) for p in ends.values())
    word = "lowest" if study.better == "lower" else "highest"
    first = [
        f"{method} at {study.x_label} {value:g} ({interval(p.y)}, {study.x_metric_label} {number(p.x.mean)})"
        for (method, value), p in ends.items()
        if study.sign * (p.y.mean or 0.0) == best
    ]
    text = f"{panel}: {word} mean: {listed(first)}."
    if not tested:
        return text
    won = [
        f"{a if test.verdict == 'wins' else b} than {b if test.verdict == 'wins' else a} "
        f"(by {number(abs(test.difference.mean or 0.0))})"
        for (a, b), test in tested.items()
        if test.verdict != "undecided"
    ]
    met = {pair: test for pair, test in tested.items() if test.difference.units}
    undecided = [f"{a} against {b}" for (a, b), test in met.items() if test.verdict == "undecided"]
    apart = [f"{a} and {b}" for a, b in tested if (a, b) not in met]
    text += f" Better at equal {study.x_metric_label}: {listed(won)}"
    text += f"; undecided: {', '.join(undecided)}." if undecided else "."
    if apart:
        text += f" Not compared, because no {study.unit[:-1]} covers a common range: {', '.join(apart)}."
    return text + too_few(study, [*met.values()])


def _points_table(study: StudyResults, panel: str) -> Table:
    headers = ("method", study.x_label, study.x_metric_label, study.label, *headers_beside(study), "n")
    rows = []
    for method in study.methods:
        there = {p.value: p for p in front(study, panel, method)}
        for x in dict.fromkeys(c.x or 0.0 for c in study.of(panel, method)):
            point, beside = there.get(x), values_beside(study, panel, method, x)
            shown = (EMPTY, EMPTY, *beside, "0")
            if point is not None:
                shown = (interval(point.x), interval(point.y), *beside, str(point.y.units))
            rows.append((method, f"{x:g}", *shown))
    if (begun := origin(study, panel)) is not None:
        rows.append(reference_row(study, panel, len(headers), "", *map(number, begun)))
    return simple_table(panel, headers, rows)


def _pairs_table(study: StudyResults, panel: str, compared: Mapping[Pair, Gaps], tested: Tested) -> Table:
    rows = []
    for (a, b), test in tested.items():
        shared = compared[a, b].values()
        low, high = (mean_ci_t(g[i] for g in shared).mean for i in (1, 2))
        where = f"{number(low)} to {number(high)}" if shared else EMPTY
        ahead = f"{sum(g[0] > 0 for g in shared)} of {len(shared)}"
        rows.append((f"{a} against {b}", where, interval(test.difference), ahead, p_value(test.p)))
    headers = ("at equal " + study.x_metric_label, "range (mean)", "the first is better by", "ahead on", "p")
    return simple_table(f"{panel}: fronts in pairs", headers, rows)
