"""Where the workers of a sweep run: this process, others of this machine, a Ray cluster, or a queue of Slurm.

A worker is the same everywhere (:func:`shiq_bench.sweep.worker.work`) and finds its jobs by itself,
so an executor only starts workers, starts new ones for those that died, and stops them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.event_log import logged
from shiq_bench.sweep.worker import Resources, environment, places, steps, visible_gpus, work

#: Seconds that workers have for a checkpoint once they are asked to stop.
GRACE = 120.0
#: What submitit raises where Slurm refuses a job, or does not know what it is asked.
REFUSALS = (RuntimeError, NameError, TypeError, ValueError, AssertionError, OSError)
#: Workers that die one after the other without having begun or ended a run, until that is an error.
DEATHS = 3


class Executor(AbstractContextManager["Executor"]):
    """Starts workers on a plan, keeps them alive, and stops them.

    ``with executor:`` stops them at the end, whatever it is.
    """

    #: Workers that died one after the other, while nobody began or ended a run.
    idle_deaths = 0
    #: Seconds between two looks at a sweep under way.
    pause = 0.5

    def died(self, plan: Path, since: int) -> None:
        """Count a death; a new worker may be started afterwards.

        Args:
            since: how long the log was when that worker was started.

        Raises:
            UserError: so many have died one after the other, and nobody has begun or ended a run meanwhile.
        """
        self.idle_deaths = self.idle_deaths + 1 if logged(plan.parent.parent) == since else 0
        if self.idle_deaths >= DEATHS:
            log = plan.with_suffix(".log")
            raise UserError(f"{DEATHS} workers died one after the other before they began a run: see {log}")

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def start(self, plan: Path, count: int) -> None:
        """Start at most ``count`` workers, or as many as the resources say.

        Raises:
            UserError: they cannot be started.
        """

    @abstractmethod
    def alive(self) -> int:
        """How many are at work; those that died at it are started anew.

        Raises:
            UserError: a worker ended with an error that another one would end with too.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ask all to stop after a checkpoint, and wait for it."""


@dataclass
class Inline(Executor):
    """The worker is this process: a few short runs need no other. Only between runs is it looked at how they stand."""

    pause = 0.0
    _steps: Iterator[None] = field(default_factory=lambda: iter(()))

    def start(self, plan: Path, count: int) -> None:
        self._steps = steps(plan)

    def alive(self) -> int:
        """One run further; 0 once nothing is left."""
        return int(next(self._steps, "ended") is None)

    def stop(self) -> None:
        self._steps = iter(())


@dataclass
class Local(Executor):
    """Processes of this machine, its cores and GPUs shared out among them."""

    resources: Resources
    _plan: Path = Path()
    _workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _since: dict[int, int] = field(default_factory=dict)
    _places: list[Mapping[str, str]] = field(default_factory=list)

    def start(self, plan: Path, count: int) -> None:
        self._plan = plan
        self._places = places(self.resources, count, len(os.sched_getaffinity(0)), visible_gpus())
        self._workers = [self._started(place) for place in self._places]

    def _started(self, place: Mapping[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "shiq_bench.sweep.worker", str(self._plan), str(os.getpid())]
        with self._plan.with_suffix(".log").open("ab") as log:
            # A session of its own: Ctrl-C reaches this process, which asks the workers once.
            worker = subprocess.Popen(
                command, env={**os.environ, **place}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._since[worker.pid] = logged(self._plan.parent.parent)
        return worker

    def alive(self) -> int:
        for i, worker in enumerate(self._workers):
            code = worker.poll()
            if code == 2:
                raise UserError(_last_line(self._plan.with_suffix(".log")))
            if code not in (None, 0, 130):
                self.died(self._plan, self._since[worker.pid])
                self._workers[i] = self._started(self._places[i])
        return sum(worker.poll() is None for worker in self._workers)

    def stop(self) -> None:
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
        until = time.monotonic() + GRACE
        for worker in self._workers:
            try:
                worker.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@dataclass
class Ray(Executor):
    """Tasks of a Ray cluster (by its address), or of a local Ray that is started for the sweep.

    Ray places workers by cores and GPUs, and starts those anew whose process or machine is lost.
    """

    resources: Resources
    address: str = ""
    _tasks: list[Any] = field(default_factory=list)

    def start(self, plan: Path, count: int) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("Ray is not installed: type pip install -c constraints/cpu.txt -e '.[ray]'") from None
        _join(self.address)
        have = ray.cluster_resources()
        cores = self.resources.cores or 1
        gpus = self.resources.gpus if self.resources.gpus is not None else float(have.get("GPU", 0) >= 1)
        fit = int(min(have.get("CPU", 0) / cores, have.get("GPU", 0) / gpus if gpus else float("inf")))
        if not fit:
            there = f"{have.get('CPU', 0):g} cores and {have.get('GPU', 0):g} GPUs"
            raise UserError(f"Ray has {there}, and a worker asks for {cores} and {gpus:g}: lower --cores or --gpus")
        variables = {k: v for k, v in os.environ.items() if k.startswith(("SHIQ_BENCH_", "HF_", "VLLM_"))}
        task = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=-1, max_calls=1)(worked).options(
            runtime_env={"env_vars": {**variables, **environment(cores, None)}}
        )
        self._tasks = [task.remote(str(plan.resolve())) for _ in range(min(self.resources.workers or fit, count))]

    def alive(self) -> int:
        import ray

        ended, running = ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        for task in ended:
            if problem := ray.get(task):
                raise UserError(problem)
        return len(running)

    def stop(self) -> None:
        if "ray" not in sys.modules:
            return
        import ray

        for task in self._tasks:
            ray.cancel(task)  # raises KeyboardInterrupt in it, which makes a checkpoint
        if self._tasks:
            ray.wait(self._tasks, num_returns=len(self._tasks), timeout=GRACE)
        ray.shutdown()


@dataclass
class Slurm(Executor):
    """Jobs of Slurm through submitit, one a worker; a preempted one is queued again.

    Attributes:
        options: parameters of ``submitit.AutoExecutor``, such as ``slurm_partition`` or ``timeout_min``.
        cluster: ``slurm``, or ``local`` to try it without one.
    """

    resources: Resources
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"
    _plan: Path = Path()
    _executor: Any = None
    _jobs: list[Any] = field(default_factory=list)
    _since: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if 0 < (self.resources.gpus or 0) < 1:
            raise UserError("--gpus: Slurm gives whole GPUs; expected 1 or more")

    def start(self, plan: Path, count: int) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("no submitit is installed: type pip install -c constraints/cpu.txt -e '.[slurm]'") from None
        if not self.resources.workers:
            raise UserError("--workers is missing: say how many jobs Slurm is to be given")
        self._plan = plan.resolve()
        defaults = {"name": "shiq-bench", "cpus_per_task": self.resources.cores or 1, "timeout_min": 24 * 60}
        gpus = {"gpus_per_node": int(self.resources.gpus)} if self.resources.gpus else {}
        try:
            self._executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.cluster)
            self._executor.update_parameters(**{**defaults, **gpus, **self.options})
            with self._executor.batch():
                self._jobs = [self._submitted() for _ in range(min(self.resources.workers, count))]
        except REFUSALS as error:
            raise UserError(f"Slurm takes no jobs: {' '.join(str(error).split())}") from error

    def _submitted(self) -> Any:
        job = self._executor.submit(Requeued(), str(self._plan))
        self._since[id(job)] = logged(self._plan.parent.parent)
        return job

    def alive(self) -> int:
        for i, job in enumerate(self._jobs):
            if not job.done():
                continue
            if job.exception() is not None:  # killed, or its machine lost
                self._follow(i, job)
            elif problem := job.result():
                raise UserError(problem)
        return sum(not job.done() for job in self._jobs)

    def _follow(self, i: int, job: Any) -> None:
        """Put a new job in the place of one that died; where Slurm takes none now, it is asked again later."""
        if any(other.done() and other.exception() is None for other in self._jobs):
            return  # a worker ends well only when nothing is left to do
        if (since := self._since.pop(id(job), None)) is not None:  # not counted yet
            self.died(self._plan, since)
        try:
            self._jobs[i] = self._submitted()
        except REFUSALS as error:
            if all(other.done() for other in self._jobs):
                raise UserError(f"Slurm takes no more jobs: {' '.join(str(error).split())}") from error

    def stop(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel(check=False)
        until = time.monotonic() + GRACE
        while any(not job.done() for job in self._jobs) and time.monotonic() < until:
            time.sleep(0.5)


class Requeued:
    """A worker that Slurm can stop at any moment: what it left is gone on with by the next."""

    def __call__(self, plan: str) -> str:
        return worked(plan)

    def checkpoint(self, plan: str) -> Any:
        """Asked by submitit when the job is preempted or out of time."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, plan)


def _join(address: str) -> None:
    """Join the Ray at an address, or start a local one where none is given.

    Raises:
        UserError: it is no address, no Ray answers there, or none can be started here.
    """
    import ray

    if address not in ("", "auto"):  # found out in seconds, where Ray itself takes minutes
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--address {address}: expected host:port, such as 10.0.0.1:6379, or auto")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise UserError(
                f"no Ray answers at {address} ({error.strerror or error}): start it with ray start --head, or leave "
                "--address out for a local one"
            ) from None
    where = address or "local"
    # A local Ray gives its own parts 15 seconds to start, which a busy machine may exceed once, with cold files.
    for left in reversed(range(3 if where == "local" else 1)):
        try:
            ray.init(address=where, include_dashboard=False, log_to_driver=False, logging_level="error")
            return
        except Exception as error:  # Ray raises the bare class
            ray.shutdown()
            if not left:
                raise UserError(f"no Ray at {where}: {' '.join(str(error).split())[:300]}") from error


def worked(plan: str) -> str:
    """A worker as a task of Ray or Slurm; gives the error that ended it, "" for none: whoever raises is tried again."""
    try:
        work(Path(plan))
    except UserError as error:
        return str(error)
    except Exception as error:  # a fault of this program's, which another try would meet too
        return f"{type(error).__name__}: {error}"
    return ""


def _last_line(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:  # deleted by now
        lines = []
    return lines[-1].removeprefix("error: ") if lines else f"a worker ended with an error: see {log}"


def _typed(text: str) -> Any:
    """submitit wants numbers as numbers; ``12:00:00``, ``0123`` and all else stay what they are."""
    if re.fullmatch(r"-?[1-9]\d*|0", text):
        return int(text)
    return {"true": True, "false": False}.get(text.lower(), text)


EXECUTORS = ("inline", "local", "ray", "slurm")


def make_executor(
    name: str, resources: Resources, folder: Path, *, address: str = "", options: Mapping[str, Any] | None = None
) -> Executor:
    """The executor of a name.

    Raises:
        UserError: there is none of that name, or what is given is for another one.
    """
    if name not in EXECUTORS:
        raise UserError(f"no executor is called {name!r}{suggest(name, EXECUTORS)}")
    if address and name != "ray":
        raise UserError(f"--address is for --executor ray, and this is {name}")
    if options and name != "slurm":
        raise UserError(f"--slurm is for --executor slurm, and this is {name}")
    if name == "inline":
        if resources != Resources():
            raise UserError("--workers, --cores and --gpus are for other executors: inline runs all in this process")
        return Inline()
    if name == "ray":
        return Ray(resources, address)
    if name == "slurm":
        given = {key: _typed(str(value)) for key, value in (options or {}).items()}
        return Slurm(resources, folder, given, str(given.pop("cluster", "slurm")))
    return Local(resources)
