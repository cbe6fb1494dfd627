"""A pool of worker processes: the calls of all live dialogues run side by side, and a bad one costs only itself.

A dialogue lives in one worker. When a call runs out of time or takes the worker with it, the worker is replaced,
and the dialogues that lived there are replayed from their history, the offending step left out, when they next act.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        outcomes = self._dispatch(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if not outcome.failure:
                job.session.history.append(job.request["calls"])
        return outcomes

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
        busy: dict[int, tuple[int, float]] = {}  # slot -> job, deadline
        with selectors.DefaultSelector() as selector:

            def start(slot: int) -> None:
                if queues[slot]:
                    number = queues[slot].popleft()
                    worker, limit = self._send(slot, jobs[number])
                    busy[slot] = (number, time.monotonic() + limit)
                    selector.register(worker.output, selectors.EVENT_READ, slot)

            def finish(slot: int, outcome: Outcome, kill: bool = False) -> None:
                number, _ = busy.pop(slot)
                worker = self._workers[slot]
                assert worker is not None
                selector.unregister(worker.output)
                outcomes[number] = outcome
                # After a failure the instances may have done half a step: replay them when they next act.
                jobs[number].session.worker = None if outcome.failure else worker
                if kill:
                    self._stop(slot)
                start(slot)

            try:
                for slot in list(queues):
                    start(slot)
                while busy:
                    wait = min(deadline for _, deadline in busy.values()) - time.monotonic()
                    for key, _ in selector.select(max(wait, 0.0)):
                        slot = key.data
                        worker = self._workers[slot]
                        assert worker is not None
                        try:
                            replies = worker.receive()
                        except (EOFError, OSError, ValueError):
                            if not worker.ready:
                                raise UserError("the BFCL worker process ended before it was ready") from None
                            late = worker.end() == -signal.SIGALRM
                            failure = _overrun(self.timeout) if late else "the process was ended by this call"
                            finish(slot, Outcome(failure=failure), kill=True)
                            continue
                        for reply in replies:
                            if not worker.ready:
                                if "ready" not in reply:
                                    raise UserError(f"the BFCL worker process could not start: {reply.get('error')}")
                                worker.ready = True
                                number, _ = busy[slot]
                                busy[slot] = (number, time.monotonic() + self._limit(jobs[number]))
                            else:
                                finish(slot, Outcome(reply.get("value"), failure=reply.get("error", "")))
                    for slot, (number, deadline) in list(busy.items()):
                        if time.monotonic() >= deadline:
                            finish(slot, Outcome(failure=_overrun(jobs[number].limit)), kill=True)
            except BaseException:
                # Whoever is still at work owes a reply that nobody will read.
                for slot in busy:
                    self._stop(slot)
                raise
        return [outcomes[number] for number in range(len(jobs))]

    def _limit(self, job: _Job) -> float:
        """Time for a job and, where its dialogue has to be replayed, for all that went before."""
        session = job.session
        replay = len(session.history) if session.worker is None or session.worker.dead else 0
        return job.limit + self.timeout * replay

    def _send(self, slot: int, job: _Job) -> tuple[_Worker, float]:
        """Hand a job to the worker of a slot, with what that worker lacks; again to a new one if it has died."""
        for _ in range(2):
            worker = self._workers[slot]
            if worker is None:
                worker = self._workers[slot] = _Worker(self._root, self._folder)
            session, limit = job.session, self._limit(job)
            request = {**job.request, "session": session.name, "limit": limit}
            if job.request["op"] == "judge":
                request["entry"] = session.entry
            elif job.request["op"] == "step" and session.worker is not worker:
                request |= {"entry": session.entry, "history": session.history}
            try:
                worker.send(request)
            except OSError:
                self._stop(slot)
                continue
            return worker, limit if worker.ready else limit + STARTUP
        raise UserError("the BFCL worker processes end as soon as they start")

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
            bufsize=0,
            cwd=folder,
            env=environment,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self.output = self._process.stdin, self._process.stdout
        self._buffer = bytearray()
        self.ready = False
        self.dead = False

    def send(self, request: Mapping[str, Any]) -> None:
        """Write one request; an idle worker reads it at once."""
        view = memoryview(json.dumps(request).encode() + b"\n")
        while view:
            view = view[self._input.write(view) :]

    def receive(self) -> list[dict[str, Any]]:
        """Read what is there: the replies that are complete, of which the first may be the greeting.

        Raises:
            EOFError: the process has ended.
        """
        block = os.read(self.output.fileno(), 1 << 20)
        if not block:
            raise EOFError
        self._buffer += block
        if b"\n" not in block:
            return []
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self) -> int:
        """Kill it unless it has ended by itself; returns how, as ``Popen.returncode`` does."""
        self._process.kill()
        return self._process.wait()

    def stop(self) -> None:
        """Kill, at once and for good."""
        self.dead = True
        self.end()
        self._input.close()
        self.output.close()


def _overrun(seconds: float) -> str:
    return f"stopped after {seconds:g} seconds"


def _clear(workers: list[_Worker | None], folder: str) -> None:
    for worker in workers:
        if worker is not None:
            worker.stop()
    shutil.rmtree(folder, ignore_errors=True)
