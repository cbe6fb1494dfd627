"""Leases: one holder at a time, whoever dies, and nobody's lease is given back but one's own."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.records import leases
from shiq_bench.records.errors import UserError

FORK = multiprocessing.get_context("fork")


def contend(path: Path, ready: Any, out: Any) -> None:
    ready.wait()
    try:
        leases.acquire(path)
        out.put(os.getpid())
        time.sleep(3)
    except leases.Held:
        out.put(None)


def contenders(path: Path, count: int = 8) -> list[int]:
    """Who got a lease that so many processes want at once."""
    ready, out = FORK.Event(), FORK.Queue()
    processes = [FORK.Process(target=contend, args=(path, ready, out)) for _ in range(count)]
    for process in processes:
        process.start()
    ready.set()
    got = [out.get(timeout=30) for _ in processes]
    for process in processes:
        process.kill()
        process.join()
    return [pid for pid in got if pid]


def test_one_of_many_gets_it_and_one_of_many_follows_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "run.lease"
    for _ in range(3):  # the second and third time the holder of the time before was killed
        assert len(contenders(path)) == 1
        assert path.exists()


def test_a_live_holder_is_named_and_a_released_lease_is_free(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.lease"
    with leases.acquire(path) as lease:
        assert not lease.inherited
        holder = leases.holder(path)
        assert holder is not None and holder["pid"] == os.getpid()
        with pytest.raises(leases.Held, match=rf"run.lease is at work already: process {os.getpid()} on "):
            leases.acquire(path)
        lease.check()
    assert leases.holder(path) is None and not path.exists()
    with leases.acquire(path) as again:
        assert not again.inherited


def test_a_number_that_is_used_again_is_not_the_holder(tmp_path: Path) -> None:
    """The process of that number lives, and was born at another time."""
    path = tmp_path / "run.lease"
    leases.acquire(path).release()
    me = {**leases._me(), "born": "1"}
    path.write_text(json.dumps(me))
    assert leases.holder(path) is None
    with leases.acquire(path) as lease:
        assert lease.inherited


@pytest.mark.parametrize(("silent", "free"), [(leases.TTL - 60, False), (leases.TTL + 60, True)])
def test_another_machine_is_dead_once_it_is_silent_for_long(tmp_path: Path, silent: float, free: bool) -> None:
    path = tmp_path / "run.lease"
    path.write_text(json.dumps({**leases._me(), "where": "another boot", "host": "far", "pid": 1}))
    os.utime(path, (time.time() - silent,) * 2)
    assert (leases.holder(path) is None) == free
    if free:
        leases.acquire(path).release()
    else:
        with pytest.raises(leases.Held, match="process 1 on far"):
            leases.acquire(path)


def test_a_lease_that_was_just_created_is_held_though_it_says_nothing_yet(tmp_path: Path) -> None:
    path = tmp_path / "run.lease"
    path.touch()
    with pytest.raises(leases.Held):
        leases.acquire(path)


def move_away(path: Path) -> None:
    """Let the holder be one of another machine, in the same file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "where": "another boot"}))


def test_one_that_was_suspended_here_is_alive(tmp_path: Path) -> None:
    """A laptop that wakes up: no lease has been touched, and nobody's run is anybody else's."""
    path = tmp_path / "run.lease"
    with leases.acquire(path) as lease:
        os.utime(path, (time.time() - 10 * leases.TTL,) * 2)
        assert leases.holder(path) is not None
        with pytest.raises(leases.Held):
            leases.acquire(path)
        lease.check()


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_locks_a_dead_holder_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two who saw it dead, the second would delete the lease of the first."""
    without_locks(monkeypatch)
    path = tmp_path / "run.lease"
    with leases.acquire(path), pytest.raises(leases.Held):
        leases.acquire(path)
    path.write_text(json.dumps({**leases._me(), "born": "1"}))
    with pytest.raises(UserError, match=r"no locks .* delete it"):
        leases.acquire(path)
    assert path.exists()


def test_who_may_only_read_sees_who_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.lease"
    with leases.acquire(path):
        opened = os.open

        def read_only(name: object, flags: int, *more: object) -> int:
            if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(name, flags, *more)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", read_only)
            assert (leases.holder(path) or {}).get("pid") == os.getpid()


def test_a_full_disk_leaves_no_lease_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "run.lease"
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match="No space left"):
            leases.acquire(path)
    assert not path.exists()


def test_a_folder_that_is_gone_is_let_go_of(tmp_path: Path) -> None:
    lease = leases.acquire(tmp_path / "r" / "run.lease")
    shutil.rmtree(tmp_path / "r")
    lease.release()
    assert not lease.held


def test_who_was_thought_dead_must_not_write_and_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that was suspended: others went on, and it wakes up."""
    monkeypatch.setattr(leases, "BEAT", 1000.0)
    path = tmp_path / "run.lease"
    slow = leases.acquire(path)
    move_away(path)
    os.utime(path, (time.time() - leases.TTL - 60,) * 2)
    next_one = leases.acquire(path)
    assert next_one.inherited
    with pytest.raises(leases.Lost, match="another process has taken this over"):
        slow.check()
    slow.release()
    assert path.exists()
    next_one.check()
    next_one.release()
    assert not path.exists()


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.05)
    path = tmp_path / "run.lease"
    with leases.acquire(path):
        os.utime(path, (0, 0))
        until = time.monotonic() + 10
        while path.stat().st_mtime < 1 and time.monotonic() < until:
            time.sleep(0.02)
        assert path.stat().st_mtime > 1


def build(path: Path, made: Path, log: Path) -> None:
    def done() -> bool:
        return made.exists()

    lease = leases.wait(path, done)
    if lease is not None:
        with lease:
            with log.open("a") as file:
                file.write("built\n")
            time.sleep(0.5)
            made.touch()


def test_one_builds_and_the_others_wait_for_it(tmp_path: Path) -> None:
    made, log = tmp_path / "made", tmp_path / "log"
    processes = [FORK.Process(target=build, args=(tmp_path / "lease", made, log)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert log.read_text() == "built\n" and not (tmp_path / "lease").exists()


def test_who_waits_takes_over_from_a_builder_that_is_killed(tmp_path: Path) -> None:
    def hold(path: Path) -> None:
        leases.acquire(path)
        signal.pause()

    path = tmp_path / "lease"
    builder = FORK.Process(target=hold, args=(path,))
    builder.start()
    wait_until(path.exists)
    told: list[str] = []

    def on_wait(who: str) -> None:
        told.append(who)
        builder.kill()
        builder.join()

    lease = leases.wait(path, lambda: False, on_wait)
    assert lease is not None and lease.inherited
    lease.release()
    assert told and told[0].startswith(f"process {builder.pid} on ")


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    assert true()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        leases.acquire(tmp_path / "file" / "run.lease")
