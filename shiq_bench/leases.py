"""Leases: which process works on what, among processes and machines that share a folder.

A lease is a file that is created exclusively and touched every few seconds by who holds it. It is
free again once its holder has let go of it, is known to be dead (on the same machine), or has not
touched it for :data:`TTL` seconds (on another one, by the clock of the shared file system). Taking
a dead holder's lease and giving one back happen under a lock of the kernel's, which dies with its
process, so that of many who see a dead holder exactly one follows it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from shiq_bench.records import UserError

#: Seconds between two signs of life.
BEAT = 10.0
#: Seconds without one after which a holder on another machine counts as dead.
TTL = 180.0
#: Seconds between two looks at a lease that is waited for.
POLL = 0.2


class Held(UserError):
    """Somebody else holds the lease."""


class Lost(UserError):
    """The lease was taken over: this process was thought dead, and must not write any more."""


class Lease:
    """A lease that is held; a context manager that gives it back.

    Attributes:
        inherited: who held it before died at work.
        lost: somebody else has it now, since this process gave no sign of life for too long.
    """

    def __init__(self, path: Path, descriptor: int, inherited: bool) -> None:
        self.path = path
        self.inherited = inherited
        self.lost = False
        self._descriptor = descriptor
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {path.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Before anything is written that only the holder may write.

        Raises:
            Lost: this process does not hold the lease any more.
        """
        if self.lost or not self._ours():
            self.lost = True
            raise Lost(f"{self.path.name}: another process has taken this over, for this one had stopped for too long")

    def release(self) -> None:
        """Let others have it; nothing happens where they already do."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        with locked(self.path.parent):
            if self._ours():
                self.path.unlink()
        os.close(self._descriptor)

    def _ours(self) -> bool:
        try:
            return os.stat(self.path).st_ino == os.fstat(self._descriptor).st_ino
        except OSError:
            return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)
            self.lost = self.lost or not self._ours()


def acquire(path: Path) -> Lease:
    """Take a lease that is free, or whose holder is dead.

    Raises:
        Held: its holder is alive; the line says who that is.
        UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent) as now:
            if inherited := path.exists():
                if not _dead(path, now()):
                    raise Held(f"{path.name} is at work already: {describe(path)}")
                path.unlink()
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            os.write(descriptor, json.dumps(_me()).encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return Lease(path, descriptor, inherited)


def wait(path: Path, done: Callable[[], bool], on_wait: Callable[[str], None] = lambda who: None) -> Lease | None:
    """Take a lease as soon as it is free, unless somebody else does the work meanwhile: then None.

    Args:
        done: whether the work is there.
        on_wait: told once, who is waited for.
    """
    told = False
    while not done():
        try:
            return acquire(path)
        except Held:
            if not told:
                on_wait(describe(path))
                told = True
            time.sleep(POLL)
    return None


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds a lease that is not dead: ``host``, ``pid``, ``since`` (seconds of the clock); None: nobody."""
    try:
        with locked(path.parent) as now:
            return None if _dead(path, now()) else _content(path)
    except OSError:
        return None


def describe(path: Path) -> str:
    """``process 12 on host``."""
    who = _content(path)
    return f"process {who.get('pid', '?')} on {who.get('host', '?')}"


def _content(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
        return data if isinstance(data, dict) else {}
    except (OSError, ValueError):
        return {}


def _me() -> dict[str, Any]:
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "where": _where(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "since": time.time(),
    }


def _where() -> str:
    """What a process number belongs to: this boot of this machine, and in containers this one."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _born(pid: int) -> str:
    """When a process was started, for numbers are used again; "" where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else "unknown"
    return "" if fields[0] in "ZX" else fields[19]


def _dead(path: Path, now: float) -> bool:
    """Whether a lease is nobody's."""
    try:
        touched = os.stat(path).st_mtime
    except FileNotFoundError:
        return True
    who = _content(path)
    if who.get("where") == _where() and who.get("born") != "unknown" and _born(int(who["pid"])) != who["born"]:
        return True
    return now - touched > TTL


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Callable[[], float]]:
    """Hold the folder's lock; gives the file system's own clock, which all who share it agree on."""
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)

    def now() -> float:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime

    try:
        # Where a file system has no locks, exclusive creation still keeps two from holding one lease.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield now
    finally:
        os.close(descriptor)
