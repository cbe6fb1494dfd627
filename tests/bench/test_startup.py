"""What the benchmark of starting up measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiq_bench.bench.startup import _environment, _process
from shiq_bench.records.errors import UserError


def test_what_is_measured_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Python is told to keep nothing that it compiles: the compiler is no part of a start."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert _process(["-c", "import shiq_bench"], _environment(str(tmp_path))) > 0
    assert {p.name.partition(".")[0] for p in tmp_path.rglob("shiq_bench/*.pyc")} >= {"__init__"}


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="KeyError: 'away'"):
        _process(["-c", "{}['away']"], _environment(str(tmp_path)))
