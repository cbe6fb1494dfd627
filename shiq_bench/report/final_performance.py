"""Where methods end, panel by panel: who is best, who wins against whom, and the table of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shiq_bench.report.document import Table, simple_table
from shiq_bench.report.format import EMPTY, interval, listed, number
from shiq_bench.report.study_results import (
    StudyResults,
    Verdict,
    focus_tests,
    gain_of,
    measured,
    paired_tests,
    shown,
    start,
    too_few,
    values,
)
from shiq_bench.stats.clustered import linearised_difference
from shiq_bench.stats.intervals import Estimate, crossed_rows, mean_ci_t, paired_difference


def ends_of(study: StudyResults, panel: str) -> dict[str, Estimate]:
    """Method -> its number at the end, best first."""
    found = {m: mean_ci_t(units.values()) for m in study.methods for units in measured(study, panel, m).values()}
    known = [(m, e) for m, e in found.items() if e.mean is not None]
    return dict(sorted(known, key=lambda item: study.sign * (item[1].mean or 0.0)))


def panel_claim(study: StudyResults, panel: str) -> str:
    """Who ends best on a panel, who the focus wins against, and who ends below its start, in sentences."""
    ends = ends_of(study, panel)
    if not ends:
        return f"{panel}: no finished run."
    first, *rest = ends
    equal = [m for m in rest if ends[m].mean == ends[first].mean]
    word = "lowest" if study.better == "lower" else "highest"
    text = f"{panel}: {word} at the end: {listed([first, *equal])} ({interval(ends[first])})."
    if behind := [m for m in rest if m not in equal]:
        text += f" Next: {behind[0]} ({interval(ends[behind[0]])})."
    return f"{text}{_verdicts(study, panel)}{_below_start(study, panel)}"


def _verdicts(study: StudyResults, panel: str) -> str:
    """Who the focus wins against, and who not, with the differences."""
    if not study.focus:
        return ""
    if not any(c.record for c in study.of(panel, study.focus)):
        return f" {study.focus} has no finished run here: nothing is compared."
    found = focus_tests(study, panel)
    if not found:
        return ""

    def say(verdict: Verdict) -> list[str]:
        return [f"{d.method} ({number(abs(d.difference.mean or 0.0))})" for d in found if d.verdict == verdict]

    undecided = [d.method + (" (equal)" if d.same else "") for d in found if d.verdict == "undecided"]
    text = f" {study.focus} wins against {listed(say('wins'))}; it loses to {listed(say('loses'))}"
    return text + (f"; undecided: {listed(undecided)}." if undecided else ".") + too_few(study, found)


def _below_start(study: StudyResults, panel: str) -> str:
    """Who ends worse than the starting policy."""
    worse, alone = [], []
    for method in study.methods:
        for x, ended in measured(study, panel, method).items():
            crossed = _from_reference(study, panel, method, x)
            d = crossed or paired_difference(ended, _begun(study, panel, method, ended))
            limit = d.low if study.sign > 0 else d.high
            if limit is not None and study.sign * limit > 0:
                worse.append(method)
                alone += [method] if study.split and crossed is None else []
    if not worse:
        return ""
    over = f", seed variance only for {listed(alone)}" if alone else ""
    return f" Worse than the starting policy (unadjusted 95% intervals{over}): {listed(worse)}."


def _from_reference(study: StudyResults, panel: str, method: str, x: float | None) -> Estimate | None:
    """Of a language model: its difference to the reference over seeds and prompts; None where prompts are not there."""
    rows = []
    for cell in study.of(panel, method) if study.split and not study.floor else ():
        if cell.record is not None and cell.x == x:
            ended, begun = (shown(study, cell.record, policy) for policy in ("trained", "reference"))
            rows.append(linearised_difference(ended.examples, begun.examples, study.metric) if ended and begun else {})
    return crossed_rows(rows)


def _begun(study: StudyResults, panel: str, method: str, units: Iterable[str]) -> dict[str, float]:
    """Unit -> the metric before the first update: of language models it is the reference's, whatever the seed."""
    if study.split:
        reference = start(study, panel).mean
        return {} if reference is None else dict.fromkeys(units, reference)
    out: dict[str, float] = {}
    for cell in study.of(panel, method):
        if cell.record is not None and cell.record.curve:
            out |= values(min(cell.record.curve, key=lambda e: e.step), study.metric, study.floor)
    return out


def contrast_of(study: StudyResults, one: str, other: str) -> str:
    """Each method on one panel against itself on another."""
    said: dict[Verdict, list[str]] = {"wins": [], "loses": [], "undecided": []}
    compared: list[tuple[str, float | None, Mapping[str, float]]] = []
    for method in study.methods:
        a, b = (measured(study, p, method) for p in (one, other))
        compared += [(method, x, gain_of(study, a[x], b[x])) for x in a if x in b]
    found = paired_tests(compared)
    for test in found:
        size = "" if test.verdict == "undecided" else f" ({number(abs(test.difference.mean or 0.0))})"
        said[test.verdict].append(f"{test.method}{size}")
    return (
        f"{one} against {other}: better on the former: {listed(said['wins'])}; better on the latter: "
        f"{listed(said['loses'])}; undecided: {listed(said['undecided'])}.{too_few(study, found)}"
    )


def final_table(study: StudyResults, panel: str) -> Table:
    """The numbers behind :func:`panel_claim`, a row a method, best first."""
    against = {d.method: d for d in focus_tests(study, panel)} if study.focus else {}
    headers = ["method", f"{study.label} at the end", *headers_beside(study), "n"]
    if study.focus:
        headers += [f"{study.focus} is better by", study.focus]
    rows = []
    ends = ends_of(study, panel)
    if study.split:  # who has no number has failed, and is not to vanish
        ends |= {m: mean_ci_t(()) for m in study.methods if m not in ends and study.of(panel, m)}
    for method, e in ends.items():
        row = [method, interval(e), *values_beside(study, panel, method, None), str(e.units)]
        if study.focus:
            test = against.get(method)
            row += [EMPTY, ""] if test is None else [interval(test.difference), test.verdict]
        rows.append(tuple(row))
    rows.append(reference_row(study, panel, len(headers), interval(start(study, panel))))
    return simple_table(panel, headers, rows)


def metrics_beside(study: StudyResults) -> list[tuple[str, str]]:
    """Title and name of what stands beside the metric of language models, in a column each."""
    known = [("KL (nats)", "kl")] if study.mode == "sampled" else []
    shown = (study.metric, study.x_metric)
    return [pair for pair in [*known, ("truncated", "truncated")] if study.split and pair[1] not in shown]


def values_beside(study: StudyResults, panel: str, method: str, x: float | None) -> list[str]:
    """Of language models: those metrics' means over seeds, and how many seeds failed or diverged."""
    if not study.split:
        return []
    found = [measured(study, panel, method, metric).get(x, {}) for _, metric in metrics_beside(study)]
    failed = sum(bool(c.problem) for c in study.of(panel, method) if c.x == x)
    return [*(number(mean_ci_t(units.values()).mean) for units in found), str(failed)]


def headers_beside(study: StudyResults) -> list[str]:
    """Heads of the columns of :func:`values_beside`."""
    return [*(title for title, _ in metrics_beside(study)), "failed"] if study.split else []


def reference_row(study: StudyResults, panel: str, columns: int, *cells: str) -> tuple[str, ...]:
    """The policy that training starts from; of language models it is one, whatever the seed."""
    beside = [number(start(study, panel, metric).mean) for _, metric in metrics_beside(study)]
    ending = ["", EMPTY] if study.split else [str(start(study, panel).units)]
    row = ["(reference)", *cells, *beside, *ending]
    return (*row, *([""] * (columns - len(row))))
