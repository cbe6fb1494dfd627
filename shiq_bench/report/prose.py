"""Sentences under a study: how to read its picture, and what it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

from shiq_bench.records.provenance import code_versions
from shiq_bench.report.format import listed, span
from shiq_bench.report.study_results import PairwiseTest, StudyResults, Trial, measured, shown
from shiq_bench.stats.ranking import ALPHA, BOLD_SEEDS


def lead_of(study: StudyResults, marks: str) -> str:
    """How to read a picture or table: the metric, n, the unit, the intervals and the test."""
    places = [measured(study, panel, method).values() for panel in study.panels for method in study.methods]
    n = span({len(units) for found in places for units in found} - {0})
    where = f" on split {study.split}, {study.mode} answers" if study.split else ""
    text = f"{study.label}{where}: {marks}mean over n = {n} {study.unit} with 95% intervals (Student's t)."
    if study.focus:
        text += f" All methods get the same {study.unit}: {study.focus} wins where {wins_where('comparisons')}."
    if study.floor:
        text += f" Values under {study.floor:g} count as {study.floor:g}."
    return text


def wins_where(compared: str) -> str:
    """When a difference is called a win, in words."""
    return (
        f"the t test of the paired differences, {BOLD_SEEDS} or more, has p below {ALPHA:g} after Holm's adjustment "
        f"for all {compared} of a panel (intervals are not adjusted)"
    )


def problems_of(study: StudyResults) -> tuple[str, ...]:
    """Cells that failed or diverged: nothing is dropped silently."""
    places = list(product(study.panels, study.methods)) if study.split else []
    out = [f"Not there: {c.name}: {c.problem}." for c in study.cells if c.problem and not study.split]
    out += [text for panel, method in places if (text := _lost(study.of(panel, method)))]
    for cell in study.cells:
        examples = [] if cell.record is None else list(((e := shown(study, cell.record)) and e.examples) or ())
        lost = sum(bool(e.get("diverged")) for e in examples)
        if cell.record is not None and cell.record.status == "diverged" and not examples and not study.split:
            out.append(f"{cell.name} diverged on every instance: it has no numbers.")
        elif lost:
            out.append(f"{cell.name} diverged on {lost} of {len(examples)} instances, which its numbers leave out.")
    return tuple(out)


def _lost(cells: Sequence[Trial]) -> str:
    """A method's runs that failed or diverged, in one line, for they mostly do so for one reason."""
    lost = [c for c in cells if c.problem]
    if len(lost) < 2:
        return f"Not there: {lost[0].name}: {lost[0].problem}." if lost else ""
    which = "" if len(lost) == len(cells) else f" ({'; '.join(c.place for c in lost)})"
    of = f"{len(lost)} of {len(cells)} runs of {cells[0].method} on {cells[0].panel}"
    return f"Not there: {of}{which}, the first of them because: {lost[0].problem}."


def _left_out(study: StudyResults) -> list[str]:
    reasons: dict[str, list[Trial]] = {}
    for cell in study.cells:
        if cell.left_out:
            reasons.setdefault(cell.left_out, []).append(cell)
    out = []
    for reason, cells in reasons.items():
        methods = [m for m in study.methods if any(c.method == m for c in cells)]
        panels = [p for p in study.panels if any(c.panel == p for c in cells)]
        out.append(f"Left out: {listed(methods)} on {listed(panels)}: {reason}.")
    return out


def source_of(study: StudyResults) -> list[str]:
    """Which versions of the code the records are from; more than one is said loudly."""
    counts = Counter(r.source_hash or "unknown" for r in study.done)
    text = ", ".join(f"{n} of source {h}" for h, n in sorted(counts.items()))
    lines = [f"Records: {text or 'none'}."]
    if code_versions(study.done):
        lines.append("MIXED SOURCES: these runs come from different versions of the code.")
    return lines


def notes_of(study: StudyResults) -> tuple[str, ...]:
    """What was left out and why, the study's own remarks, deviations, and where the records are from."""
    # Of language models alone: where they departed from what was asked of them.
    counts = Counter(d for r in study.done if study.split for d in r.deviations)
    deviations = [f"In {n} of {len(study.done)} runs: {text}." for text, n in counts.items()]
    return (*_left_out(study), *study.notes, *deviations, *source_of(study))


def too_few(study: StudyResults, found: Sequence[PairwiseTest]) -> str:
    """Said where no verdict could have been other than undecided."""
    n = max((d.difference.units for d in found), default=0)
    if not found or n >= BOLD_SEEDS:
        return ""
    return f" n = {n} {study.unit} are too few to call a winner: that takes {BOLD_SEEDS}."
