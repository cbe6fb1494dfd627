"""How many updates a method needs until a metric has fallen to a threshold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp, log

from shiq_bench.records.record import RunRecord
from shiq_bench.report.blocks import last
from shiq_bench.report.document import Table, simple_table
from shiq_bench.report.format import EMPTY, ROUNDING, interval, listed, number
from shiq_bench.report.study_results import StudyResults, Verdict, paired_tests, values
from shiq_bench.stats.intervals import Estimate, mean_ci_t

#: Method -> instance -> updates, None where it never gets there.
Times = Mapping[str, Mapping[str, float | None]]


def updates_until(record: RunRecord, metric: str, threshold: float) -> dict[str, float | None]:
    """Instance -> updates until the metric first falls to the threshold; None where it never does.

    Between two evaluations it is interpolated, linearly in updates and in the metric's logarithm.
    """
    out: dict[str, float | None] = {}
    before: dict[str, tuple[int, float]] = {}
    for evaluation in sorted(record.curve, key=lambda e: e.step):
        for name, value in values(evaluation, metric).items():
            if out.setdefault(name, None) is not None:
                continue
            if value <= threshold:
                out[name] = _crossing(before.get(name), (evaluation.step, value), threshold)
            before[name] = (evaluation.step, value)
    return out


def _crossing(before: tuple[int, float] | None, after: tuple[int, float], threshold: float) -> float:
    if before is None:
        return float(after[0])
    (s0, v0), (s1, v1) = before, (after[0], max(after[1], 1e-300))
    return s0 + (s1 - s0) * (log(v0) - log(threshold)) / (log(v0) - log(v1))


def speed_of(study: StudyResults, panel: str, metric: str, threshold: float, label: str) -> tuple[str, Table]:
    """Updates until a threshold, instance by instance: who is there first, and by what factor."""
    times: dict[str, dict[str, float | None]] = {}
    worst: dict[str, float | None] = {}
    for method in study.methods:
        for cell in study.of(panel, method):
            if cell.record is not None:
                times[method] = updates_until(cell.record, metric, threshold)
                worst[method] = max(values(last(cell.record, "trained"), metric).values(), default=None)
    firsts = _firsts(times)
    rows = []
    for method, found in times.items():
        there = [t for t in found.values() if t is not None]
        row = [
            method,
            f"{len(there)} of {len(found)}",
            _geometric(there),
            str(firsts[method]),
            EMPTY if (end := worst[method]) is None else number(end) if end > ROUNDING else f"<{ROUNDING:g}",
        ]
        if study.focus:
            ratios = _log_ratios(found, times.get(study.focus, {})).values()
            row.insert(3, EMPTY if method == study.focus else _geometric(map(exp, ratios)))
        rows.append(tuple(row))
    headers = ["method", "reached", "updates (geometric mean)", "first on", "worst at the end"]
    if study.focus:
        headers.insert(3, f"times {study.focus}'s")
    table = simple_table(f"{panel}: updates until {label} falls to {threshold:g}", headers, rows)
    return _speed_claim(study, panel, times, firsts, f"{label} falls to {threshold:g}"), table


def _speed_claim(study: StudyResults, panel: str, times: Times, firsts: Mapping[str, int], what: str) -> str:
    n = max((len(t) for t in times.values()), default=0)
    order = sorted(times, key=lambda m: -firsts[m])
    text = f"{panel}: first to where {what}: {listed([f'{m} on {firsts[m]}' for m in order])} of {n} instances"
    text += " (equals count for each)." if sum(firsts.values()) > n else "."
    ours = times.get(study.focus)
    if not study.focus or ours is None:
        return text
    verdicts: dict[Verdict, list[str]] = {"wins": [], "loses": [], "undecided": []}
    others = [m for m in times if m != study.focus]
    for test in paired_tests([(m, None, _log_ratios(times[m], ours)) for m in others]):
        verdicts[test.verdict].append(f"{test.method} (n {test.difference.n:g})")
    return (
        f"{text} Where both get there (n), at one untuned learning rate for all, {study.focus} needs fewer updates "
        f"than {listed(verdicts['wins'])}, more than {listed(verdicts['loses'])}; undecided: "
        f"{listed(verdicts['undecided'])}."
    )


def _firsts(times: Times) -> dict[str, int]:
    """Method -> instances on which none was faster."""
    counts = dict.fromkeys(times, 0)
    for instance in dict.fromkeys(i for t in times.values() for i in t):
        there = {m: t for m in times if (t := times[m].get(instance)) is not None}
        for method, t in there.items():
            counts[method] += t == min(there.values())
    return counts


def _log_ratios(theirs: Mapping[str, float | None], ours: Mapping[str, float | None]) -> dict[str, float]:
    """Instance -> logarithm of their updates over ours, where both arrive, and neither is there at the start."""
    pairs = {i: (theirs[i], ours[i]) for i in sorted(theirs.keys() & ours.keys())}
    return {i: log(a / b) for i, (a, b) in pairs.items() if a and b}


def _geometric(x: Iterable[float]) -> str:
    e = mean_ci_t(log(v) for v in x if v > 0)
    low, mean, high = (None if v is None else exp(v) for v in (e.low, e.mean, e.high))
    return interval(Estimate(mean, None, low, high, e.n, e.units))
