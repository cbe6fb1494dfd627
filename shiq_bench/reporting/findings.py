"""What the records of a study say: series, paired comparisons, sentences and tables, before anything is drawn.

Every sentence is computed from the records. A method wins against another where the exact sign-flip
test over the units that both were trained on (a table's instances, the seeds of language models),
Holm-adjusted over all that a caption compares, says so; nothing else is a win. The same records give
the same text: nothing here reads a clock or a folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from math import exp, inf, log
from typing import Literal

import numpy as np

from shiq_bench.records import Evaluation, RunRecord
from shiq_bench.reporting.statistics import Estimate, holm, mean_ci_t, paired_difference, sign_flip_p

Kind = Literal["curves", "against", "table", "front", "across"]
Verdict = Literal["wins", "loses", "undecided"]

#: Numbers at or under this are rounding, and are printed as such.
ROUNDING = 1e-12
#: Adjusted p below which a difference is called one.
ALPHA = 0.05

EMPTY = "–"


@dataclass(frozen=True)
class Cell:
    """One run of a study, or why there is none.

    Attributes:
        x: what the study varied, where it varies something.
        seed: of a language model, whose runs are one a seed.
        bound: what the metric may at most be, where the study promises something.
        left_out: the study's own reason for not running it.
        problem: why a run that was asked for has no finished record.
    """

    panel: str
    method: str
    x: float | None = None
    record: RunRecord | None = None
    bound: float | None = None
    left_out: str = ""
    problem: str = ""
    seed: int | None = None

    @property
    def name(self) -> str:
        """``ShiQ on bandit at 0.5``, and of language models ``ShiQ on chat at 0.5, seed 1``."""
        at, seed = ("" if self.x is None else f" at {self.x:g}"), ("" if self.seed is None else f", seed {self.seed}")
        return f"{self.method} on {self.panel}{at}{seed}"

    @property
    def place(self) -> str:
        """``0.5, seed 1``: which of a method's runs."""
        return ", ".join([*([] if self.x is None else [f"{self.x:g}"]), f"seed {self.seed}"])


@dataclass(frozen=True)
class View:
    """One pair of axes, or one table: some panels of a study, some of its methods."""

    title: str
    panels: tuple[str, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """A study and its records: all that a picture or a table is made of.

    Attributes:
        name: of the files.
        asks: the question it answers, one sentence.
        metric, label: what is shown, by its name in the records and in words.
        better: the direction of the metric.
        focus: the method that the others are compared with; "" for none.
        x_label: what varies.
        floor: smaller values count as this one; 0 is none.
        reach: a metric, the value it has to fall to, by which speed is measured, and the metric in words.
        contrasts: pairs of panels whose instances are the same problems, to be compared method by method.
        split, mode: the evaluation that is shown of language models; "" where the runs are tables.
        x_metric, x_metric_label: of a front, what stands on its x axis.
        normalise: across tasks, what scores are between: ``optimum`` or ``minmax``.
    """

    name: str
    title: str
    asks: str
    kind: Kind
    metric: str
    label: str
    better: Literal["lower", "higher"]
    focus: str
    x_label: str
    panels: tuple[str, ...]
    methods: tuple[str, ...]
    views: tuple[View, ...]
    cells: tuple[Cell, ...]
    log_y: bool = True
    log_x: bool = False
    floor: float = 0.0
    reach: tuple[str, float, str] | None = None
    contrasts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    split: str = ""
    mode: str = ""
    x_metric: str = ""
    x_metric_label: str = ""
    normalise: str = ""

    @property
    def unit(self) -> str:
        """What is trained on independently, and compared in pairs."""
        return "seeds" if self.split else "instances"

    @property
    def sign(self) -> int:
        """Of a difference that is an improvement, other minus ours."""
        return 1 if self.better == "lower" else -1

    @cached_property
    def _by_place(self) -> dict[tuple[str, str], list[Cell]]:
        out: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            out.setdefault((cell.panel, cell.method), []).append(cell)
        return out

    def of(self, panel: str, method: str) -> list[Cell]:
        """Cells of one line, in the order of what varies."""
        return sorted(self._by_place.get((panel, method), []), key=lambda c: -inf if c.x is None else c.x)

    @property
    def done(self) -> list[RunRecord]:
        """Every finished record."""
        return [c.record for c in self.cells if c.record is not None]


@dataclass(frozen=True)
class Grid:
    """A table of texts; the first column holds names."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Findings:
    """What stands under a picture.

    Attributes:
        lead: how to read it.
        claims: what it shows, one sentence or two a panel.
        grids: the numbers behind the claims.
        problems: runs that failed or diverged, which the picture itself must say.
        notes: what was left out and why, what the study itself remarks, and where the records are from.
        embedded: grids that belong under the picture itself.
    """

    lead: str
    claims: tuple[str, ...]
    grids: tuple[Grid, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    embedded: tuple[Grid, ...] = ()


def findings(sheet: Sheet) -> Findings:
    """Everything that can be said about a study's records."""
    if sheet.kind == "across":
        from shiq_bench.reporting.crosswise import across_findings  # which is made of what is below

        return across_findings(sheet)
    make = {"curves": _curves, "against": _against, "table": _summary if sheet.split else _table, "front": _front}
    return make[sheet.kind](sheet)


# --- numbers -------------------------------------------------------------------------------------


def final(record: RunRecord, policy: str = "trained") -> Evaluation | None:
    """The policy's last evaluation: the rule by which every number is chosen."""
    return max((e for e in record.evaluations if e.policy == policy), key=lambda e: e.step, default=None)


def values(evaluation: Evaluation | None, metric: str, floor: float = 0.0) -> dict[str, float]:
    """Instance -> the metric, where it was measured; what is under the floor counts as the floor."""
    if evaluation is None:
        return {}
    found = {str(e["prompt_id"]): e.get(metric) for e in evaluation.examples}
    return {k: max(float(v), floor) if floor else float(v) for k, v in found.items() if v is not None}


def shown(sheet: Sheet, record: RunRecord, policy: str = "trained") -> Evaluation | None:
    """The policy's last evaluation, of language models where the study looks."""
    if not sheet.split:
        return final(record, policy)
    place = (sheet.split, sheet.mode)
    return final(replace(record, evaluations=[e for e in record.evaluations if (e.split, e.mode) == place]), policy)


def _units(sheet: Sheet, cell: Cell, metric: str = "", policy: str = "trained") -> dict[str, float]:
    """Unit -> the metric of one run at its end: a value an instance of a table, one in all of a language model."""
    assert cell.record is not None
    floor = sheet.floor if metric in ("", sheet.metric) else 0.0
    evaluation = shown(sheet, cell.record, policy)
    if not sheet.split:
        return values(evaluation, metric or sheet.metric, floor)
    mean = None if evaluation is None else evaluation.metrics.get(metric or sheet.metric, {}).get("mean")
    # The reference does not depend on the seed: it is one.
    name = f"seed {cell.seed}" if policy == "trained" else policy
    return {} if mean is None else {name: max(mean, floor) if floor else mean}


def measured(sheet: Sheet, panel: str, method: str, metric: str = "") -> dict[float | None, dict[str, float]]:
    """What the study varies -> unit -> the metric at the end; the sheet's metric unless another is asked for."""
    out: dict[float | None, dict[str, float]] = {}
    for cell in sheet.of(panel, method):
        if cell.record is not None:
            out.setdefault(cell.x, {}).update(_units(sheet, cell, metric))
    return out


def series(sheet: Sheet, panel: str, method: str, metric: str = "") -> list[tuple[float, Estimate]]:
    """A line of a picture: the metric's mean over units with its interval, at every x.

    x is the number of updates of a curve, which starts at the first one, or what the study varies.
    """
    if sheet.kind == "curves":
        evaluations = [e for c in sheet.of(panel, method) if c.record is not None for e in c.record.curve]
        curve = [e for e in evaluations if e.policy == "trained" and e.step]
        found = [(float(e.step), mean_ci_t(values(e, sheet.metric, sheet.floor).values())) for e in curve]
    else:
        found = [(x or 0.0, mean_ci_t(v.values())) for x, v in measured(sheet, panel, method, metric).items()]
    return [(x, e) for x, e in found if e.mean is not None]


def start(sheet: Sheet, panel: str, metric: str = "") -> Estimate:
    """The metric of the policy that training starts from, over the panel's units."""
    every: dict[str, float] = {}
    for cell in sheet.cells:
        if cell.panel == panel and cell.record is not None:
            every |= _units(sheet, cell, metric, "reference")
    return mean_ci_t(every.values())


@dataclass(frozen=True)
class Duel:
    """The focus against another method at one x.

    Attributes:
        difference: the other minus the focus where lower is better, else the reverse: positive is the focus's.
        same: equal on every unit.
        p: of the sign-flip test over units, Holm-adjusted over all that the caption compares.
    """

    method: str
    x: float | None
    difference: Estimate
    same: bool
    p: float | None

    @property
    def verdict(self) -> Verdict:
        """A win or a loss needs an adjusted p below :data:`ALPHA`."""
        if self.p is None or self.p >= ALPHA or not self.difference.mean:
            return "undecided"
        return "wins" if self.difference.mean > 0 else "loses"


def judged(compared: Sequence[tuple[str, float | None, Mapping[str, float]]]) -> list[Duel]:
    """Paired differences by unit, one mapping a comparison, tested together: positive speaks for the focus."""
    raw = [sign_flip_p(list(d.values()), np.random.default_rng(0)) if len(d) > 1 else None for _, _, d in compared]
    return [
        Duel(method, x, mean_ci_t(d.values()), bool(d) and not any(d.values()), p)
        for (method, x, d), p in zip(compared, holm(raw), strict=True)
    ]


def duels(sheet: Sheet, panel: str) -> list[Duel]:
    """The focus against every other method of a panel, wherever both have a record."""
    ours = measured(sheet, panel, sheet.focus)
    others = [m for m in sheet.methods if m != sheet.focus]
    return judged(
        [
            (method, x, _gain(sheet, ours[x], theirs))
            for method in others
            for x, theirs in measured(sheet, panel, method).items()
            if x in ours
        ]
    )


def _gain(sheet: Sheet, ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Unit -> by how much ours is better, where both were measured."""
    return {k: sheet.sign * (theirs[k] - ours[k]) for k in sorted(ours.keys() & theirs.keys())}


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


# --- words ---------------------------------------------------------------------------------------


def number(x: float | None) -> str:
    """Two or three digits: ``0.0123``, ``1.2e-05``."""
    if x is None:
        return EMPTY
    if x == 0 or 1e-3 <= abs(x) < 1e4:
        return f"{x:.3g}" if abs(x) < 100 else f"{x:.0f}"
    return f"{x:.1e}"


def interval(e: Estimate) -> str:
    """``0.012 [0.010, 0.014]``."""
    if e.low is None or e.high is None:
        return number(e.mean)
    return f"{number(e.mean)} [{number(e.low)}, {number(e.high)}]"


def listed(names: Sequence[str], none: str = "none") -> str:
    """``A, B and C``."""
    if len(names) < 2:
        return names[0] if names else none
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _lead(sheet: Sheet, marks: str) -> str:
    places = [measured(sheet, panel, method).values() for panel in sheet.panels for method in sheet.methods]
    counts = sorted({len(units) for found in places for units in found} - {0})
    n = EMPTY if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    where = f" on split {sheet.split}, {sheet.mode} answers" if sheet.split else ""
    text = f"{sheet.label}{where}: {marks}mean over n = {n} {sheet.unit} with 95% intervals (Student's t)."
    if sheet.focus:
        text += (
            f" All methods get the same {sheet.unit}: {sheet.focus} wins where the exact sign-flip test over the "
            f"paired differences has p < {ALPHA:g} after Holm's adjustment for all comparisons of a panel."
        )
    if sheet.floor:
        text += f" Values under {sheet.floor:g} count as {sheet.floor:g}."
    return text


def problems_of(sheet: Sheet) -> tuple[str, ...]:
    """Cells that failed or diverged: nothing is dropped silently."""
    places = list(product(sheet.panels, sheet.methods)) if sheet.split else []
    out = [f"Not there: {c.name}: {c.problem}." for c in sheet.cells if c.problem and not sheet.split]
    out += [text for panel, method in places if (text := _lost(sheet.of(panel, method)))]
    for cell in sheet.cells:
        examples = [] if cell.record is None else list(((e := shown(sheet, cell.record)) and e.examples) or ())
        lost = sum(bool(e.get("diverged")) for e in examples)
        if lost:
            out.append(f"{cell.name} diverged on {lost} of {len(examples)} instances, which its numbers leave out.")
    return tuple(out)


def _lost(cells: Sequence[Cell]) -> str:
    """A method's runs that failed or diverged, in one line, for they mostly do so for one reason."""
    lost = [c for c in cells if c.problem]
    if len(lost) < 2:
        return f"Not there: {lost[0].name}: {lost[0].problem}." if lost else ""
    which = "" if len(lost) == len(cells) else f" ({'; '.join(c.place for c in lost)})"
    of = f"{len(lost)} of {len(cells)} runs of {cells[0].method} on {cells[0].panel}"
    return f"Not there: {of}{which}, the first of them because: {lost[0].problem}."


def _left_out(sheet: Sheet) -> list[str]:
    reasons: dict[str, list[Cell]] = {}
    for cell in sheet.cells:
        if cell.left_out:
            reasons.setdefault(cell.left_out, []).append(cell)
    out = []
    for reason, cells in reasons.items():
        methods = [m for m in sheet.methods if any(c.method == m for c in cells)]
        panels = [p for p in sheet.panels if any(c.panel == p for c in cells)]
        out.append(f"Left out: {listed(methods)} on {listed(panels)}: {reason}.")
    return out


def _source(sheet: Sheet) -> list[str]:
    counts = Counter(r.source_hash or "unknown" for r in sheet.done)
    text = ", ".join(f"{n} of source {h}" for h, n in sorted(counts.items()))
    lines = [f"Records: {text or 'none'}."]
    if len(counts) > 1:
        lines.append("MIXED SOURCES: these runs come from different versions of the code.")
    return lines


def notes_of(sheet: Sheet) -> tuple[str, ...]:
    return (*_left_out(sheet), *sheet.notes, *_deviations(sheet), *_source(sheet))


def _deviations(sheet: Sheet) -> list[str]:
    """Where runs of language models departed from what was asked of them."""
    counts = Counter(d for r in sheet.done if sheet.split for d in r.deviations)
    return [f"In {n} of {len(sheet.done)} runs: {text}." for text, n in counts.items()]


def _too_few(sheet: Sheet, found: Sequence[Duel]) -> str:
    """Said of language models, whose seeds are few, where no verdict could have been other than undecided."""
    n = max((d.difference.units for d in found), default=0)
    tested = sum(d.p is not None for d in found)
    lowest = min(1.0, tested * 2.0 ** (1 - n)) if tested else 1.0
    if not sheet.split or not found or lowest < ALPHA:
        return ""
    return f" n = {n} seeds are too few to call a winner: p, adjusted, cannot fall below {lowest:.2g}."


# --- curves --------------------------------------------------------------------------------------


def _curves(sheet: Sheet) -> Findings:
    grids = [final_grid(sheet, panel) for panel in sheet.panels]
    claims = [panel_claim(sheet, panel) for panel in sheet.panels]
    claims += [_contrast(sheet, *pair) for pair in sheet.contrasts]
    embedded: list[Grid] = []
    if sheet.reach:
        for panel in sheet.panels:
            claim, grid = _speed(sheet, panel, *sheet.reach)
            claims.append(claim)
            embedded.append(grid)
    lead, grids = _lead(sheet, "lines and bands, "), [*embedded, *grids]
    return Findings(lead, tuple(claims), tuple(grids), problems_of(sheet), notes_of(sheet), tuple(embedded))


def _ends(sheet: Sheet, panel: str) -> dict[str, Estimate]:
    """Method -> its number at the end, best first."""
    found = {}
    for method in sheet.methods:
        for units in measured(sheet, panel, method).values():
            found[method] = mean_ci_t(units.values())
    known = {m: e for m, e in found.items() if e.mean is not None}
    return dict(sorted(known.items(), key=lambda item: sheet.sign * (item[1].mean or 0.0)))


def panel_claim(sheet: Sheet, panel: str) -> str:
    ends = _ends(sheet, panel)
    if not ends:
        return f"{panel}: no finished run."
    first, *rest = ends
    equal = [m for m in rest if ends[m].mean == ends[first].mean]
    word = "Lowest" if sheet.better == "lower" else "Highest"
    text = f"{panel}: {word.lower()} at the end: {listed([first, *equal])} ({interval(ends[first])})."
    behind = [m for m in rest if m not in equal]
    if behind:
        text += f" Next: {behind[0]} ({interval(ends[behind[0]])})."
    return f"{text}{_verdicts(sheet, panel)}{_below_start(sheet, panel)}"


def _verdicts(sheet: Sheet, panel: str) -> str:
    """Who the focus wins against, and who not, with the differences."""
    if not sheet.focus:
        return ""
    if not any(c.record for c in sheet.of(panel, sheet.focus)):
        return f" {sheet.focus} has no finished run here: nothing is compared."
    found = duels(sheet, panel)
    if not found:
        return ""

    def say(verdict: Verdict) -> list[str]:
        return [f"{d.method} ({number(abs(d.difference.mean or 0.0))})" for d in found if d.verdict == verdict]

    undecided = [d.method + (" (equal)" if d.same else "") for d in found if d.verdict == "undecided"]
    text = f" {sheet.focus} wins against {listed(say('wins'))}; it loses to {listed(say('loses'))}"
    return text + (f"; undecided: {listed(undecided)}." if undecided else ".") + _too_few(sheet, found)


def _below_start(sheet: Sheet, panel: str) -> str:
    """Who ends worse than training started."""
    worse = []
    for method in sheet.methods:
        for ended in measured(sheet, panel, method).values():
            d = paired_difference(ended, _begun(sheet, panel, method, ended))
            limit = d.low if sheet.sign > 0 else d.high
            if limit is not None and sheet.sign * limit > 0:
                worse.append(method)
    return f" Worse than where they start: {listed(worse)}." if worse else ""


def _begun(sheet: Sheet, panel: str, method: str, units: Iterable[str]) -> dict[str, float]:
    """Unit -> the metric before the first update: of language models it is the reference's, whatever the seed."""
    if sheet.split:
        reference = start(sheet, panel).mean
        return {} if reference is None else dict.fromkeys(units, reference)
    out: dict[str, float] = {}
    for cell in sheet.of(panel, method):
        if cell.record is not None:
            out |= values(min(cell.record.curve, key=lambda e: e.step), sheet.metric, sheet.floor)
    return out


def _contrast(sheet: Sheet, one: str, other: str) -> str:
    """Each method on one panel against itself on another."""
    said: dict[Verdict, list[str]] = {"wins": [], "loses": [], "undecided": []}
    compared: list[tuple[str, float | None, Mapping[str, float]]] = []
    for method in sheet.methods:
        a, b = (measured(sheet, p, method) for p in (one, other))
        compared += [(method, x, _gain(sheet, a[x], b[x])) for x in a if x in b]
    found = judged(compared)
    for duel in found:
        size = "" if duel.verdict == "undecided" else f" ({number(abs(duel.difference.mean or 0.0))})"
        said[duel.verdict].append(f"{duel.method}{size}")
    return (
        f"{one} against {other}: better on the former: {listed(said['wins'])}; better on the latter: "
        f"{listed(said['loses'])}; undecided: {listed(said['undecided'])}.{_too_few(sheet, found)}"
    )


def final_grid(sheet: Sheet, panel: str) -> Grid:
    against = {d.method: d for d in duels(sheet, panel)} if sheet.focus else {}
    headers = ["method", f"{sheet.label} at the end", *_beside_headers(sheet), "n"]
    if sheet.focus:
        headers += [f"{sheet.focus} is better by", sheet.focus]
    rows = []
    ends = _ends(sheet, panel)
    if sheet.split:  # who has no number has failed, and is not to vanish
        ends |= {m: mean_ci_t(()) for m in sheet.methods if m not in ends and sheet.of(panel, m)}
    for method, e in ends.items():
        row = [method, interval(e), *_beside(sheet, panel, method, None), str(e.units)]
        if sheet.focus:
            duel = against.get(method)
            row += [EMPTY, ""] if duel is None else [interval(duel.difference), duel.verdict]
        rows.append(tuple(row))
    begun = start(sheet, panel)
    rows.append(_reference_row(sheet, panel, len(headers), interval(begun)))
    return Grid(panel, tuple(headers), tuple(rows))


def _beside_metrics(sheet: Sheet) -> list[tuple[str, str]]:
    """Title and name of what stands beside the metric of language models, in a column each."""
    known = [("KL (nats)", "kl")] if sheet.mode == "sampled" else []
    shown = (sheet.metric, sheet.x_metric)
    return [pair for pair in [*known, ("truncated", "truncated")] if sheet.split and pair[1] not in shown]


def _beside(sheet: Sheet, panel: str, method: str, x: float | None) -> list[str]:
    """Of language models: those metrics' means over seeds, and how many seeds failed or diverged."""
    if not sheet.split:
        return []
    found = [measured(sheet, panel, method, metric).get(x, {}) for _, metric in _beside_metrics(sheet)]
    failed = sum(bool(c.problem) for c in sheet.of(panel, method) if c.x == x)
    return [*(number(mean_ci_t(units.values()).mean) for units in found), str(failed)]


def _beside_headers(sheet: Sheet) -> list[str]:
    return [*(title for title, _ in _beside_metrics(sheet)), "failed"] if sheet.split else []


def _reference_row(sheet: Sheet, panel: str, columns: int, *cells: str) -> tuple[str, ...]:
    """The policy that training starts from; of language models it is one, whatever the seed."""
    beside = [number(start(sheet, panel, metric).mean) for _, metric in _beside_metrics(sheet)]
    ending = ["", EMPTY] if sheet.split else [str(start(sheet, panel).units)]
    row = ["(reference)", *cells, *beside, *ending]
    return (*row, *([""] * (columns - len(row))))


# --- speed ---------------------------------------------------------------------------------------


def _speed(sheet: Sheet, panel: str, metric: str, threshold: float, label: str) -> tuple[str, Grid]:
    """Updates until a threshold, instance by instance: who is there first, and by what factor."""
    times: dict[str, dict[str, float | None]] = {}
    worst: dict[str, float | None] = {}
    for method in sheet.methods:
        for cell in sheet.of(panel, method):
            if cell.record is not None:
                times[method] = updates_until(cell.record, metric, threshold)
                worst[method] = max(values(final(cell.record), metric).values(), default=None)
    firsts = _firsts(times)
    rows = []
    for method, found in times.items():
        there = [t for t in found.values() if t is not None]
        row = [
            method,
            f"{len(there)} of {len(found)}",
            _geometric(there),
            str(firsts[method]),
            number(worst[method]) if (worst[method] or 0.0) > ROUNDING else f"<{ROUNDING:g}",
        ]
        if sheet.focus:
            ratios = _log_ratios(found, times.get(sheet.focus, {})).values()
            row.insert(3, EMPTY if method == sheet.focus else _geometric(map(exp, ratios)))
        rows.append(tuple(row))
    headers = ["method", "reached", "updates (geometric mean)", "first on", "worst at the end"]
    if sheet.focus:
        headers.insert(3, f"times {sheet.focus}'s")
    grid = Grid(f"{panel}: updates until {label} falls to {threshold:g}", tuple(headers), tuple(rows))
    return _speed_claim(sheet, panel, times, firsts, f"{label} falls to {threshold:g}"), grid


def _speed_claim(
    sheet: Sheet, panel: str, times: Mapping[str, Mapping[str, float | None]], firsts: Mapping[str, int], what: str
) -> str:
    n = max((len(t) for t in times.values()), default=0)
    order = sorted(times, key=lambda m: -firsts[m])
    text = f"{panel}: first to where {what}: {listed([f'{m} on {firsts[m]}' for m in order])} of {n} instances"
    text += " (equals count for each)." if sum(firsts.values()) > n else "."
    ours = times.get(sheet.focus)
    if not sheet.focus or ours is None:
        return text
    verdicts: dict[Verdict, list[str]] = {"wins": [], "loses": [], "undecided": []}
    others = [m for m in times if m != sheet.focus]
    for duel in judged([(m, None, _log_ratios(times[m], ours)) for m in others]):
        verdicts[duel.verdict].append(f"{duel.method} (n {duel.difference.n:g})")
    return (
        f"{text} Where both get there (n), at one untuned learning rate for all, {sheet.focus} needs fewer updates "
        f"than {listed(verdicts['wins'])}, more than {listed(verdicts['loses'])}; undecided: "
        f"{listed(verdicts['undecided'])}."
    )


def _firsts(times: Mapping[str, Mapping[str, float | None]]) -> dict[str, int]:
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


# --- against something that varies ---------------------------------------------------------------


def _against(sheet: Sheet) -> Findings:
    claims = [_against_claim(sheet, panel) for panel in sheet.panels]
    grids = [_against_grid(sheet, panel) for panel in sheet.panels]
    return Findings(
        _lead(sheet, "points and bands, "), tuple(claims), tuple(grids), problems_of(sheet), notes_of(sheet)
    )


def _against_claim(sheet: Sheet, panel: str) -> str:
    lines = {m: dict(series(sheet, panel, m)) for m in sheet.methods}
    xs = sorted({x for line in lines.values() for x in line})
    if not xs:
        return f"{panel}: no finished run."
    sign = 1 if sheet.better == "lower" else -1
    best: dict[tuple[str, ...], list[float]] = {}
    for x in xs:
        here = {m: sign * (line[x].mean or 0.0) for m, line in lines.items() if x in line}
        best.setdefault(tuple(m for m in here if here[m] == min(here.values())), []).append(x)
    word = "lowest" if sheet.better == "lower" else "highest"
    text = f"{panel}: {word}: " + "; ".join(f"{listed(m)} at {_at(x, xs)}" for m, x in best.items()) + "."
    if not sheet.focus:
        return text
    if not lines.get(sheet.focus):
        return f"{text} {sheet.focus} has no finished run here: nothing is compared."
    found = duels(sheet, panel)
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
        parts.append(f"{sheet.focus} {phrase} {said or 'none'}.")
    return " ".join([text, *parts]) + _too_few(sheet, found)


def _at(some: Sequence[float], every: Sequence[float]) -> str:
    return "every value" if len(some) == len(every) > 1 else ", ".join(f"{x:g}" for x in some)


def _against_grid(sheet: Sheet, panel: str) -> Grid:
    lines = {m: dict(series(sheet, panel, m)) for m in sheet.methods}
    xs = sorted({x for line in lines.values() for x in line})
    marks = {
        (d.method, d.x): {"wins": " (+)", "loses": " (-)", "undecided": ""}[d.verdict] for d in duels(sheet, panel)
    }
    rows = [
        (m, *(interval(line[x]) + marks.get((m, x), "") if x in line else EMPTY for x in xs))
        for m, line in lines.items()
    ]
    title = panel + (f": (+) {sheet.focus} wins, (-) it loses" if sheet.focus else "")
    return Grid(title, (f"{sheet.x_label} →", *(f"{x:g}" for x in xs)), tuple(rows))


# --- fronts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Where a method ends at one value of what varies: the mean over seeds on both axes."""

    value: float
    x: Estimate
    y: Estimate


def front(sheet: Sheet, panel: str, method: str) -> list[Point]:
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


def origin(sheet: Sheet, panel: str) -> tuple[float, float] | None:
    """The reference on both axes; what is not measured of it is a distance to itself, and 0."""
    y = start(sheet, panel).mean
    return None if y is None else (start(sheet, panel, sheet.x_metric).mean or 0.0, y)


def gaps(sheet: Sheet, panel: str, one: str, other: str) -> dict[str, tuple[float, float, float]]:
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


def _polylines(sheet: Sheet, panel: str, method: str) -> dict[str, np.ndarray]:
    """Unit -> x and y of its runs, by x. ``[2, points]``"""
    across = measured(sheet, panel, method, sheet.x_metric)
    found: dict[str, list[tuple[float, float]]] = {}
    for value, ys in measured(sheet, panel, method).items():
        for unit, y in ys.items():
            if unit in across.get(value, {}):
                found.setdefault(unit, []).append((across[value][unit], y))
    return {unit: np.array(sorted(points)).T for unit, points in found.items()}


def _front(sheet: Sheet) -> Findings:
    claims, points, pairs = [], [], []
    for panel in sheet.panels:
        compared = {pair: gaps(sheet, panel, *pair) for pair in combinations(sheet.methods, 2)}
        found = judged([(b, None, {unit: g[0] for unit, g in d.items()}) for (_, b), d in compared.items()])
        duelled = dict(zip(compared, found, strict=True))
        claims.append(_front_claim(sheet, panel, duelled))
        points.append(_points_grid(sheet, panel))
        pairs.append(_pairs_grid(sheet, panel, duelled, [list(d.values()) for d in compared.values()]))
    grids = tuple(grid for both in zip(points, pairs, strict=True) for grid in both if grid.rows)
    lead = (
        f"{_lead(replace(sheet, focus=''), 'points and bars, ')} Labels: {sheet.x_label}. Each {sheet.unit[:-1]}'s "
        f"front is interpolated linearly between its runs; two are compared by their mean difference at equal "
        f"{sheet.x_metric_label} over the range that both cover. One is better where the exact sign-flip test over "
        f"{sheet.unit} has p < {ALPHA:g} after Holm's adjustment for all pairs of a panel."
    )
    return Findings(lead, tuple(claims), grids, problems_of(sheet), notes_of(sheet), grids)


def _front_claim(sheet: Sheet, panel: str, duelled: Mapping[tuple[str, str], Duel]) -> str:
    ends = {(m, p.value): p for m in sheet.methods for p in front(sheet, panel, m)}
    if not ends:
        return f"{panel}: no finished run."
    (method, value), best = min(ends.items(), key=lambda end: sheet.sign * (end[1].y.mean or 0.0))
    word = "lowest" if sheet.better == "lower" else "highest"
    text = (
        f"{panel}: {word} mean: {method} at {sheet.x_label} {value:g} ({interval(best.y)}, "
        f"{sheet.x_metric_label} {number(best.x.mean)})."
    )
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
    return text + _too_few(sheet, [*met.values()])


def _points_grid(sheet: Sheet, panel: str) -> Grid:
    headers = ("method", sheet.x_label, sheet.x_metric_label, sheet.label, *_beside_headers(sheet), "n")
    rows = []
    for method in sheet.methods:
        there = {p.value: p for p in front(sheet, panel, method)}
        for x in dict.fromkeys(c.x or 0.0 for c in sheet.of(panel, method)):
            point, beside = there.get(x), _beside(sheet, panel, method, x)
            shown = (EMPTY, EMPTY, *beside, "0")
            if point is not None:
                shown = (interval(point.x), interval(point.y), *beside, str(point.y.units))
            rows.append((method, f"{x:g}", *shown))
    if (begun := origin(sheet, panel)) is not None:
        rows.append(_reference_row(sheet, panel, len(headers), "", *map(number, begun)))
    return Grid(panel, headers, tuple(rows))


def _pairs_grid(
    sheet: Sheet,
    panel: str,
    duelled: Mapping[tuple[str, str], Duel],
    ranges: Sequence[Sequence[tuple[float, float, float]]],
) -> Grid:
    rows = []
    for ((a, b), duel), shared in zip(duelled.items(), ranges, strict=True):
        low, high = (mean_ci_t(g[i] for g in shared).mean for i in (1, 2))
        where = f"{number(low)} to {number(high)}" if shared else EMPTY
        ahead = f"{sum(g[0] > 0 for g in shared)} of {len(shared)}"
        rows.append((f"{a} against {b}", where, interval(duel.difference), ahead, number(duel.p)))
    headers = ("at equal " + sheet.x_metric_label, "range (mean)", "the first is better by", "ahead on", "p")
    return Grid(f"{panel}: fronts in pairs", headers, tuple(rows))


# --- tables --------------------------------------------------------------------------------------


def _summary(sheet: Sheet) -> Findings:
    """Of language models: a table a panel, and what holds over seeds."""
    claims = [panel_claim(sheet, panel) for panel in sheet.panels]
    claims += [_contrast(sheet, *pair) for pair in sheet.contrasts]
    grids = tuple(final_grid(sheet, panel) for panel in sheet.panels)
    return Findings(_lead(sheet, ""), tuple(claims), grids, problems_of(sheet), notes_of(sheet))


def _table(sheet: Sheet) -> Findings:
    letters = {
        reason: chr(ord("a") + i)
        for i, reason in enumerate(dict.fromkeys(c.left_out for c in sheet.cells if c.left_out))
    }
    grids = [
        Grid(
            view.title,
            ("", *view.panels),
            tuple((m, *(_worst_text(sheet, p, m, letters) for p in view.panels)) for m in view.methods),
        )
        for view in sheet.views
    ]
    counts = sorted({len(e.examples) for r in sheet.done if (e := final(r))})
    seeds = "–" if not counts else " to ".join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))
    lead = (
        f"{sheet.label}: the worst of n = {seeds} seeds, each an instance of its own, and in parentheses their mean. "
        f"{EMPTY} where none is declared, letters where nothing was run."
    )
    if bounds := sorted({c.bound for c in sheet.cells if c.bound is not None}):
        lead += f" !: above {listed([number(b) for b in bounds])} where that is promised."
    reasons = [f"({letter}) {reason}." for reason, letter in letters.items()]
    notes = (*reasons, *sheet.notes, *_source(sheet))
    return Findings(lead, _bound_claims(sheet), tuple(grids), problems_of(sheet), notes)


def _worst_text(sheet: Sheet, panel: str, method: str, letters: Mapping[str, str]) -> str:
    cells = sheet.of(panel, method)
    if not cells:
        return ""
    cell = cells[0]
    if cell.left_out:
        return letters[cell.left_out]
    if cell.record is None:
        return "failed" if cell.problem else ""
    evaluation = final(cell.record)
    found = list(values(evaluation, sheet.metric).values())
    if not found:
        return EMPTY
    worst, mean = max(found), sum(found) / len(found)
    text = f"<{ROUNDING:g}" if worst <= ROUNDING else f"{worst:.1e} ({mean:.1e})" if mean > ROUNDING else f"{worst:.1e}"
    total = len(evaluation.examples) if evaluation else 0
    if len(found) < total:
        text += f" {len(found)} of {total}"
    return text + (" !" if cell.bound is not None and worst > cell.bound else "")


def _bound_claims(sheet: Sheet) -> tuple[str, ...]:
    """How many cells keep what is promised of them, and which do not."""
    kept: list[str] = []
    broken: list[str] = []
    for cell in sheet.cells:
        found = [] if cell.record is None else list(values(final(cell.record), sheet.metric).values())
        if found and cell.bound is not None:
            (broken if max(found) > cell.bound else kept).append(f"{cell.name} ({number(max(found))})")
    if not kept and not broken:
        return ()
    limits = listed([number(b) for b in sorted({c.bound for c in sheet.cells if c.bound is not None})])
    text = f"At or under {limits} in {len(kept)} of the {len(kept) + len(broken)} cells of which that is promised"
    return (f"{text}; above: {listed(broken)}." if broken else f"{text}.",)
