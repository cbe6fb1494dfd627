"""One worker of a sweep: it goes through the plan, and takes whatever is neither finished nor taken.

Beside it, what a worker gets of its machine: cores, and GPUs or shares of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from shiq_bench.api.registry import load_plugin
from shiq_bench.records import event_log, leases, run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import RunRecord
from shiq_bench.runs.progress import LiveReport, say
from shiq_bench.sweep.grid import Job, Options, Plan, read_plan

#: Seconds between two looks at jobs that others have.
POLL = 1.0
#: A run that took its process down so often, one time after the other, is not tried again.
CRASHES = 3


def work(path: Path) -> None:
    """Run jobs of a plan until all are finished, by this worker or by others, which it outwaits lest one dies.

    Raises:
        UserError: the plan cannot be read, or the results folder not be written.
        KeyboardInterrupt: asked to stop; the run under way can be gone on with.
    """
    for _ in steps(path):
        pass


def steps(path: Path) -> Iterator[None]:
    """What :func:`work` does, with a pause before every run."""
    plan = read_plan(path)
    try:
        os.chdir(plan.folder)
    except OSError as error:
        raise UserError(f"the sweep was started in {plan.folder}: {error.strerror}") from None
    for plugin in plan.options.plugins:
        load_plugin(plugin)
    left = list(plan.jobs)
    while left:
        yield
        log = event_log.events(plan.results, plan.since)
        taken = {job.run_id for job in left if busy(plan, job)}
        left = [job for job in left if job.run_id in taken or not over(plan, job, log.get(job.run_id, []))]
        if not any(_attempt(plan, job) for job in left if job.run_id not in taken) and left:
            time.sleep(POLL)


def busy(plan: Plan, job: Job) -> bool:
    """Whether a live process is at it."""
    return leases.holder(event_log.lease_path(plan.results, job.run_id)) is not None


def over(plan: Plan, job: Job, events: list[dict[str, Any]]) -> bool:
    """Whether there is nothing left to do about a job.

    Done is done; what failed or diverged is over unless the plan is to try it again, once a sweep.

    Args:
        events: the job's lines of the log since the sweep was started.
    """
    if events and events[-1]["event"] in ("done", "failed", "diverged"):
        return True
    return settled(job, run_store.find(plan.results, job.run_id), plan.options)


def settled(job: Job, record: RunRecord | None, options: Options) -> bool:
    """Whether a job's record stays as it is in a sweep that was told so much."""
    if record is None or record.status == "started":
        return False
    if not job.same_code(record):
        return not options.fresh
    return record.status == "done" or not options.retry


def _attempt(plan: Plan, job: Job) -> bool:
    """Run a job; False where another process is at it."""
    if busy(plan, job):
        return False
    from shiq_bench.runs.execute import execute

    with _output(plan, job) as report:
        try:
            record = run_store.find(plan.results, job.run_id)
            if record is not None and event_log.crashes(_news(plan, job)) >= CRASHES and _given_up(plan, job):
                return True
            # What other code left unfinished is of no use, and its finished runs were asked about.
            execute(
                job.resolved(), resume=True, fresh="foreign", report=report,
                needed=lambda: not over(plan, job, _news(plan, job)),
            )  # fmt: skip
        except (leases.Held, leases.Lost):
            return False
        except Exception as error:  # also a plugin's own: another worker would meet it too
            known = isinstance(error, UserError)
            text = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
            say(report.console, f"error: {text}")
            if not known:
                traceback.print_exc(file=report.console.file)
            if not any(e["event"] == "failed" for e in _news(plan, job)[-1:]):  # refused before there was a record
                event_log.log(plan.results, job.run_id, "failed", text)
    return True


def _news(plan: Plan, job: Job) -> list[dict[str, Any]]:
    return event_log.events(plan.results, plan.since).get(job.run_id, [])


def _given_up(plan: Plan, job: Job) -> bool:
    """Close a run's record as failed, unless it turns out that another process has ended it meanwhile."""
    error = f"it took its process down {CRASHES} times, one after the other (killed, or out of memory?)"
    with event_log.claim(plan.results, job.run_id):
        record = run_store.find(plan.results, job.run_id)
        if record is None or record.status != "started" or event_log.crashes(_news(plan, job)) < CRASHES:
            return False
        run_store.save(replace(record, status="failed", error=error), plan.results)
        event_log.log(plan.results, job.run_id, "failed", error)
    return True


@contextlib.contextmanager
def _output(plan: Plan, job: Job) -> Iterator[LiveReport]:
    """Send what a run prints, and its libraries, to a log of its own."""
    path = log_path(plan.results, job.run_id)
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}: {job.name}", file=file, flush=True)
            with LiveReport(Console(file=file, width=120)) as report:
                yield report
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, descriptor)
                os.close(kept)


def log_path(results: Path | str, run_id: str) -> Path:
    """Where a run of a sweep prints to."""
    return Path(results) / event_log.FOLDER / f"{run_id}.log"


def stoppable() -> None:
    """Be stopped in order by Ctrl-C and by SIGTERM, also where a shell started this in the background, deaf to them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def follow(parent: int) -> None:
    """End with the process that started this one, by a checkpoint and in order."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="follow", daemon=True).start()


@dataclass(frozen=True)
class Resources:
    """What one worker gets, and how many there are.

    Attributes:
        workers: 0: as many as fit this machine, one a GPU or else one a core.
        cores: of each worker; 0: an equal share.
        gpus: of each worker; a share of one places several workers on it. None: one where there are any.
    """

    workers: int = 0
    cores: int = 0
    gpus: float | None = None

    def __post_init__(self) -> None:
        gpus = self.gpus or 0.0
        if self.workers < 0 or self.cores < 0 or not gpus >= 0:
            raise UserError("expected --workers, --cores and --gpus of 0 or more")
        if gpus > 1 and gpus != int(gpus):
            raise UserError(f"--gpus {gpus:g}: expected whole GPUs, or a share of one")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name for name in told.split(",") if name.strip() and name != "-1"]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in found.splitlines() if line.startswith("GPU "))]


def places(resources: Resources, count: int, cores: int, gpus: Sequence[str]) -> list[Mapping[str, str]]:
    """What each worker's environment says of cores and GPUs; as many entries as there are workers.

    Raises:
        UserError: a worker asks for more GPUs than there are.
    """
    each = resources.gpus if resources.gpus is not None else float(bool(gpus))
    if each > len(gpus):
        raise UserError(f"--gpus {each:g} a worker, and this machine has {len(gpus)}")
    if resources.cores * (resources.workers or 1) > cores:
        asked = f"{resources.workers or 1} workers of --cores {resources.cores}"
        raise UserError(f"{asked}, and this machine has {cores}: lower --workers or --cores")
    whole = max(1, int(each))
    on_one = int(1 / each + 1e-9) if 0 < each < 1 else 1  # a worker does not lie on two halves
    fit = len(gpus) // whole * on_one if each else max(1, cores // (resources.cores or 1))
    workers = max(1, min(resources.workers or fit, count))
    if each and workers > fit:
        raise UserError(f"{workers} workers of --gpus {each:g}, and this machine has {len(gpus)}: {fit} fit")
    threads = resources.cores or max(1, cores // workers)
    out = []
    for i in range(workers):
        first = i // on_one * whole
        devices = ",".join(gpus[first : first + whole]) if each else "" if gpus else None
        out.append(environment(threads, devices))
    return out


def environment(threads: int, devices: str | None) -> Mapping[str, str]:
    """What a worker's environment says of the cores and GPUs that it may use."""
    told = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return told if devices is None else {**told, "CUDA_VISIBLE_DEVICES": devices}


def main() -> None:
    """``python -m shiq_bench.sweep.worker PLAN PARENT``"""
    stoppable()
    follow(int(sys.argv[2]))
    try:
        work(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
