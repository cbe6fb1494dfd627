"""Who runs what in a results folder: a lease a run, a log of everything that was started, and how far each run is.

All of it lies in ``<results>/.runs`` and decides nothing: a record is what counts. A run is claimed
by :func:`shiq_bench.runs.execute.execute` itself, so that a sweep, a study and a single run cannot get in
each other's way, on one machine or on several that share the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import canonical_json
from shiq_bench.records.leases import Held, Lease, acquire, describe, locked

FOLDER = ".runs"
LOG = "log.jsonl"
#: Seconds between two notes of how far a run is.
EVERY = 0.5

Event = Literal["start", "done", "failed", "diverged", "interrupted", "crashed"]


def lease_path(results: Path | str, run_id: str) -> Path:
    """Where the lease of a run lies."""
    return Path(results) / FOLDER / f"{run_id}.lease"


def claim(results: Path | str, run_id: str) -> Lease:
    """Take a run; where its last holder died at it, the log says so.

    Raises:
        Held: another process is at it.
    """
    try:
        lease = acquire(lease_path(results, run_id))
        if lease.inherited:
            log(results, run_id, "crashed")
        return lease
    except Held:
        who = describe(lease_path(results, run_id))
        raise Held(f"{run_id} is being run by {who}: wait for it; shiq-bench status shows how far it is") from None


def log(results: Path | str, run_id: str, event: Event, note: str = "") -> None:
    """Append one line to the log; it is never rewritten, so that executions can be counted from it."""
    line = {"time": time.time(), "run_id": run_id, "event": event, "host": socket.gethostname(), "pid": os.getpid()}
    path = Path(results) / FOLDER / LOG
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent), path.open("ab+") as file:
            # A process that was killed while it wrote may have left half a line.
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + canonical_json({**line, "note": note}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def logged(results: Path | str) -> int:
    """How long the log is by now, in bytes: what comes behind is news, whatever the clocks of machines say."""
    try:
        return (Path(results) / FOLDER / LOG).stat().st_size
    except OSError:
        return 0


def events(results: Path | str, since: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Run id -> its lines of the log in their order, those behind the first ``since`` bytes, but for torn ones."""
    out: dict[str, list[dict[str, Any]]] = {}
    try:
        with (Path(results) / FOLDER / LOG).open("rb") as file:
            file.seek(since)
            text = file.read().decode(errors="replace")
    except OSError:
        return out
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            known = event["event"] in get_args(Event) and isinstance(event["note"], str)
            if known and isinstance(event["time"], int | float):  # else a newer version has written it
                out.setdefault(event["run_id"], []).append(event)
    return out


def crashes(found: Sequence[Mapping[str, Any]]) -> int:
    """How often in a row a run has taken its process down with it, by its lines of the log.

    The last of them may have left a start and no end: it counts where nobody is at the run.
    """
    count = int(bool(found) and found[-1]["event"] == "start")
    for event in reversed(found):
        if event["event"] == "crashed":
            count += 1
        elif event["event"] != "start":
            break
    return count


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: what it does, in words.
        done, total: of the stage's units; 0, 0 where it has none.
        first: the unit that it went on from.
        began: when the stage began, seconds of the clock.
        at: when this was noted.
        numbers: the latest metrics of training.
    """

    stage: str
    done: int
    total: int
    first: int
    began: float
    at: float
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float | None:
        """Seconds that the stage still takes, by what it took so far; None: not known."""
        if not self.first < self.done < self.total:
            return None
        return (self.at - self.began) / (self.done - self.first) * (self.total - self.done)


def progress(results: Path | str, run_id: str) -> Progress | None:
    """How far a run was when that was last noted; None where nothing is known."""
    try:
        return Progress(**json.loads((Path(results) / FOLDER / f"{run_id}.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class Watch:
    """``report(what, done, total)`` that passes on what it is told, and notes it for others to see."""

    def __init__(self, results: Path | str, run_id: str, report: Callable[[str, int, int], None]) -> None:
        self._path = Path(results) / FOLDER / f"{run_id}.json"
        self._report = report
        self._numbers: dict[str, float] = {}
        self._tokens = 0.0
        self._stage, self._began, self._noted = "", time.time(), 0.0
        self._first = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        self._report(what, done, total)
        now = time.time()
        if what != self._stage:
            self._stage, self._began, self._first, self._tokens = what, now, done, 0.0
        elif now - self._noted < EVERY and done != total:
            return
        self._noted = now
        found = Progress(what, done, total, self._first, self._began, now, self._numbers)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # nor a sync: nothing depends on it
            temporary.write_text(json.dumps(asdict(found)))
            temporary.replace(self._path)

    def numbers(self, logs: Mapping[str, float]) -> None:
        """Metrics of an update."""
        self._tokens += logs.get("tokens", 0.0)
        self._numbers = {k: v for k, v in logs.items() if k in ("loss", "return", "regret")}
        if (seconds := time.time() - self._began) > 0 and self._tokens:
            self._numbers["tokens/s"] = self._tokens / seconds
