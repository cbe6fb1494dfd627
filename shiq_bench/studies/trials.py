"""The trials of a study: which runs it is made of, and what the results folder holds of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.provenance import code_versions, same_code
from shiq_bench.records.record import ENGINE_METRICS, Evaluation, Metric, RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.report.study_results import Trial
from shiq_bench.runs.resolved import Resolved
from shiq_bench.runs.settings import merged, resolve
from shiq_bench.studies.schema import Settings, Study
from shiq_bench.sweep.grid import Job, job_of

#: Distances of the trained policy to its reference, which sampled paths alone give.
KL_METRICS = ("kl", "kl_k1", "kl_token")

State = Literal["done", "missing", "stale", "left out"]


@dataclass(frozen=True)
class PlannedTrial:
    """One run of a study: what is to be run, or why not, and what is there of it."""

    panel: str
    method: str
    x: float | None
    resolved: Resolved
    left_out: str = ""
    bound: float | None = None
    record: RunRecord | None = None
    state: State = "missing"
    seed: int | None = None

    @property
    def run_id(self) -> str:
        return self.resolved.spec.run_id

    @property
    def shown(self) -> Trial:
        """As reporting sees it."""
        record, problem = self.record, ""
        if record is not None and record.status != "done":
            problem = f"{record.status}: {record.error}"
        return Trial(self.panel, self.method, self.x, record, self.bound, self.left_out, problem, self.seed)

    def job(self, study: str = "") -> Job:
        """The trial as a sweep takes it, with a problem where it is left out or its method and task do not fit.

        Args:
            study: what its name begins with, where a sweep is of several.
        """
        made, name = self.resolved, f"{study}: {self.shown.name}" if study else self.shown.name
        if self.left_out:
            return Job(name, made.spec.algo, made.spec.task, made.values, problem=self.left_out)
        return job_of(name, made)


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
        UserError: a setting that the run, the algorithm and the task do not know or take; the line
            names the cell.
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
        state: State = "left out" if left_out else "missing"
        out.append(PlannedTrial(panel, method, x, resolved, left_out, bound, state=state, seed=seed))
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
        return replace(trial, record=None, state="missing")
    same = same_code(record, type(trial.resolved.algorithm), type(trial.resolved.task))
    return replace(trial, record=shortened(record), state="done" if same else "stale")


def shortened(record: RunRecord) -> RunRecord:
    """Losses of every update, and dialogues, are most of a record, and no picture shows them."""
    return replace(record, training=(), evaluations=tuple(_numbers(e) for e in record.evaluations))


def _numbers(evaluation: Evaluation) -> Evaluation:
    bare = [
        {k: v for k, v in e.items() if k == "prompt_id" or not isinstance(v, str | list | dict)}
        for e in evaluation.examples
    ]
    return replace(evaluation, examples=bare)


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
