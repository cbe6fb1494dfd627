"""What the records of a study say, by the kind of study: sentences and tables, before anything is drawn.

The same records give the same text: nothing here reads a clock or a folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shiq_bench.records.record import RunRecord
from shiq_bench.report.blocks import last
from shiq_bench.report.document import BROKEN, Table, simple_table
from shiq_bench.report.final_performance import contrast_of, final_table, panel_claim
from shiq_bench.report.format import EMPTY, ROUNDING, interval, listed, number, span
from shiq_bench.report.multi_task import across_findings
from shiq_bench.report.reward_kl_frontier import front_findings
from shiq_bench.report.steps_to_threshold import speed_of
from shiq_bench.report.study_results import Findings, StudyResults, focus_tests, lead_of, series, too_few, values
from shiq_bench.stats.intervals import Estimate

#: Method -> its number at every value of what varies.
Lines = Mapping[str, Mapping[float, Estimate]]


def findings(study: StudyResults) -> Findings:
    """Everything that can be said about a study's records."""
    if study.kind == "across":
        return across_findings(study)
    table = _ends if study.split else _table
    make = {"curves": _ends, "against": _against, "table": table, "front": front_findings}
    return make[study.kind](study)


def _ends(study: StudyResults) -> Findings:
    """Of curves, and of tables of language models: where methods end, panel by panel, and how fast they get there."""
    tables = [final_table(study, panel) for panel in study.panels]
    claims = [panel_claim(study, panel) for panel in study.panels]
    claims += [contrast_of(study, *pair) for pair in study.contrasts]
    embedded: list[Table] = []
    if study.reach:
        for panel in study.panels:
            claim, table = speed_of(study, panel, *study.reach)
            claims.append(claim)
            embedded.append(table)
    lead = lead_of(study, "lines and bands, " if study.kind == "curves" else "")
    return Findings.of(study, lead, claims, [*embedded, *tables], embedded)


def _against(study: StudyResults) -> Findings:
    lead, claims, tables = lead_of(study, "points and bands, "), [], []
    for panel in study.panels:
        lines = {m: dict(series(study, panel, m)) for m in study.methods}
        xs = sorted({x for line in lines.values() for x in line})
        claims.append(_against_claim(study, panel, lines, xs))
        tables.append(_against_table(study, panel, lines, xs))
    return Findings.of(study, lead, claims, tables)


def _against_claim(study: StudyResults, panel: str, lines: Lines, xs: Sequence[float]) -> str:
    if not xs:
        return f"{panel}: no finished run."
    best: dict[tuple[str, ...], list[float]] = {}
    for x in xs:
        here = {m: study.sign * (line[x].mean or 0.0) for m, line in lines.items() if x in line}
        best.setdefault(tuple(m for m in here if here[m] == min(here.values())), []).append(x)
    word = "lowest" if study.better == "lower" else "highest"
    text = f"{panel}: {word}: " + "; ".join(f"{listed(m)} at {_at(x, xs)}" for m, x in best.items()) + "."
    if not study.focus:
        return text
    if not lines.get(study.focus):
        return f"{text} {study.focus} has no finished run here: nothing is compared."
    found = focus_tests(study, panel)
    parts = []
    for verdict, phrase in (("wins", "wins against"), ("loses", "loses to"), ("undecided", "is undecided against")):
        where: dict[str, list[float]] = {}
        for d in found:
            if d.verdict == verdict:
                where.setdefault(d.method, []).append(d.x or 0.0)
        grouped: dict[str, list[str]] = {}
        for method, places in where.items():
            grouped.setdefault(_at(places, xs), []).append(method)
        said = "; ".join(f"{', '.join(m)} at {at}" for at, m in grouped.items())
        parts.append(f"{study.focus} {phrase} {said or 'none'}.")
    return " ".join([text, *parts]) + too_few(study, found)


def _at(some: Sequence[float], every: Sequence[float]) -> str:
    return "every value" if len(some) == len(every) > 1 else ", ".join(f"{x:g}" for x in some)


def _against_table(study: StudyResults, panel: str, lines: Lines, xs: Sequence[float]) -> Table:
    signs = {"wins": " (+)", "loses": " (-)", "undecided": ""}
    marks = {(d.method, d.x): signs[d.verdict] for d in focus_tests(study, panel)}
    rows = [
        (m, *(interval(line[x]) + marks.get((m, x), "") if x in line else EMPTY for x in xs))
        for m, line in lines.items()
    ]
    title = panel + (f": (+) {study.focus} wins, (-) it loses" if study.focus else "")
    return simple_table(title, (f"{study.x_label} →", *(f"{x:g}" for x in xs)), rows)


def _table(study: StudyResults) -> Findings:
    tables = [
        simple_table(
            view.title,
            ("", *view.panels),
            ((m, *(_worst_text(study, p, m) for p in view.panels)) for m in view.methods),
        )
        for view in study.views
    ]
    seeds = span(len(e.examples) for r in study.done if (e := last(r, "trained")))
    lead = (
        f"{study.label}: the worst of n = {seeds} seeds, each an instance of its own, and in parentheses their mean. "
        f"{EMPTY} where none is declared, letters where nothing was run."
    )
    if bounds := sorted({c.bound for c in study.cells if c.bound is not None}):
        lead += f" !: above {listed([number(b) for b in bounds])} where that is promised."
    return Findings.of(study, lead, _bound_claims(study), tables)


def _worst_text(study: StudyResults, panel: str, method: str) -> str:
    cell = next(iter(study.of(panel, method)), None)
    if cell is None or cell.left_out:
        return study.letters[cell.left_out] if cell else ""
    if cell.record is None:
        return "failed" if cell.problem else ""
    found, total = _measured(study, cell.record)
    if not found:
        return f"diverged{BROKEN if cell.bound is not None else ''}" if cell.record.status == "diverged" else EMPTY
    worst, mean = max(found), sum(found) / len(found)
    text = f"<{ROUNDING:g}" if worst <= ROUNDING else f"{worst:.1e} ({mean:.1e})" if mean > ROUNDING else f"{worst:.1e}"
    if len(found) < total:
        text += f" {len(found)} of {total}"
    return text + (BROKEN if cell.bound is not None and (worst > cell.bound or len(found) < total) else "")


def _measured(study: StudyResults, record: RunRecord) -> tuple[list[float], int]:
    """The metric of every instance that has it at the end, and how many instances there are."""
    evaluation = last(record, "trained")
    return [*values(evaluation, study.metric).values()], len(evaluation.examples) if evaluation else 0


def _bound_claims(study: StudyResults) -> tuple[str, ...]:
    """How many cells keep what is promised of them, and which do not."""
    kept: list[str] = []
    broken: list[str] = []
    for cell in study.cells:
        if cell.bound is None or cell.record is None:
            continue
        found, total = _measured(study, cell.record)
        if cell.record.status == "diverged":
            broken.append(f"{cell.name} (diverged)")
        elif 0 < len(found) < total:
            broken.append(f"{cell.name} ({len(found)} of {total})")
        elif found:
            (broken if max(found) > cell.bound else kept).append(f"{cell.name} ({number(max(found))})")
    if not kept and not broken:
        return ()
    limits = listed([number(b) for b in sorted({c.bound for c in study.cells if c.bound is not None})])
    text = f"At or under {limits} in {len(kept)} of the {len(kept) + len(broken)} cells of which that is promised"
    return (f"{text}; not: {listed(broken)}." if broken else f"{text}.",)
