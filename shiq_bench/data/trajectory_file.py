"""Trajectories as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shiq_bench.api.trajectory import Trajectory
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import write_atomic
from shiq_bench.records.hashing import canonical_json
from shiq_bench.records.record import SCHEMA_VERSION


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
