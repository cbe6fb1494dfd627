"""Studies: grids with a picture. What one lacks is run by a sweep, and what the results folder holds of it is drawn.

A trial of a study is one run, kept in the results folder under its own id: it is never run twice, and
studies share what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.event_log import FOLDER
from shiq_bench.records.provenance import code_versions, same_code
from shiq_bench.records.record import ENGINE_METRICS, Metric, RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.report import figures
from shiq_bench.report.format import listed
from shiq_bench.report.study_results import StudyResults, Trial
from shiq_bench.runs.progress import say
from shiq_bench.runs.resolved import Resolved
from shiq_bench.runs.settings import merged, resolve
from shiq_bench.studies.schema import Exemption, Settings, Study, find, load, read, shipped
from shiq_bench.sweep.executors import make_executor
from shiq_bench.sweep.grid import Job, job_of
from shiq_bench.sweep.sweep import Options, print_plan, sweep
from shiq_bench.sweep.worker import Resources

#: So many runs of tables, seconds each, are not worth the start of another process.
FEW = 4
#: Metrics that are a distance to the exact optimum, where 0 is the best there can be.
DISTANCES = ("regret", "kl_optimum")
#: Distances of the trained policy to its reference, which sampled paths alone give.
KL_METRICS = ("kl", "kl_k1", "kl_token")


@dataclass(frozen=True, kw_only=True)
class PlannedTrial(Trial):
    """One run of a study: what is to be run, or why not, and what is there of it."""

    resolved: Resolved
    state: Literal["done", "missing", "stale", "left out"] = "missing"

    @property
    def run_id(self) -> str:
        return self.resolved.spec.run_id

    def job(self, study: str = "") -> Job:
        """The trial as a sweep takes it, of several under the study's name too; with a problem if it is not to run."""
        return job_of(f"{study}: {self.name}" if study else self.name, self.resolved, self.left_out)


def overridden(study: Study, given: Settings) -> Study:
    """The study with settings in place of its own ``settings``; panels, methods and what varies still win.

    Raises:
        UserError: one that the study itself gives to every cell, so that it would do nothing.
    """
    taken = {key.rpartition(".")[2]: "varies it" for key in study.vary}
    taken |= {"seed": "says which by replicate"} if study.replicate else {}
    for cells, what in ((study.panels.values(), "panel"), (study.methods.values(), "method")):
        everywhere = set.intersection(*({key.rpartition(".")[2] for key in cell.settings} for cell in cells))
        taken |= dict.fromkeys(everywhere, f"gives it to every {what}")
    for key in given:
        if why := taken.get(key.rpartition(".")[2]):
            raise UserError(f"--set {key}: study {study.name} {why}; change a copy of its file instead")
    if not given:
        return study
    # A path says where something lies on one machine, and not what it is.
    told = ", ".join(f"{key}={Path(value).name if '/' in str(value) else value}" for key, value in given.items())
    note = f"Set by hand: {told}."
    return study.model_copy(update={"settings": merged(study.settings, given), "notes": (*study.notes, note)})


def expand(study: Study, results: Path) -> list[PlannedTrial]:
    """Every cell of a study with every setting resolved, panel by panel, method by method.

    Raises:
        UserError: a setting that the run, the algorithm and the task do not know or take; the line names the cell.
    """
    out = []
    values = next(iter(study.vary.values()), (None,))
    for panel, method, x, seed in product(study.panels, study.methods, values, study.replicate or (None,)):
        resolved = _resolved(study, panel, method, x, seed, results)
        left_out, unbound = (
            next((rule.reason for rule in rules if rule.about(panel, method, resolved.algorithm)), "")
            for rules in (study.leave_out, study.no_bound)
        )
        bound = None if unbound else study.panels[panel].bound
        cell = PlannedTrial(panel, method, x, bound=bound, left_out=left_out, seed=seed, resolved=resolved)
        out.append(replace(cell, state="left out") if left_out else cell)
    _check_metrics(study, out)
    return out


def _resolved(study: Study, panel: str, method: str, x: float | None, seed: int | None, results: Path) -> Resolved:
    task, algo = study.panels[panel].task, study.methods[method].algo
    varied: dict[str, Any] = {**dict.fromkeys(study.vary, x), **({} if seed is None else {"seed": seed})}
    try:
        settings = merged(study.settings, study.panels[panel].settings, study.methods[method].settings)
        made = resolve(algo, task, settings)
        for rule in study.adjust:
            if rule.about(panel, method, made.algorithm):
                settings = merged(settings, rule.settings)
        resolved = resolve(algo, task, merged(settings, varied, {"results": str(results)}))
    except UserError as error:
        raise UserError(f"{study.name}: {method} on {panel}: {error}") from None
    if problem := _misplaced(study, resolved.spec):
        raise UserError(f"{study.name}: {method} on {panel}: {problem}")
    return resolved


def _misplaced(study: Study, spec: RunSpec) -> str:
    """What keeps a run from having the evaluation that the study shows."""
    if spec.model == "table":
        return "a table trains its seeds in one run: set seeds, and leave out replicate" if study.replicate else ""
    if not study.replicate:
        return f"model {spec.model} has one run a seed: add the seeds, such as 'replicate: [0, 1, 2]'"
    if study.split not in spec.splits:
        return f"split is {study.split}, and {spec.eval_splits} is evaluated: add it to eval_splits"
    if study.mode == "sampled" and not spec.eval_samples:
        return "mode is sampled, and eval_samples is 0: raise it, or set mode: greedy"
    return ""


def metrics_of(study: Study, cell: PlannedTrial) -> dict[str, Metric]:
    """What the evaluations of a cell hold, by name."""
    own = {m.name: m for m in cell.resolved.task.metrics if not (study.replicate and m.exact)}
    return {m.name: m for m in ENGINE_METRICS} | own if study.replicate else own


def _check_metrics(study: Study, cells: Sequence[PlannedTrial]) -> None:
    for cell in cells:
        names = metrics_of(study, cell)
        for name in filter(None, (study.metric, *study.reach, study.x_metric)):
            if name not in names:
                raise UserError(f"{study.name}: {cell.panel} has no metric {name!r}{suggest(name, sorted(names))}")
            if study.replicate and study.mode == "greedy" and name in KL_METRICS:
                raise UserError(f"{study.name}: {name} is measured on sampled answers alone: leave out mode: greedy")
        if names[study.metric].better == "neither":
            raise UserError(f"{study.name}: {study.metric} has no better and no worse: nothing can win by it")


def look_up(
    trials: Sequence[PlannedTrial],
    found: Callable[[RunSpec], RunRecord | None] = lambda spec: run_store.find(spec.results, spec.run_id),
) -> list[PlannedTrial]:
    """The trials with what is there of them now.

    A finished run is one that is done or diverged, which on tables it would do again. ``stale`` is
    one that other code has made: it counts as finished, and is not mixed with others unasked.
    """
    return [trial if trial.left_out else _looked_up(trial, found(trial.resolved.spec)) for trial in trials]


def _looked_up(trial: PlannedTrial, record: RunRecord | None) -> PlannedTrial:
    if record is None or record.status not in ("done", "diverged"):
        return replace(trial, record=None, problem="", state="missing")
    problem = "" if record.status == "done" else f"{record.status}: {record.error}"
    same = same_code(record, type(trial.resolved.algorithm), type(trial.resolved.task))
    return replace(trial, record=shortened(record), problem=problem, state="done" if same else "stale")


def shortened(record: RunRecord) -> RunRecord:
    """Losses of every update, and dialogues, are most of a record, and no picture shows them."""
    evaluations = (replace(e, examples=[_numbers(x) for x in e.examples]) for e in record.evaluations)
    return replace(record, training=(), evaluations=tuple(evaluations))


def _numbers(example: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in example.items() if k == "prompt_id" or not isinstance(v, str | list | dict)}


def refuse_mixture(study: Study, cells: Sequence[PlannedTrial]) -> None:
    """Let nothing be drawn, unasked, from runs of different versions of the code.

    Raises:
        UserError: some finished runs were made by other code than the rest are, or would be.
    """
    stale = [c for c in cells if c.state == "stale"]
    versions = code_versions(c.record for c in stale if c.record is not None)
    if stale and (len(stale) < sum(not c.left_out for c in cells) or versions):
        raise UserError(
            f"{study.name}: {len(stale)} of its finished runs were made by other code: add --fresh to run them again, "
            "--allow-mixed to use them as they are, or --results for another folder"
        )


def study_jobs(name: str, given: Settings, results: Path) -> list[Job]:
    """The runs of one study, for a sweep.

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
        shown = [
            replace(trial, record=None, problem=problem) if (problem := problems.get(trial.run_id)) else trial
            for trial in look_up(trials)
        ]
        failed += sum(bool(trial.problem) for trial in shown)
        made = sheet(study, shown)
        written = figures.write(made, out)
        console.print(figures.terminal(made))
        say(console, f"written: {', '.join(map(str, written))}\n")
    if tabular := [study.name for study, _ in planned if not study.replicate]:
        names = list(dict.fromkeys([*(path.stem for path in find("all")), *tabular]))
        say(console, f"index: {figures.index(out, names)}")
    return failed


def sheet(study: Study, trials: Sequence[PlannedTrial]) -> StudyResults:
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
        cells=tuple(trials),
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
        study = read(path)
        apart = " (language models: not part of all)" if study.get("replicate") else ""
        say(console, f"{name:<{width}}{study['title']}{apart}")
