"""Files that are written whole or not at all, and files of one answer a line."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from shiq_bench.records.errors import UserError


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
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
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


def read_lines(answers: Path) -> list[str]:
    """The lines of a file; bytes that are no UTF-8 spoil their own line only.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return answers.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {answers}: {error.strerror or error}") from error


def check_out(out: Path, answers: Path) -> None:
    """Find out before an hour of scoring whether its result can be written to ``out``.

    Raises:
        UserError: it is a folder or the file of answers, or cannot be written.
    """
    try:
        if out.is_dir() or out.resolve() == answers.resolve():
            taken = "a folder" if out.is_dir() else "the file of answers"
            raise UserError(f"--out {out} is {taken}: name another file")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}."):
            pass
    except (OSError, RuntimeError) as error:  # the latter: links that lead in a circle
        folder = isinstance(error, FileExistsError)
        reason = "its folder is a file" if folder else getattr(error, "strerror", None) or error
        raise UserError(f"cannot write --out {out}: {reason}; name another file") from error
