"""Studies: a YAML file that says what is compared, run on tables and drawn from its records.

A cell of a study is one run of :func:`shiq_bench.runs.execute.execute`, kept in the results folder under its
own id: it is never run twice, and studies share what they have in common.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, get_args

from shiq_bench.records.errors import UserError
from shiq_bench.report import figures
from shiq_bench.report.prose import listed
from shiq_bench.report.study_results import StudyResults, Trial
from shiq_bench.studies.schema import Rule, Settings, Study, find, load, of_language_models, shipped, title_of
from shiq_bench.studies.trials import (
    PlannedTrial,
    State,
    expand,
    look_up,
    metrics_of,
    overridden,
    refuse_mixture,
    shortened,
)

if TYPE_CHECKING:
    from rich.console import Console


def run_missing(
    study: Study, cells: Sequence[PlannedTrial], console: Console, *, again: bool = False
) -> tuple[list[PlannedTrial], list[Trial]]:
    """Run every cell that has no finished record; one that fails is reported in a line, and the rest go on.

    Args:
        again: also those that other code has made.

    Returns:
        The cells with their records, and all of them as reporting sees them, failures said.

    Raises:
        KeyboardInterrupt: asked to stop; what is finished stays so.
    """
    from shiq_bench.runs.execute import execute

    todo = {
        i for i, c in enumerate(cells) if not c.left_out and (c.state == "missing" or (again and c.state == "stale"))
    }
    out, shown = list(cells), [c.shown for c in cells]
    with Progress(study.name, len(todo), console) as progress:
        for i in sorted(todo):
            cell = cells[i]
            progress.begin(shown[i].name)
            try:
                # What other code left unfinished is of no use, and finished runs of its are asked about before.
                record = execute(cell.resolved, resume=True, fresh="foreign", report=progress.within)
            except UserError as error:
                problem = " ".join(str(error).split())
                out[i], shown[i] = replace(cell, record=None), replace(shown[i], record=None, problem=problem)
                progress.end(f"failed: {problem}")
                continue
            out[i] = replace(cell, record=shortened(record), state="done")
            shown[i] = out[i].shown
            progress.end("" if record.status == "done" else f"{record.status}: {record.error}")
    return out, [replace(c, problem=unfinished(c)) if c.record and not c.problem else c for c in shown]


def unfinished(cell: Trial) -> str:
    """Why a cell's record is not of a finished run; "" where it is."""
    assert cell.record is not None
    return "" if cell.record.status == "done" else f"{cell.record.status}: {cell.record.error}"


class Progress:
    """A bar over the cells of a study with an estimate of what is left; in a log, a line a cell."""

    def __init__(self, name: str, total: int, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TaskID,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self.name, self.total, self.console = name, total, console
        self._done = 0
        self._start = self._begun = time.perf_counter()
        self._cell = ""
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self.total and self.console.is_terminal:
            self._task = self._bar.add_task(self.name, total=self.total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            self._print(f"{self.name}: stopped; the same command goes on with the {self.total - self._done} runs left")

    def begin(self, cell: str) -> None:
        self._cell, self._begun = cell, time.perf_counter()
        if self._task is not None:
            self._bar.update(self._task, description=f"{self.name}: {cell}")

    def within(self, what: str, done: int, total: int) -> None:
        """How far the run itself is, as part of the bar."""
        if self._task is not None and what == "training" and total:
            self._bar.update(self._task, completed=self._done + done / total)

    def end(self, problem: str) -> None:
        self._done += 1
        now = time.perf_counter()
        if self._task is not None:
            self._bar.update(self._task, completed=self._done)
        if problem:
            self._print(f"{self.name}: {self._cell}: {problem}")
        elif self._task is None:
            left = (now - self._start) / self._done * (self.total - self._done)
            self._print(
                f"{self.name} [{self._done}/{self.total}] {self._cell}: {now - self._begun:.1f} s, {about(left)} left"
            )

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def about(seconds: float) -> str:
    """``40 s``, ``3 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def sheet(study: Study, cells: Sequence[PlannedTrial], shown: Sequence[Trial]) -> StudyResults:
    """A study and its records as reporting sees them."""
    known = metrics_of(study, cells[0])
    metric, titles = known[study.metric], {name: m.title for name, m in known.items()}
    assert metric.better != "neither"
    return StudyResults(
        name=study.name,
        title=study.title,
        asks=study.asks,
        kind=study.kind,
        metric=study.metric,
        label=metric.title,
        better=metric.better,
        focus=study.focus,
        x_label=study.x_label,
        panels=tuple(study.panels),
        methods=tuple(study.methods),
        views=study.views,
        cells=tuple(shown),
        log_y=study.scale == "log",
        log_x=study.kind == "curves" or study.x_scale == "log",
        floor=study.floor,
        reach=(*study.reach, titles[study.reach[0]]) if study.reach else None,
        contrasts=study.contrasts,
        notes=(*study.notes, *(_unbound(rule, study) for rule in study.no_bound)),
        split=study.split,
        mode=study.mode,
        x_metric=study.x_metric,
        x_metric_label=titles.get(study.x_metric, ""),
        normalise=study.normalise,
    )


def _unbound(rule: Rule, study: Study) -> str:
    who = f"methods that declare {rule.needs}" if rule.needs else listed(rule.methods)
    where = "" if rule.panels == tuple(study.panels) else f" on {listed(rule.panels)}"
    return f"Nothing is promised for {who}{where}: {rule.reason}."


def main(
    name: str,
    results: Path,
    out: Path,
    console: Console,
    log: Console,
    *,
    dry_run: bool = False,
    fresh: bool = False,
    allow_mixed: bool = False,
    given: Settings | None = None,
) -> int:
    """Run and draw the studies of a name; every file is checked before anything runs.

    Args:
        log: where progress goes.
        given: settings that win over those of the file, as in :func:`overridden`.

    Returns:
        Cells that failed.

    Raises:
        UserError: as :func:`find`, :func:`load`, :func:`overridden`, :func:`expand` and :func:`refuse_mixture`.
    """
    studies = [overridden(load(path), given or {}) for path in find(name)]
    expanded = {study.name: expand(study, results) for study in studies}
    failed = 0
    for study in studies:
        # Looked up only now: an earlier study may have run the same cell.
        cells = look_up(expanded[study.name])
        if dry_run:
            _print_plan(study, cells, console)
            continue
        if not (fresh or allow_mixed):
            refuse_mixture(study, cells)
        cells, shown = run_missing(study, cells, log, again=fresh)
        failed += sum(bool(c.problem) for c in shown)
        made = sheet(study, cells, shown)
        written = figures.write(made, out)
        console.print(figures.terminal(made))
        console.print(f"written: {', '.join(map(str, written))}\n", soft_wrap=True, highlight=False, markup=False)
    tabular = [s.name for s in studies if not s.replicate]
    if tabular and not dry_run:
        names = list(dict.fromkeys([*(path.stem for path in find("all")), *tabular]))
        console.print(f"index: {figures.index(out, names)}", soft_wrap=True, highlight=False, markup=False)
    return failed


def _print_plan(study: Study, cells: Sequence[PlannedTrial], console: Console) -> None:
    """What would be run, and about how long it takes by what the finished runs of the study took."""
    counts = {
        state: sum((c.state if not c.left_out else "left out") == state for c in cells) for state in get_args(State)
    }
    seconds = [sum(c.record.timings.values()) for c in cells if c.record is not None]
    guess = f", {about(sum(seconds) / len(seconds) * counts['missing'])}" if seconds and counts["missing"] else ""
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    console.print(f"{study.name}: {study.title}", style="bold", highlight=False, markup=False)
    console.print(f"  {len(cells)} runs: {said}{guess}", highlight=False, markup=False)
    for cell in cells:
        state = f"left out: {cell.left_out}" if cell.left_out else cell.state
        line = f"  {cell.resolved.spec.run_id}  {cell.shown.name}  ({state})"
        console.print(line, highlight=False, markup=False, soft_wrap=True, style="dim")


def print_list(console: Console) -> None:
    """The shipped studies, one line each; no algorithm is imported for it."""
    width = 2 + max(map(len, shipped()))
    for name, path in shipped().items():
        apart = " (language models: not part of all)" if of_language_models(path) else ""
        console.print(f"{name:<{width}}{title_of(path)}{apart}", highlight=False, markup=False, soft_wrap=True)
