"""What a study says over several tasks: normalised scores, profiles, interquartile means, who improves on whom."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shiq_bench.report.document import simple_table
from shiq_bench.report.final_performance import final_table, panel_claim
from shiq_bench.report.format import EMPTY, interval, listed, number, span
from shiq_bench.report.study_results import Findings, StudyResults, measured, start
from shiq_bench.stats.aggregates import (
    FEW_TASKS,
    Profile,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from shiq_bench.stats.intervals import Estimate

#: Titles of the two pairs of axes.
PROFILES = "Performance profiles"
IMPROVEMENT = "Probability of improvement"

#: Thresholds of a profile.
POINTS = 101

#: Method -> panel -> one normalised score a unit.
Normalised = Mapping[str, Mapping[str, list[float]]]


def normalised(study: StudyResults) -> dict[str, dict[str, list[float]]]:
    """Scores that panels share: 0 and 1 mean the same in each, and higher is better.

    ``optimum``: the metric is a distance to the optimum, so 1 is the optimum, and 0 what the reference
    has on average over the panel's units. ``minmax``: 0 is the worst and 1 the best unit of any method of
    the panel. A panel whose two ends are one has no scores.
    """
    out: dict[str, dict[str, list[float]]] = {method: {} for method in study.methods}
    for panel in study.panels:
        ended = {m: measured(study, panel, m).values() for m in study.methods}
        found = {m: {unit: x for units in e for unit, x in units.items()} for m, e in ended.items()}
        every = [x for xs in found.values() for x in xs.values()]
        if not every:
            continue
        if study.normalise == "optimum":
            worst, best = start(study, panel).mean, 0.0
        else:
            ends = (min(every), max(every))
            best, worst = ends if study.better == "lower" else ends[::-1]
        if worst is None or worst == best:
            continue
        for method, xs in found.items():
            if xs:
                out[method][panel] = [(worst - x) / (worst - best) for x in xs.values()]
    return out


def complete(study: StudyResults, scores: Normalised) -> list[str]:
    """Methods with scores on every panel that has any: only they can be summed up over tasks."""
    panels = {p for by_panel in scores.values() for p in by_panel}
    return [m for m in study.methods if panels and scores[m].keys() == panels]


def thresholds(study: StudyResults, scores: Normalised) -> list[float]:
    """Where profiles are drawn: from the worst run, or a little below 0 where some are far worse, to the best.

    Of all scores, those under -1 are cut: a method that diverges would squeeze the others into a line.
    """
    every = [x for m in complete(study, scores) for xs in scores[m].values() for x in xs]
    low, high = max(-1.0, min(every, default=0.0)), max(every, default=1.0)
    # Between scores that rounding alone tells apart there are not enough numbers for so many thresholds.
    return [float(x) for x in np.linspace(low, high if high - low > 1e-9 else low + 1.0, POINTS)]


def profiles(study: StudyResults) -> dict[str, Profile]:
    """Method -> its profile over all panels, with a pointwise band."""
    scores = normalised(study)
    at = thresholds(study, scores)
    found = {m: performance_profile(scores[m], at, np.random.default_rng(0)) for m in complete(study, scores)}
    return {m: profile for m, profile in found.items() if profile is not None}


def means(study: StudyResults) -> dict[str, Estimate]:
    """Method -> interquartile mean over all panels, best first."""
    scores = normalised(study)
    found = {m: interquartile_mean(scores[m], np.random.default_rng(0)) for m in complete(study, scores)}
    return dict(sorted(found.items(), key=lambda item: -(item[1].mean or 0.0)))


def improvements(study: StudyResults) -> dict[str, Estimate]:
    """Other method -> how likely a run of the focus is better than one of it, over the panels both have."""
    scores = normalised(study)
    others = [m for m in study.methods if m != study.focus] if study.focus else []
    found = {m: probability_of_improvement(scores[study.focus], scores[m], np.random.default_rng(0)) for m in others}
    return {m: e for m, e in found.items() if e.mean is not None}


def across_findings(study: StudyResults) -> Findings:
    """The caption: per-task intervals first where there are few tasks."""
    scores = normalised(study)
    panels = [p for p in study.panels if any(p in by_panel for by_panel in scores.values())]
    by_task = [final_table(study, panel) for panel in study.panels]
    summary = simple_table(
        "over all tasks",
        ("method", "interquartile mean", "tasks", "runs", *([f"{study.focus} is better"] if study.focus else [])),
        _rows(study, scores),
    )
    few = len(panels) < FEW_TASKS
    claims = [panel_claim(study, panel) for panel in study.panels] if few else []
    claims += _claims(study, scores)
    tables = (*by_task, summary) if few else (summary, *by_task)
    return Findings.of(study, _lead(study, panels, few), claims, tables, tables if few else (summary,))


def _lead(study: StudyResults, panels: list[str], few: bool) -> str:
    ends = (
        f"0 is the reference's mean {study.label} on the task, 1 the exact optimum"
        if study.normalise == "optimum"
        else f"0 is the worst {study.label} of any run on the task, 1 the best"
    )
    n = span(len(xs) for by_panel in normalised(study).values() for xs in by_panel.values())
    text = (
        f"Scores of {len(panels)} tasks, n = {n} {study.unit} each: {ends}. Profiles: the share of runs above a score. "
        "Improvement: the probability that a run is better than one of the other method on the same task, ties half. "
        "Bands and intervals: 95%, stratified bootstrap over "
        f"{study.unit} within tasks (Agarwal et al. 2021), not adjusted for the number of comparisons."
    )
    return f"Fewer than {FEW_TASKS} tasks: the intervals of every task come first. {text}" if few else text


def _rows(study: StudyResults, scores: Normalised) -> list[tuple[str, ...]]:
    found, better = means(study), improvements(study)
    rows = []
    for method in [*found, *(m for m in study.methods if m not in found)]:
        shown = interval(found[method]) if method in found else EMPTY
        runs = sum(len(xs) for xs in scores[method].values())
        row = [method, shown, str(len(scores[method])), str(runs)]
        if study.focus:
            row.append(interval(better[method]) if method in better else EMPTY)
        rows.append(tuple(row))
    return rows


def _claims(study: StudyResults, scores: Normalised) -> list[str]:
    found = means(study)
    if not found:
        return ["No method has a finished run on every task."]
    (_, highest), *_ = found.items()
    first = [m for m, e in found.items() if e.mean == highest.mean]
    text = f"Over all tasks: highest interquartile mean: {listed(first)} ({interval(highest)})."
    if rest := [item for item in found.items() if item[0] not in first]:
        text += f" Next: {rest[0][0]} ({interval(rest[0][1])})."
    out = [text]
    if missing := [m for m in study.methods if m not in found]:
        out.append(f"Left out of the summary, because some task has no run of them: {listed(missing)}.")
    if study.focus and (better := improvements(study)):
        ahead = [f"{m} ({number(b.mean)})" for m, b in better.items() if b.low is not None and b.low > 0.5]
        behind = [f"{m} ({number(b.mean)})" for m, b in better.items() if b.high is not None and b.high < 0.5]
        undecided = [m for m, b in better.items() if b.low is None or b.high is None or b.low <= 0.5 <= b.high]
        out.append(
            f"{study.focus} is more often better than {listed(ahead)}; more often worse than {listed(behind)}"
            + (f"; undecided: {listed(undecided)}." if undecided else ".")
        )
    return out
