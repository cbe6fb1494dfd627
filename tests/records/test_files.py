"""Files: atomic writes, the cache, trajectories on disk, and what is found out beforehand."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.records import files, leases, provenance
from shiq_bench.records.cache import cached_folder, telling
from shiq_bench.records.errors import UserError

ROOT = Path(__file__).parents[2]


def _full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "folder" / "file.json"
    files.write_json(path, {"a": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, step, _full)
        with pytest.raises(UserError, match="No space left on device"):
            files.write_json(path, {"a": 2})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["file.json"]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_others_can_read_what_is_written(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "shared", b"")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o666 & ~mask


def test_what_a_killed_build_left_is_swept_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path))
    made = cached_folder("things", {"a": 1}, lambda folder: None)
    shutil.rmtree(made)
    begun = made.with_name(f".{made.name}.abc")
    begun.mkdir()
    other = made.with_name(".another.abc")
    other.mkdir()
    made.with_name(f".{made.name}.lease").write_text(json.dumps({**leases._me(), "born": "1"}))
    assert cached_folder("things", {"a": 1}, lambda folder: None) == made
    assert not begun.exists() and other.exists()


def test_json_is_deterministic_and_refuses_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"b": 1, "a": [1.5, None]})
    files.write_json(tmp_path / "b", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "c", float("nan"))
    assert not (tmp_path / "c").exists()


def test_check_writable_finds_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    for folder in (tmp_path / "results", tmp_path / "results" / "deeper"):
        with pytest.raises(UserError, match="is a file; expected a folder"):
            files.check_writable(folder)
    assert (tmp_path / "results").read_text() == "mine"


def test_check_writable_finds_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.check_writable(tmp_path / "new" / "results")
    assert os.listdir(tmp_path / "new" / "results") == []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 2**20))
    with pytest.raises(UserError, match="only 1 MB free"):
        files.check_writable(tmp_path / "new", need_mb=50)
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(UserError, match="No space left"):
        files.check_writable(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == ["results"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _builder(calls: list[Path]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "data").write_text(str(len(calls)))

    return build


def test_cached_folder_builds_once_a_key(cache: Path) -> None:
    calls: list[Path] = []
    first = cached_folder("things", {"a": 1, "b": 2}, _builder(calls))
    again = cached_folder("things", {"b": 2, "a": 1}, _builder(calls))
    assert first == again and first.is_relative_to(cache) and len(calls) == 1
    assert (first / "data").read_text() == "1"
    assert json.loads((first / "key.json").read_text()) == {"a": 1, "b": 2}
    assert cached_folder("things", {"a": 1, "b": 3}, _builder(calls)) != first
    assert cached_folder("others", {"a": 1, "b": 2}, _builder(calls)) != first
    assert len(calls) == 3


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_build_leaves_nothing(cache: Path, kind: type[BaseException]) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise kind

    with pytest.raises(kind):
        cached_folder("things", {"a": 1}, build)
    assert os.listdir(cache / "things") == [".lock"]
    calls: list[Path] = []
    cached_folder("things", {"a": 1}, _builder(calls))
    assert len(calls) == 1


def test_of_two_builders_one_waits_says_so_and_takes_what_is_there(cache: Path) -> None:
    """The other one is another process: a sweep computes a reference once, whoever needs it first."""
    script = (
        "import time; from shiq_bench.records import cache\n"
        "def build(folder):\n    print('building', flush=True); time.sleep(2); (folder / 'data').write_text('theirs')\n"
        "cache.cached_folder('some-things', {'a': 1}, build)"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout is not None and other.stdout.readline() == b"building\n"
    told: list[tuple[str, str]] = []
    with telling(lambda *what: told.append(what)):
        folder = cached_folder("some-things", {"a": 1}, lambda _: pytest.fail("it was built twice"))
    assert (folder / "data").read_text() == "theirs" and other.wait(60) == 0
    assert [what for what, _ in told] == ["some things"] and told[0][1].startswith(f"process {other.pid} on ")
    assert [name for name in os.listdir(cache / "some-things") if name != ".lock"] == [folder.name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match="SHIQ_BENCH_HOME"):
        cached_folder("things", {}, lambda _: None)


def test_hash_of_files_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    first = provenance.hash_files([a, b])
    assert first == provenance.hash_files([b, a])
    b.write_text("3")
    assert first != provenance.hash_files([a, b])


def test_source_hash_is_stable() -> None:
    assert provenance.source_hash() == provenance.source_hash()
    assert len(provenance.source_hash()) == 16
