"""A sweep from its jobs to their records: what is there, what is left, who does it, and how it ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from shiq_bench.records import leases, run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.event_log import logged
from shiq_bench.records.files import check_writable
from shiq_bench.records.hashing import canonical_json
from shiq_bench.records.record import RunRecord
from shiq_bench.records.spec import conditions
from shiq_bench.runs.progress import about, say
from shiq_bench.runs.resolved import Resolved
from shiq_bench.sweep.executors import Executor
from shiq_bench.sweep.grid import Job, fitting, lease_of, write_plan
from shiq_bench.sweep.status import Line, State, View, over, summary
from shiq_bench.sweep.worker import log_path, settled


@dataclass(frozen=True)
class Options:
    """How a sweep deals with what is already there.

    Attributes:
        retry: try again what failed or diverged.
        fresh: run again what other code has made.
        allow_mixed: leave what other code has made as it is.
        plugins: files that every worker loads.
    """

    retry: bool = False
    fresh: bool = False
    allow_mixed: bool = False
    plugins: tuple[Path, ...] = ()


def sweep(
    jobs: Iterable[Job], results: Path, executor: Executor, options: Options, console: Console, log: Console
) -> list[Line]:
    """Run what is left of some jobs, and say how each stands.

    Args:
        log: where progress goes.

    Raises:
        UserError: nothing can be run, some runs were made by other code, or no worker can be started.
        KeyboardInterrupt: asked to stop; what is finished stays so, and the rest can be gone on with.
    """
    good, bad = fitting(jobs := list(jobs))
    for job in bad:
        say(log, f"left out: {job.name}: {job.problem}")
    if equal := len(jobs) - len(good) - len(bad):
        say(log, f"{equal} more are equal to one of these {len(good)}, and are not run twice")
    check_writable(results)
    since = logged(results)  # before the records are read: what another sweep finishes meanwhile is news
    found = {job.run_id: run_store.find(results, job.run_id) for job in good}
    before = {job.run_id: _state(job, found[job.run_id], options) for job in good}
    todo = [job for job in good if not over(before[job.run_id])]
    with View(results, good, since, before, log) as view:
        if todo:
            plan = write_plan(
                results, good, since=since, retry=options.retry, fresh=options.fresh, plugins=options.plugins
            )
            with leases.acquire(lease_of(plan)), executor:
                executor.start(plan, len(todo))
                while not view.refresh(workers := executor.alive()):
                    if not workers and not view.refresh(0):
                        where = plan.with_suffix(".log")
                        raise UserError(f"every worker has ended, and {summary(view.lines)}: see {where}")
                    time.sleep(executor.pause)
        else:
            view.refresh(0)
    say(console, f"{len(good)} runs: {summary(view.lines)}" + (f"; {len(bad)} left out" if bad else ""))
    for line in view.lines:
        if line.state in ("failed", "diverged"):
            record = found[line.run_id]
            why = line.note or (record.error if record else "") or "no reason is known"
            say(console, f"{line.state}: {line.name}: {why}")
            if (path := log_path(results, line.run_id)).exists():
                say(console, f"  what it printed: {path}")
    return view.lines


def check_ended(lines: Sequence[Line], retry: bool) -> None:
    """Let a sweep end with an error where some of its runs did.

    Raises:
        UserError: some failed or diverged.
    """
    if lost := sum(line.state != "done" for line in lines):
        again = "" if retry else "; --retry tries them again"
        raise UserError(f"{lost} of {len(lines)} runs did not end well: see the lines above{again}")


def _state(job: Job, record: RunRecord | None, options: Options) -> State:
    """How a job stands before the sweep.

    Raises:
        UserError: other code has finished it, and nobody said what to do about that.
    """
    if record is None or record.status == "started" or not settled(job, record, options.retry, options.fresh):
        return "waiting"
    if not options.allow_mixed and not job.same_code(record):
        raise UserError(
            f"{job.run_id} ({job.name}) was made by other code: add --fresh to run it again, --allow-mixed to "
            "leave it as it is, or --results for another folder"
        )
    return record.status


def print_plan(jobs: Iterable[Job], results: Path, options: Options, console: Console) -> None:
    """What a sweep is made of, what of it is there, and what the rest costs at most."""
    good, bad = fitting(jobs)
    found = {job.run_id: run_store.find(results, job.run_id) for job in good}
    states = {job.run_id: _there(job, found[job.run_id]) for job in good}
    made = {job.run_id: job.resolved() for job in good}
    costs = {run_id: cost(resolved) for run_id, resolved in made.items()}
    for job in good:
        trained, drawn = costs[job.run_id]
        tokens = f", at most {trained:,} tokens trained on and {drawn:,} drawn" if trained else ""
        say(console, f"{job.run_id}  {job.name}  ({states[job.run_id]}{tokens})")
    for job in bad:
        say(console, f"left out: {job.name}: {job.problem}")
    counts = Counter(states.values())
    said = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    left = [job for job in good if not settled(job, found[job.run_id], options.retry, options.fresh)]
    trained, drawn = (sum(costs[job.run_id][i] for job in left) for i in (0, 1))
    say(console, f"{len(good)} runs: {said}" + (f"; {len(bad)} left out" if bad else ""))
    if trained:
        say(console, f"left: at most {trained:,} tokens trained on and {drawn:,} drawn, the reference's aside")
    references: dict[str, bool] = {}  # whether it is there: where a run that shares it has ended
    for job in good:
        spec, record = made[job.run_id].spec, found[job.run_id]
        if spec.model != "table":
            key = canonical_json(conditions(spec))
            references[key] = references.get(key, False) or bool(record and record.evaluations)
    if references:
        there = f"{sum(references.values())} of them are there"
        say(console, f"references: {len(references)}, each evaluated once for all its runs; {there}")
    seconds = [sum(r.timings.values()) for r in found.values() if r is not None and r.status == "done"]
    if seconds and left:
        say(console, f"about {about(sum(seconds) / len(seconds) * len(left))} on one worker, by what is there")


def _there(job: Job, record: RunRecord | None) -> str:
    if record is None:
        return "missing"
    return record.status if job.same_code(record) else f"{record.status}, by other code"


def cost(made: Resolved) -> tuple[int, int]:
    """Tokens that a run trains on, and tokens that its policy draws for evaluation, both at most; tables have none.

    Its own samples, where it learns from those, are among the former. An episode is counted as if it
    filled the longest dialogue, which with several turns or a demonstration it may; lm-eval's documents are not.
    """
    spec = made.spec
    if spec.model == "table":
        return 0, 0
    episodes = made.fresh_samples if made.fresh else spec.samples + spec.gold
    trained = spec.steps * spec.groups_per_step * episodes * spec.max_length
    prompts = sum(len(made.task.prompts(split)[: spec.eval_limit or None]) for split in spec.splits)
    return trained, prompts * (1 + spec.eval_samples) * spec.max_length
