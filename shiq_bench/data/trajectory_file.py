"""Trajectories as Parquet: a row a trajectory, read back exactly as it was."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.schema import COLUMNS
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import write_atomic

#: Columns that are a trajectory's own.
FIELDS = tuple(f.name for f in fields(Trajectory))


def arrow_schema(names: Sequence[str] = tuple(COLUMNS)) -> Any:
    """Arrow's types of some of :data:`~shiq_bench.data.schema.COLUMNS`."""
    import pyarrow as pa

    plain = {"string": pa.string(), "bool": pa.bool_(), "int32": pa.int32(), "double": pa.float64()}
    kinds = {**plain, **{f"list<{name}>": pa.list_(kind) for name, kind in plain.items()}}
    return pa.schema([(name, kinds[COLUMNS[name][0]]) for name in names])


def to_parquet(trajectories: Sequence[Trajectory], more: Mapping[str, Callable[[Trajectory], Any]]) -> bytes:
    """The file: :data:`FIELDS`, and ``more`` columns computed from each row. The same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema([name for name in COLUMNS if name in FIELDS or name in more])
    columns = [
        pa.array([more[c.name](t) if c.name in more else getattr(t, c.name) for t in trajectories], c.type)
        for c in schema
    ]
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), file, compression="zstd", row_group_size=1024)
    return file.getvalue()


def from_rows(columns: Mapping[str, Sequence[Any]], n: int) -> Trajectory:
    """Row ``n`` of some columns.

    Raises:
        ValueError: it is no trajectory.
    """
    values: dict[str, Any] = {name: columns[name][n] for name in FIELDS}
    row: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Trajectory(**row)


def write_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write them whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomic(path, to_parquet(trajectories, {}))


def read_trajectories(path: Path) -> list[Trajectory]:
    """Inverse of :func:`write_trajectories`.

    Raises:
        UserError: the file is cut, or of another kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()
        columns = {name: table.column(name).to_pylist() for name in FIELDS}
        return [from_rows(columns, n) for n in range(len(table))]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} is no trajectory file: {' '.join(str(error).split())}") from error
