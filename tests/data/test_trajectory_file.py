"""Trajectories come back from their file exactly as they went in, or the file is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.dataset import read_trajectories, write_trajectories
from shiq_bench.records.errors import UserError

TRAJECTORIES = [
    Trajectory("p0", (1, 2, 3), (False, True, True), (0.0, 0.0, 0.1), (0.0, -0.1, -1 / 3), False, "reference", 0.5),
    Trajectory("p1", (9, 8), (False, True), (0.0, 1.0), None, True, "gold", rank=2.0),
]


def test_trajectories_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "data" / "trajectories.parquet"
    write_trajectories(path, TRAJECTORIES)
    assert read_trajectories(path) == TRAJECTORIES
    before = path.read_bytes()
    write_trajectories(path, TRAJECTORIES)
    assert path.read_bytes() == before
    write_trajectories(path, [])
    assert read_trajectories(path) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lines(path: Path) -> None:
    path.write_text('{"prompt_id": "p0"}\n')


def another_table(path: Path) -> None:
    pq.write_table(pa.table({"prompt_id": ["p0"]}), path)


def an_action_without_a_context(path: Path) -> None:
    table = pq.read_table(path)
    mask = pa.array([[True] * len(row) for row in table.column("action_mask").to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("action_mask"), "action_mask", mask), path)


@pytest.mark.parametrize("spoil", [cut, empty, lines, another_table, an_action_without_a_context, Path.unlink])
def test_a_spoilt_file_is_refused_by_name(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "trajectories.parquet"
    write_trajectories(path, TRAJECTORIES)
    spoil(path)
    with pytest.raises(UserError, match="is no trajectory file") as caught:
        read_trajectories(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
