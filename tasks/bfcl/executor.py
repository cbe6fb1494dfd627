"""A pool of worker processes: the calls of all live dialogues run side by side, and a bad one costs only itself.

A dialogue lives in one worker. When a call runs out of time or takes the worker with it, the worker is replaced,
and the dialogues that lived there are replayed from their history, the offending step left out, when they next act.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from shiq_bench import UserError
from shiq_bench.tasks.bfcl.official import Turns

#: Workers a core, unless told: one that a call holds up leaves the others of its core at work.
A_CORE = 2

#: Seconds a worker may take to import the official code on a busy machine.
STARTUP = 60.0

#: Single-turn answers judged by one message.
BATCH = 64

#: How the error type of an answer without a verdict begins.
UNSCORED = "unscored: "

_PROJECT = Path(__file__).parents[3]


@dataclass
class Session:
    """A dialogue as the pool knows it; made by :meth:`Executor.open`."""

    name: str
    slot: int
    entry: Mapping[str, Any]
    history: list[list[str]] = field(default_factory=list)
    worker: _Worker | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one request: a value, or the reason there is none."""

    value: Any = None
    failure: str = ""

    def error(self, key: str) -> str:
        """The error type that a verdict holds under ``key``, "" where it is right; or why there is no verdict."""
        return f"{UNSCORED}{self.failure}" if self.failure else str(self.value[key])


@dataclass(frozen=True)
class _Job:
    session: Session
    request: Mapping[str, Any]
    limit: float


class Executor:
    """Runs canonical calls and official verdicts.

    Args:
        root: folder that holds ``bfcl_eval/``.
        workers: number of processes; 0 is two a core.
        timeout: seconds of wall clock that the calls of one step may take together.

    Not for use by several threads at once, nor on both sides of a fork.
    """

    def __init__(self, root: Path, workers: int = 0, timeout: float = 10.0) -> None:
        self.timeout = timeout
        self._root = root
        self._workers: list[_Worker | None] = [None] * (workers or A_CORE * (os.cpu_count() or 1))
        self._folder = tempfile.mkdtemp(prefix="shiq-bench-bfcl-")
        self._opened = 0
        self._finalizer = weakref.finalize(self, _clear, self._workers, self._folder)

    def open(self, entry: Mapping[str, Any]) -> Session:
        """A fresh dialogue on ``entry`` (``Entry.request``) under a name that is never given again: the official
        executor reuses the state it finds under a name."""
        self._opened += 1
        return Session(f"s{self._opened}", self._opened % len(self._workers), entry)

    def run(self, steps: Sequence[tuple[Session, Sequence[str]]]) -> list[Outcome]:
        """Execute one step of each dialogue, all at once.

        Returns:
            For each step its results as ``list[str]``, one a call. After a failure the step has not happened.
        """
        jobs = [_Job(session, {"op": "step", "calls": list(calls)}, self.timeout) for session, calls in steps]
        return self._dispatch(jobs)

    def judge(self, dialogues: Sequence[tuple[Session, Turns]]) -> list[Outcome]:
        """Official verdicts (see ``Official.judge``); the dialogues are closed by it.

        The worker holds every step to ``timeout``: it ends where one takes longer, and that dialogue has no verdict.
        """
        jobs = []
        for session, turns in dialogues:
            # Model and ground truth are executed twice; the worker, which times each step, stops long before that.
            limit = self.timeout * 2 * (2 + sum(map(len, turns)) + len(session.entry["ground_truth"]))
            jobs.append(_Job(session, {"op": "judge", "turns": turns, "timeout": self.timeout}, limit))
        return self._dispatch(jobs)

    def judge_single(self, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[Outcome]:
        """Official verdicts on single-turn answers (see ``Official.judge_single``), ``timeout`` seconds each at most.

        An answer that hangs or ends its worker is left without a verdict, and costs its neighbours nothing.

        Args:
            rows: ``Entry.request`` and answer, ``{"text": ...}`` or ``{"calls": ...}``.
        """
        outcomes: dict[int, Outcome] = {}
        batches: list[Sequence[int]] = [range(len(rows))[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        while batches:
            requests = [{"op": "single", "rows": [rows[i] for i in batch]} for batch in batches]
            ran = self._dispatch([_Job(self.open({}), request, self.timeout) for request in requests])
            alone: list[Sequence[int]] = []
            for batch, outcome in zip(batches, ran, strict=True):
                if not outcome.failure:
                    outcomes |= zip(batch, map(Outcome, outcome.value), strict=True)
                elif len(batch) == 1:
                    outcomes[batch[0]] = outcome
                else:
                    alone += [[i] for i in batch]
            batches = alone
        return [outcomes[i] for i in range(len(rows))]

    def close(self) -> None:
        """Stop every worker; the pool starts new ones if it is used again."""
        for slot in range(len(self._workers)):
            self._stop(slot)

    def _dispatch(self, jobs: Sequence[_Job]) -> list[Outcome]:
        """One request at a time to each worker, all workers at once."""
        queues: dict[int, deque[int]] = defaultdict(deque)
        for number, job in enumerate(jobs):
            queues[job.session.slot].append(number)
        outcomes: dict[int, Outcome] = {}

        def serve(slot: int) -> None:
            while queues[slot]:
                number = queues[slot].popleft()
                outcomes[number] = self._ask(slot, jobs[number])

        with ThreadPoolExecutor(max(1, len(queues))) as pool:
            try:
                for served in as_completed([pool.submit(serve, slot) for slot in queues]):
                    served.result()
            except BaseException:
                # Whoever is still at work owes a reply that nobody will read.
                for slot, queue in queues.items():
                    queue.clear()
                    if (worker := self._workers[slot]) is not None:
                        worker.end()
                raise
        return [outcomes[number] for number in range(len(jobs))]

    def _ask(self, slot: int, job: _Job) -> Outcome:
        """What the worker of a slot makes of a job; one that does not answer is stopped."""
        reply: dict[str, Any] = {}
        worker: _Worker | None = None
        try:
            worker, limit = self._send(slot, job)
            reply = worker.receive(limit)
            failure = reply.get("error", "")
        except TimeoutError:
            failure = _overrun(job.limit)
            self._stop(slot)
        except (EOFError, OSError, ValueError):
            if worker is None:
                raise
            late = worker.end() == -signal.SIGALRM
            failure = _overrun(self.timeout) if late else "the process was ended by this call"
            self._stop(slot)
        # After a failure the instances may have done half a step: replay them when they next act.
        job.session.worker = None if failure else worker
        if job.request["op"] == "step" and not failure:
            job.session.history.append(job.request["calls"])
        return Outcome(reply.get("value"), failure)

    def _send(self, slot: int, job: _Job) -> tuple[_Worker, float]:
        """Hand a job to the worker of a slot, with what that worker lacks; again to a new one if it has died.

        Returns:
            The worker, and its time: for the job and, where the dialogue has to be replayed, for all that went before.
        """
        session, op = job.session, job.request["op"]
        for _ in range(2):
            worker = self._started(slot)
            replay = session.worker is not worker
            limit = job.limit + self.timeout * len(session.history) * replay
            request = {**job.request, "session": session.name, "limit": limit}
            if op == "judge":
                request["entry"] = session.entry
            elif op == "step" and replay:
                request |= {"entry": session.entry, "history": session.history}
            try:
                worker.send(request)
                return worker, limit
            except OSError:
                self._stop(slot)
        raise UserError("the BFCL worker processes end as soon as they start")

    def _started(self, slot: int) -> _Worker:
        worker = self._workers[slot]
        if worker is None:
            worker = self._workers[slot] = _Worker(self._root, self._folder)
            try:
                greeting = worker.receive(STARTUP)
            except EOFError:
                raise UserError("the BFCL worker process ended before it was ready") from None
            if "ready" not in greeting:
                raise UserError(f"the BFCL worker process could not start: {greeting.get('error')}")
        return worker

    def _stop(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.stop()


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, root: Path, folder: str) -> None:
        # Nothing of the user's environment goes in. The fixed hash seed makes the order of sets, which some tools
        # print, the same in every run.
        environment = {"PATH": os.defpath, "PYTHONPATH": str(_PROJECT), "PYTHONHASHSEED": "0"}
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "shiq_bench.tasks.bfcl.worker", str(root.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def send(self, request: Mapping[str, Any]) -> None:
        """Write one request; an idle worker reads it at once."""
        self._input.write(json.dumps(request).encode() + b"\n")
        self._input.flush()

    def receive(self, limit: float) -> dict[str, Any]:
        """Read one reply, or the greeting.

        Raises:
            TimeoutError: none came within ``limit`` seconds.
            EOFError: the process has ended.
        """
        if not wait([self._output.fileno()], limit):
            raise TimeoutError
        if not (line := self._output.readline()).endswith(b"\n"):
            raise EOFError
        return json.loads(line)

    def end(self) -> int:
        """Kill it unless it has ended by itself; returns how, as ``Popen.returncode`` does."""
        self._process.kill()
        return self._process.wait()

    def stop(self) -> None:
        self.end()
        self._output.close()
        with contextlib.suppress(OSError):  # of a request that was not read to its end
            self._input.close()


def _overrun(seconds: float) -> str:
    return f"stopped after {seconds:g} seconds"


def _clear(workers: list[_Worker | None], folder: str) -> None:
    for worker in workers:
        if worker is not None:
            worker.stop()
    shutil.rmtree(folder, ignore_errors=True)
