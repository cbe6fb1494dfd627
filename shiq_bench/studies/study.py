"""Studies: grids with a picture. What one lacks is run by a sweep, and what the results folder holds of it is drawn.

A trial of a study is one run, kept in the results folder under its own id: it is never run twice, and
studies share what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shiq_bench.records.errors import UserError
from shiq_bench.records.event_log import FOLDER
from shiq_bench.report import figures
from shiq_bench.report.format import listed
from shiq_bench.report.study_results import StudyResults, Trial
from shiq_bench.runs.progress import say
from shiq_bench.studies.schema import Exemption, Settings, Study, find, load, shipped
from shiq_bench.studies.trials import PlannedTrial, expand, look_up, metrics_of, overridden, refuse_mixture
from shiq_bench.sweep.executors import make_executor
from shiq_bench.sweep.grid import Job
from shiq_bench.sweep.resources import Resources
from shiq_bench.sweep.sweep import Options, print_plan, sweep

if TYPE_CHECKING:
    from rich.console import Console

#: So many runs of tables, seconds each, are not worth the start of another process.
FEW = 4
#: Metrics that are a distance to the exact optimum, where 0 is the best there can be.
DISTANCES = ("regret", "kl_optimum")


def study_jobs(name: str, given: Settings, results: Path) -> list[Job]:
    """The runs of one study, for a sweep.

    Args:
        given: settings that win over those of the file, as in :func:`overridden`.

    Raises:
        UserError: as :func:`find`, :func:`load`, :func:`overridden` and :func:`expand`, or the name is ``all``.
    """
    (path, *more) = find(name)
    if more:
        raise UserError("a sweep is of one study: name it, and see shiq-bench study --list")
    return [trial.job() for trial in expand(overridden(load(path), given), results)]


def print_studies(name: str, given: Settings, results: Path, console: Console, *, fresh: bool = False) -> None:
    """What the studies of a name are made of, what of it is there, and what the rest costs at most.

    Raises:
        UserError: as :func:`study_jobs`.
    """
    for study in [overridden(load(path), given) for path in find(name)]:
        say(console, f"{study.name}: {study.title}")
        jobs = [trial.job() for trial in expand(study, results)]
        print_plan(jobs, results, Options(retry=True, fresh=fresh), console)


def run_studies(
    name: str, given: Settings, results: Path, out: Path, console: Console, log: Console, *, fresh: bool = False,
    allow_mixed: bool = False, executor: str = "", workers: int = 0, plugins: Sequence[Path] = (),
) -> int:  # fmt: skip
    """Run what the studies of a name lack, in one sweep, and draw each; every file is checked before anything runs.

    Args:
        given: settings that win over those of the file, as in :func:`overridden`.
        out: folder of pictures.
        log: where progress goes.
        fresh: run again what other code has made.
        allow_mixed: draw runs of different code together.
        executor: "": this process for few runs of tables, else workers of this machine.
        plugins: files that every worker loads.

    Returns:
        Trials that failed or diverged.

    Raises:
        UserError: as :func:`study_jobs`, :func:`refuse_mixture`, :func:`make_executor` and :func:`sweep`.
        KeyboardInterrupt: asked to stop; what is finished stays so.
    """
    planned = []
    for study in [overridden(load(path), given) for path in find(name)]:
        planned.append((study, look_up(expand(study, results))))
        if not (fresh or allow_mixed):
            refuse_mixture(*planned[-1])
    wanted = ("missing", "stale") if fresh else ("missing",)
    todo = [(study, trial) for study, trials in planned for trial in trials if trial.state in wanted]
    few = len(todo) <= FEW and all(trial.resolved.spec.model == "table" for _, trial in todo)
    default = "inline" if few and not workers else "local"
    workplace = make_executor(executor or default, Resources(workers), results / FOLDER / "slurm")
    jobs = [trial.job(study.name if len(planned) > 1 else "") for study, trial in todo]
    problems = {trial.run_id: job.problem for (_, trial), job in zip(todo, jobs, strict=True) if job.problem}
    if not all(job.problem for job in jobs):
        # What is handed over is to be run, whatever an earlier attempt or other code has left of it.
        options = Options(retry=True, fresh=True, plugins=tuple(plugins))
        lines = sweep(jobs, results, workplace, options, log, log)
        problems |= {line.run_id: line.note or "no reason is known" for line in lines if line.state == "failed"}
    failed = 0
    for study, trials in planned:
        trials = look_up(trials)
        shown = [_outcome(trial, problems.get(trial.run_id, "")) for trial in trials]
        failed += sum(bool(trial.problem) for trial in shown)
        made = sheet(study, trials, shown)
        written = figures.write(made, out)
        console.print(figures.terminal(made))
        say(console, f"written: {', '.join(map(str, written))}\n")
    if tabular := [study.name for study, _ in planned if not study.replicate]:
        names = list(dict.fromkeys([*(path.stem for path in find("all")), *tabular]))
        say(console, f"index: {figures.index(out, names)}")
    return failed


def _outcome(trial: PlannedTrial, problem: str) -> Trial:
    return replace(trial.shown, record=None, problem=problem) if problem else trial.shown


def sheet(study: Study, trials: Sequence[PlannedTrial], shown: Sequence[Trial]) -> StudyResults:
    """A study and its records as reporting sees them."""
    known = metrics_of(study, trials[0])
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
        x_label=study.x_label or next(iter(study.vary), ""),
        panels=tuple(study.panels),
        methods=tuple(study.methods),
        views=study.shown,
        cells=tuple(shown),
        # A table's distances to an optimum span decades.
        log_y=metric.better == "lower" and not study.replicate and study.kind != "front",
        log_x=study.kind == "curves" or study.x_scale == "log",
        floor=study.floor,
        reach=next(((name, value, titles[name]) for name, value in study.reach.items()), None),
        contrasts=study.contrast,
        notes=(*study.notes, *(_unbound(rule, study) for rule in study.no_bound)),
        split=study.split if study.replicate else "",
        mode=study.mode if study.replicate else "",
        x_metric=study.x_metric,
        x_metric_label=titles.get(study.x_metric, ""),
        normalise="" if study.kind != "across" else "optimum" if study.metric in DISTANCES else "minmax",
    )


def _unbound(rule: Exemption, study: Study) -> str:
    who = f"methods that declare {rule.needs}" if rule.needs else listed(rule.methods or tuple(study.methods))
    where = f" on {listed(rule.panels)}" if 0 < len(rule.panels) < len(study.panels) else ""
    return f"Nothing is promised for {who}{where}: {rule.reason}."


def print_list(console: Console) -> None:
    """The shipped studies, one line each; no algorithm is imported for it."""
    width = 2 + max(map(len, shipped()))
    for name, path in shipped().items():
        study = load(path)
        apart = " (language models: not part of all)" if study.replicate else ""
        say(console, f"{name:<{width}}{study.title}{apart}")
