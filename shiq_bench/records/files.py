"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from shiq_bench.records.errors import UserError


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
