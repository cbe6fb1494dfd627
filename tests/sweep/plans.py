"""A plan as a sweep writes it that begins now, and is told nothing unless the test says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shiq_bench.records.event_log import logged
from shiq_bench.sweep import grid


def write_plan(results: Path, jobs: Sequence[grid.Job], options: grid.Options | None = None) -> Path:
    return grid.write_plan(results, jobs, options or grid.Options(), logged(results))
