"""Files: atomic writes, the content-addressed cache, hashes of weights and of the project's source."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shiq_bench.leases import wait
from shiq_bench.records import SCHEMA_VERSION, Trajectory, UserError, canonical_json, stable_hash


def home() -> Path:
    """Root of every cache: ``$SHIQ_BENCH_HOME``, or ``~/.cache/shiq-bench``."""
    return Path(os.environ.get("SHIQ_BENCH_HOME") or Path.home() / ".cache" / "shiq-bench")


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that a reader sees the old file or the new one, never a part.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not of tempfile, whose files only their owner can read: results are shared.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _fsync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, data: Any) -> None:
    """Atomic, readable, deterministic JSON; NaN is refused rather than written."""
    write_atomic(path, (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def check_writable(folder: Path, need_mb: float = 1.0) -> None:
    """Find out before an hour of training whether its result can be kept.

    Raises:
        UserError: something else stands at ``folder``, it cannot be written, or the disk is full.
    """
    for parent in (folder, *folder.parents):
        if parent.exists():
            if not parent.is_dir():
                raise UserError(f"{parent} is a file; expected a folder for results: pass another with --results")
            break
    probe = folder / f".probe-{secrets.token_hex(6)}"
    write_atomic(probe, b"\0" * 65536)
    probe.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free / 2**20
    if free < need_mb:
        raise UserError(
            f"only {free:.0f} MB free at {folder}; this run needs about {need_mb:.0f}: free some, or pass --results"
        )


#: Called with what is waited for, and with who makes it.
Telling = Callable[[str, str], None]
_TELLING: ContextVar[Telling | None] = ContextVar("telling", default=None)


@contextlib.contextmanager
def telling(tell: Telling) -> Iterator[None]:
    """Have it said when :func:`cached_folder` waits for another process."""
    token = _TELLING.set(tell)
    try:
        yield
    finally:
        _TELLING.reset(token)


def cached_folder(kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder built for ``key``, building it once; what an interrupted build leaves is swept up.

    Of several processes that need it at once, one builds it and the others wait.
    ``key`` must hold everything that determines the content, as JSON data.
    """
    folder = home() / kind / stable_hash(key)[:24]

    def done() -> bool:
        return (folder / "key.json").is_file()

    def on_wait(who: str) -> None:
        if tell := _TELLING.get():
            tell(kind.replace("-", " "), who)

    if done():
        return folder
    try:
        lease = wait(folder.with_name(f".{folder.name}.lease"), done, on_wait)
    except UserError as error:
        raise UserError(f"{error}; set SHIQ_BENCH_HOME to another folder for the cache") from None
    if lease is None:
        return folder
    with lease:
        if lease.inherited:  # what a killed process had begun
            for begun in folder.parent.glob(f".{folder.name}.*/"):
                shutil.rmtree(begun, ignore_errors=True)
        if not done():
            _build(folder, key, build)
    return folder


def _build(folder: Path, key: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        build(temporary)
        write_json(temporary / "key.json", dict(key))
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "key.json").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """One JSON line a trajectory, behind a header line with the schema version."""
    lines = [canonical_json({"schema_version": SCHEMA_VERSION, "kind": "trajectories", "count": len(trajectories)})]
    lines += [canonical_json(asdict(t)) for t in trajectories]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def read_trajectories(path: Path) -> list[Trajectory]:
    """Inverse of :func:`write_trajectories`.

    Raises:
        UserError: the file is cut, of another kind, or of a newer schema.
    """
    return list(_trajectories(path))


def _trajectories(path: Path) -> Iterator[Trajectory]:
    try:
        with path.open() as file:
            header = json.loads(file.readline())
            if header.get("kind") != "trajectories":
                raise UserError(f"{path} holds {header.get('kind')!r}; expected trajectories")
            if header["schema_version"] > SCHEMA_VERSION:
                raise UserError(
                    f"{path}: schema {header['schema_version']} is newer than {SCHEMA_VERSION}: upgrade shiq-bench"
                )
            count = 0
            for line in file:
                row: dict[str, Any] = json.loads(line)
                given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
                count += 1
                yield Trajectory(**given)
            if count != header["count"]:
                raise UserError(f"{path} is cut: {count} of {header['count']} trajectories")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no trajectory file: {error}") from error


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 over names and contents, independent of the order given."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def source_hash() -> str:
    """Hash of this project's own Python source, so that tables can refuse to mix versions."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for package in ("shiq_bench", "algorithms", "tasks"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def code_hash(*classes: type) -> str:
    """Hash of the files that define some classes (whole packages where they are packages): plugins too."""
    files: list[Path] = []
    for cls in classes:
        path = Path(inspect.getfile(cls))
        files += sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return hash_files(files)[:16]
