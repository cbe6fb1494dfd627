"""Leases: which process works on what, among processes and machines that share a folder.

A lease is a file that is created exclusively and touched every few seconds by who holds it. It is
free again once its holder has let go of it, is known to be dead (on the same machine, where nothing
else counts: one that was suspended is alive), or has not touched it for :data:`TTL` seconds (on another
one, by the clock of the shared file system). Taking a dead holder's lease and giving one back happen
under a lock of the kernel's, which dies with its process, so that of many who see a dead holder exactly
one follows it. On a file system without such locks a lease is still taken by one alone, and a dead
holder's is not taken over: whoever wants it is told to delete it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shiq_bench.records.errors import UserError

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


class Lease(contextlib.AbstractContextManager["Lease"]):
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

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self) -> None:
        """Before anything is written that only the holder may write.

        Raises:
            Lost: this process does not hold the lease any more.
        """
        if not self.held:
            raise Lost(f"{self.path.name}: another process has taken this over, for this one had stopped for too long")

    @property
    def held(self) -> bool:
        """Whether this process still has it."""
        self.lost = self.lost or not self._ours()
        return not self.lost

    def release(self) -> None:
        """Let others have it; nothing happens where they already do."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError), locked(self.path.parent):  # the folder itself may be gone
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
            self.lost = self.lost or not self._ours()  # noted even where nobody asks before the next thief


def acquire(path: Path) -> Lease:
    """Take a lease that is free, or whose holder is dead.

    Raises:
        Held: its holder is alive; the line says who that is.
        UserError: the folder cannot be written, or has no locks and a dead holder's lease in it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent) as lock:
            if inherited := path.exists():
                if not _dead(path, lock.now()):
                    raise Held(f"{path.name} is at work already: {describe(path)}")
                if not lock.real and path.exists():
                    raise UserError(
                        f"{path} was left by a dead process, and this file system has no locks to take it over safely: "
                        "delete it"
                    )
                path.unlink(missing_ok=True)
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:  # without locks somebody may have come between
                raise Held(f"{path.name} is at work already: {describe(path)}") from None
            try:
                os.write(descriptor, json.dumps(_me()).encode())
            except OSError:
                path.unlink()
                raise
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
    """Who holds a lease that is not dead, by ``host``, ``where``, ``pid`` and ``born``; None: nobody."""
    try:
        with locked(path.parent) as lock:
            return None if _dead(path, lock.now()) else _content(path)
    except FileNotFoundError:
        return None
    except OSError:  # who may only read a folder cannot lock it, and has but this machine's clock
        return None if _dead(path, time.time()) else _content(path)


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
        "host": socket.gethostname(),
        "where": _where(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
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
    if who.get("where") == _where() and who.get("born") != "unknown":
        return _born(int(who["pid"])) != who["born"]
    return now - touched > TTL


class Lock(NamedTuple):
    """A folder's lock.

    Attributes:
        now: the file system's own clock, which all who share it agree on.
        real: whether it keeps anybody out; not every file system has locks.
    """

    now: Callable[[], float]
    real: bool


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """Hold the folder's lock."""
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)

    def now() -> float:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime

    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            real = True
        except OSError:
            real = False
        yield Lock(now, real)
    finally:
        os.close(descriptor)
