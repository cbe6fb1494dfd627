"""A study and its records as reporting sees them, and the numbers that everything shown is made of.

A method wins against another where the t test of their paired differences over the units that both were trained on
(a table's instances, the seeds of language models), Holm-adjusted over all that a caption compares, says so, with six
such units or more; nothing else is a win. Before the adjustment it is the test of the interval that is shown (see
:func:`shiq_bench.stats.tests.paired_p`); intervals are not adjusted, so one may exclude 0 where nothing is decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import inf
from typing import Literal

from shiq_bench.records.provenance import code_versions
from shiq_bench.records.record import Evaluation, RunRecord
from shiq_bench.report.blocks import last
from shiq_bench.report.document import Table
from shiq_bench.report.format import listed, span
from shiq_bench.stats.intervals import Estimate, mean_ci_t
from shiq_bench.stats.ranking import ALPHA, BOLD_SEEDS
from shiq_bench.stats.tests import holm, paired_p

Kind = Literal["curves", "against", "table", "front", "across"]
Verdict = Literal["wins", "loses", "undecided"]


@dataclass(frozen=True)
class Trial:
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
class StudyResults:
    """A study and its records: all that a picture or a table is made of.

    Attributes:
        metric, label: what is shown, by its name in the records and in words.
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
    cells: tuple[Trial, ...]
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

    def of(self, panel: str, method: str) -> list[Trial]:
        """Cells of one line, in the order of what varies."""
        return sorted(self._lines.get((panel, method), ()), key=lambda c: -inf if c.x is None else c.x)

    @cached_property
    def _lines(self) -> dict[tuple[str, str], list[Trial]]:
        found: dict[tuple[str, str], list[Trial]] = {}
        for c in self.cells:
            found.setdefault((c.panel, c.method), []).append(c)
        return found

    @cached_property
    def letters(self) -> dict[str, str]:
        """Reason for leaving cells out -> the letter that stands for it in a table."""
        reasons = dict.fromkeys(c.left_out for c in self.cells if c.left_out)
        return {reason: chr(ord("a") + i) for i, reason in enumerate(reasons)}

    @property
    def done(self) -> list[RunRecord]:
        """Every finished record."""
        return [c.record for c in self.cells if c.record is not None]


@dataclass(frozen=True)
class Findings:
    """What stands under a picture: how to read it, what it shows, the numbers behind that, and what is missing.

    Attributes:
        embedded: tables that belong under the picture itself.
    """

    lead: str
    claims: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    embedded: tuple[Table, ...] = ()

    @classmethod
    def of(
        cls, study: StudyResults, lead: str, claims: Sequence[str], tables: Sequence[Table], under: Sequence[Table] = ()
    ) -> Findings:
        """With what the study lacks, and its notes; ``under`` the picture are some of its tables."""
        return cls(lead, tuple(claims), tuple(tables), problems_of(study), notes_of(study), tuple(under))


def values(evaluation: Evaluation | None, metric: str, floor: float = 0.0) -> dict[str, float]:
    """Instance -> the metric, where it was measured; what is under the floor counts as the floor."""
    if evaluation is None:
        return {}
    found = {str(e["prompt_id"]): e.get(metric) for e in evaluation.examples}
    return {k: max(float(v), floor) if floor else float(v) for k, v in found.items() if v is not None}


def shown(study: StudyResults, record: RunRecord, policy: str = "trained") -> Evaluation | None:
    """The policy's last evaluation, of language models where the study looks."""
    return last(record, policy, (study.split, study.mode) if study.split else None)


def _units(study: StudyResults, cell: Trial, metric: str = "", policy: str = "trained") -> dict[str, float]:
    """Unit -> the metric of one run at its end: a value an instance of a table, one in all of a language model."""
    assert cell.record is not None
    metric = metric or study.metric
    floor = study.floor if metric == study.metric else 0.0
    evaluation = shown(study, cell.record, policy)
    if not study.split:
        return values(evaluation, metric, floor)
    mean = None if evaluation is None else evaluation.metrics.get(metric, {}).get("mean")
    # The reference does not depend on the seed: it is one.
    name = f"seed {cell.seed}" if policy == "trained" else policy
    return {} if mean is None else {name: max(mean, floor) if floor else mean}


def measured(study: StudyResults, panel: str, method: str, metric: str = "") -> dict[float | None, dict[str, float]]:
    """What the study varies -> unit -> the metric at the end; the study's metric unless another is asked for."""
    out: dict[float | None, dict[str, float]] = {}
    for cell in study.of(panel, method):
        if cell.record is not None:
            out.setdefault(cell.x, {}).update(_units(study, cell, metric))
    return out


def series(study: StudyResults, panel: str, method: str, metric: str = "") -> list[tuple[float, Estimate]]:
    """A line of a picture: the metric's mean over units with its interval, at every x.

    x is the number of updates of a curve, which starts at the first one, or what the study varies.
    """
    if study.kind == "curves":
        evaluations = [e for c in study.of(panel, method) if c.record is not None for e in c.record.curve]
        curve = [e for e in evaluations if e.policy == "trained" and e.step]
        found = [(float(e.step), mean_ci_t(values(e, study.metric, study.floor).values())) for e in curve]
    else:
        found = [(x or 0.0, mean_ci_t(v.values())) for x, v in measured(study, panel, method, metric).items()]
    return [(x, e) for x, e in found if e.mean is not None]


def start(study: StudyResults, panel: str, metric: str = "") -> Estimate:
    """The metric of the policy that training starts from, over the panel's units."""
    every: dict[str, float] = {}
    for cell in study.cells:
        if cell.panel == panel and cell.record is not None:
            every |= _units(study, cell, metric, "reference")
    return mean_ci_t(every.values())


@dataclass(frozen=True)
class PairwiseTest:
    """The focus against another method at one x.

    Attributes:
        difference: the other minus the focus where lower is better, else the reverse: positive is the focus's.
        same: equal on every unit.
        p: that belongs to the difference's interval, Holm-adjusted over all that the caption compares.
    """

    method: str
    x: float | None
    difference: Estimate
    same: bool
    p: float | None

    @property
    def verdict(self) -> Verdict:
        """A win or a loss needs an adjusted p below 5% and as many units as a bold number of a table."""
        few = self.difference.units < BOLD_SEEDS
        if few or self.p is None or self.p >= ALPHA or not self.difference.mean:
            return "undecided"
        return "wins" if self.difference.mean > 0 else "loses"


def paired_tests(compared: Sequence[tuple[str, float | None, Mapping[str, float]]]) -> list[PairwiseTest]:
    """Paired differences by unit, one mapping a comparison, tested together: positive speaks for the focus."""
    estimates = [mean_ci_t(d.values()) for _, _, d in compared]
    adjusted = holm([paired_p(e, list(d.values())) for e, (_, _, d) in zip(estimates, compared, strict=True)])
    return [
        PairwiseTest(method, x, e, bool(d) and not any(d.values()), p)
        for (method, x, d), e, p in zip(compared, estimates, adjusted, strict=True)
    ]


def focus_tests(study: StudyResults, panel: str) -> list[PairwiseTest]:
    """The focus against every other method of a panel, wherever both have a record."""
    ours = measured(study, panel, study.focus)
    others = [m for m in study.methods if m != study.focus]
    return paired_tests(
        [
            (method, x, gain_of(study, ours[x], theirs))
            for method in others
            for x, theirs in measured(study, panel, method).items()
            if x in ours
        ]
    )


def gain_of(study: StudyResults, ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Unit -> by how much ours is better, where both were measured."""
    return {k: study.sign * (theirs[k] - ours[k]) for k in sorted(ours.keys() & theirs.keys())}


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
    if study.kind == "table" and not study.split:
        return [f"({letter}) {reason}." for reason, letter in study.letters.items()]
    out = []
    for reason in study.letters:
        cells = [c for c in study.cells if c.left_out == reason]
        methods = [m for m in study.methods if any(c.method == m for c in cells)]
        panels = [p for p in study.panels if any(c.panel == p for c in cells)]
        out.append(f"Left out: {listed(methods)} on {listed(panels)}: {reason}.")
    return out


def notes_of(study: StudyResults) -> tuple[str, ...]:
    """What was left out and why, the study's own remarks, deviations, and where the records are from."""
    # Of language models alone: where they departed from what was asked of them.
    counts = Counter(d for r in study.done if study.split for d in r.deviations)
    deviations = [f"In {n} of {len(study.done)} runs: {text}." for text, n in counts.items()]
    sources = Counter(r.source_hash or "unknown" for r in study.done)
    text = ", ".join(f"{n} of source {h}" for h, n in sorted(sources.items()))
    mixed = "MIXED SOURCES: these runs come from different versions of the code."
    warning = [mixed] if code_versions(study.done) else []
    return (*_left_out(study), *study.notes, *deviations, f"Records: {text or 'none'}.", *warning)


def too_few(study: StudyResults, found: Sequence[PairwiseTest]) -> str:
    """Said where no verdict could have been other than undecided."""
    n = max((d.difference.units for d in found), default=0)
    if not found or n >= BOLD_SEEDS:
        return ""
    return f" n = {n} {study.unit} are too few to call a winner: that takes {BOLD_SEEDS}."
