"""A sweep from its jobs to their records: what is there, what is left, who does it, and how it ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
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
from shiq_bench.sweep.grid import Job, Options, fitting, write_plan
from shiq_bench.sweep.status import Line, State, View, over, summary
from shiq_bench.sweep.worker import log_path, settled


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
    view = View(results, good, since, before, log)
    with view.live:
        if todo:
            plan = write_plan(results, good, options, since)
            with leases.acquire(plan.with_suffix(".lease")), executor:  # by which others see that it is under way
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


def _state(job: Job, record: RunRecord | None, options: Options) -> State:
    """How a job stands before the sweep.

    Raises:
        UserError: other code has finished it, and nobody said what to do about that.
    """
    if record is None or record.status == "started" or not settled(job, record, options):
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
    counts: Counter[str] = Counter()
    references: dict[str, bool] = {}  # whether it is there: where a run that shares it has ended
    seconds, left = [], []
    resolved = [job.resolved() for job in good]  # all of them, before the first line is said
    for job, made in zip(good, resolved, strict=True):
        record = run_store.find(results, job.run_id)
        foreign = ", by other code" if record and not job.same_code(record) else ""
        state = (record.status if record else "missing") + foreign
        counts[state] += 1
        trained, drawn = cost(made)
        tokens = f", at most {trained:,} tokens trained on and {drawn:,} drawn" if trained else ""
        say(console, f"{job.run_id}  {job.name}  ({state}{tokens})")
        if not settled(job, record, options):
            left.append((trained, drawn))
        if made.spec.model != "table":
            key = canonical_json(conditions(made.spec))
            references[key] = references.get(key, False) or bool(record and record.evaluations)
        if record and record.status == "done":
            seconds.append(sum(record.timings.values()))
    for job in bad:
        say(console, f"left out: {job.name}: {job.problem}")
    said = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    say(console, f"{len(good)} runs: {said}" + (f"; {len(bad)} left out" if bad else ""))
    trained, drawn = (sum(some[i] for some in left) for i in (0, 1))
    if trained:
        say(console, f"left: at most {trained:,} tokens trained on and {drawn:,} drawn, the reference's aside")
    if references:
        there = f"{sum(references.values())} of them are there"
        say(console, f"references: {len(references)}, each evaluated once for all its runs; {there}")
    if seconds and left:
        say(console, f"about {about(sum(seconds) / len(seconds) * len(left))} on one worker, by what is there")


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
