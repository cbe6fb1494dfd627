"""What a log shows of a long stage."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shiq_bench.runs import progress
from shiq_bench.runs.progress import LiveReport


def test_a_long_stage_shows_signs_of_life_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with LiveReport(Console(file=out, width=100)) as report:
        for step in range(0, 101, 10):
            now[0] = step * 6.0  # a minute every ten
            report("training", step, 100)
        report("scoring", 0, 0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "training ..." and lines[-1] == "scoring ..."
    assert "  training: 50 of 100, about 5 min left" in lines
    assert len(lines) == 2 + 9  # one each minute, none at the end
