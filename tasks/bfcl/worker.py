"""The process in which official code runs: ``python -m shiq_bench.tasks.bfcl.worker <root>``, JSON lines in and out.

Requests: ``{"op": "step", "session", "calls", "limit"}``, with ``"entry"`` and ``"history"`` when the session is
new here or has to be replayed; ``{"op": "judge", "session", "entry", "turns", "timeout", "limit"}``, which also
forgets the session, and ends the process where a step takes longer than ``timeout`` seconds (without it, none does);
``{"op": "single", "rows": [[entry, answer], ...], "limit"}``. Replies: ``{"ready": true}`` once, then
``{"value": ...}`` or ``{"error": text}``, one a request, in order.
The end of the input ends the process, so it never outlives its parent by more than the limit of one request.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from shiq_bench.tasks.bfcl.official import IN_VAIN, Official
from shiq_bench.tasks.bfcl.parse import is_canonical

#: Address space of a worker. A simulated file system takes a few MB; a runaway call is stopped here.
MEMORY = 2 << 30

#: Longest result handed back, in characters; no context window holds more. Verdicts see the whole of it.
MAX_RESULT = 65_536

#: Seconds after its limit at which a request kills the process by itself, should the parent be gone.
GRACE = 5


class Worker:
    """Live dialogues of one process."""

    def __init__(self, official: Official) -> None:
        self._official = official
        self._entries: dict[str, dict[str, Any]] = {}

    def handle(self, request: dict[str, Any]) -> Any:
        """Serve one request.

        Raises:
            Exception: whatever official code raises outside a call, or a call that is not canonical.
        """
        if request["op"] == "single":
            return [self._official.judge_single(entry, answer) for entry, answer in request["rows"]]
        session = request["session"]
        if request["op"] == "judge":
            self._entries.pop(session, None)
            for turn in request["turns"]:
                self._check(call for step in turn for call in step)
            each = request.get("timeout", 0.0)
            try:
                # The signal ends the process, even inside a long computation in C; the parent sees which one it was.
                return self._official.judge(
                    session,
                    request["entry"],
                    request["turns"],
                    allow=lambda steps: signal.setitimer(signal.ITIMER_REAL, each * steps),
                )
            finally:
                self._official.purge(session)
        if "entry" in request:
            self._official.purge(session)
            self._official.open()
            self._entries[session] = request["entry"]
            for calls in request["history"]:
                self._step(session, calls)
        return [result[:MAX_RESULT] for result in self._step(session, request["calls"])]

    def _step(self, session: str, calls: list[str]) -> list[str]:
        self._check(calls)
        return self._official.step(session, self._entries[session], calls)

    def _check(self, calls: Iterable[str]) -> None:
        """The official executor evaluates its argument: the last look before it does."""
        for call in calls:
            if call != IN_VAIN and not is_canonical(call, self._official.names):
                raise ValueError("refused to execute what is not a canonical call")


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """The real input and output; whatever official code prints or reads goes to and comes from nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    return requests, replies


def _confine() -> None:
    """Bound memory, forbid files, and yield to the processes that do the real work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills even inside a long computation in C
    for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # not every system knows every limit
            resource.setrlimit(kind, (limit, limit))
    with contextlib.suppress(OSError):
        os.nice(5)


def main(root: Path) -> None:
    """Serve until the input ends."""
    requests, replies = _private_streams()

    def reply(message: dict[str, Any]) -> None:
        view = memoryview(json.dumps(message).encode() + b"\n")
        while view:
            view = view[replies.write(view) :]

    try:
        worker = Worker(Official(root))
        _confine()
    except Exception as error:  # the parent turns it into one line
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({"ready": True})
    for line in requests:
        try:
            request = json.loads(line)
            signal.alarm(math.ceil(request["limit"]) + GRACE)
            message = {"value": worker.handle(request)}
        except Exception as error:  # official code raises what it likes; it costs this request only
            message = {"error": f"{type(error).__name__}: {error}"[:500]}
        signal.alarm(0)
        reply(message)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
