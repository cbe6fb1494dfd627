"""Which bugs ``make test`` plants: those that are being worked on. ``make proof`` plants them all."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
BASE = "origin/main"


def planted(root: Path = ROOT, bugs: list[Mutation] = MUTATIONS) -> tuple[list[Mutation], str]:
    """The bugs whose file or test differs from ``origin/main``, and why these; all of them where that is unknown."""
    try:
        files = differing(root)
    except (OSError, subprocess.CalledProcessError):
        return bugs, f"all of them: there is no {BASE} to compare with"
    found = [m for m in bugs if {m.file, m.test.partition("::")[0]} & files]
    return found, f"those whose file or test differs from {BASE}"


def differing(root: Path) -> set[str]:
    """Files under a folder that differ from ``origin/main``: committed or not, tracked or not.

    Raises:
        OSError: if there is no git.
        subprocess.CalledProcessError: if the folder is in no repository, or the branch is missing.
    """
    commands = (
        ["git", "diff", "--name-only", "--relative", BASE, "--"],
        ["git", "ls-files", "--others", "--exclude-standard"],
    )
    found = [subprocess.run(c, cwd=root, capture_output=True, text=True, check=True).stdout for c in commands]
    return {line for text in found for line in text.splitlines()}
