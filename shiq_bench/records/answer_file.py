"""Files of one answer a line, as commands read and write them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from shiq_bench.records.errors import UserError


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
