"""The one store of run records: ``<results>/<run_id>/record.json``.

The folder of a run also holds ``checkpoints/`` and ``policy/``; they belong to whoever trains.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from shiq_bench.api import suggest
from shiq_bench.records import RunRecord, UserError
from shiq_bench.reporting.literal import in_line
from shiq_bench.store import write_json

RECORD = "record.json"


def run_folder(results: Path | str, run_id: str) -> Path:
    """Where everything about one run is kept."""
    if not run_id or Path(run_id).name != run_id or run_id.startswith("."):
        raise UserError(f"{run_id!r} cannot be a run: expected the name of one folder")
    return Path(results) / run_id


def save(record: RunRecord, results: Path | str) -> Path:
    """Write the record atomically, in place of an earlier state of the same run.

    Raises:
        UserError: the folder cannot be written or the disk is full; the earlier state stays.
        ValueError: the record holds NaN or infinity, which JSON cannot carry.
    """
    path = run_folder(results, record.run_id) / RECORD
    write_json(path, record.to_json())
    return path


def load(path: Path | str) -> RunRecord:
    """Read one record, given its file or its run's folder.

    Raises:
        UserError: it is missing, cut, of a newer schema, or no run record; the line names the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RECORD
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no run record at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is cut or is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a run record: it holds a {type(data).__name__}; expected an object")
    try:
        return RunRecord.from_json(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def load_several(
    folders: Sequence[Path | str], *, run_ids: Sequence[str] | None = None
) -> tuple[list[RunRecord], list[str]]:
    """:func:`load_all` of several results folders as one; a run that is in two of them, and equal, counts once.

    Raises:
        UserError: as :func:`load_all`, where none of the folders has a run that was asked for, or one
            run differs between two folders; the line names both files.
    """
    if len(folders) == 1:
        return load_all(folders[0], run_ids=run_ids)
    records: dict[str, tuple[Path, RunRecord]] = {}
    problems: list[str] = []
    for folder in dict.fromkeys(map(Path, folders)):
        there = None if run_ids is None else [i for i in run_ids if (folder / i / RECORD).is_file()]
        found, unread = load_all(folder, run_ids=there)
        problems += unread
        for record in found:
            path = folder / record.run_id / RECORD
            other, same = records.setdefault(record.run_id, (path, record))
            if same.to_json() != record.to_json():
                raise UserError(f"run {record.run_id} differs between {other} and {path}: leave one of the folders out")
    if missing := [i for i in run_ids or () if i not in records and not any(i in p for p in problems)]:
        raise UserError(f"no folder has run {missing[0]!r}{suggest(missing[0], _names(folders))}")
    return [record for _, (_, record) in sorted(records.items())], problems


def _names(folders: Sequence[Path | str]) -> list[str]:
    return sorted({path.parent.name for folder in folders for path in Path(folder).glob(f"*/{RECORD}")})


def load_all(results: Path | str, *, run_ids: Sequence[str] | None = None) -> tuple[list[RunRecord], list[str]]:
    """Every record of a results folder (or those asked for), by run id, and what could not be read.

    A record that cannot be read is skipped and gets one line in the second list; it is up to the
    caller to show those lines. Folders without a ``record.json`` are no runs.

    Raises:
        UserError: no such folder, or a run that was asked for is not in it.
    """
    results = Path(results)
    if not results.is_dir():
        what = "is a file; expected a folder" if results.exists() else "does not exist: no results"
        raise UserError(f"{results} {what}; pass another with --results")
    found = {path.parent.name: path for path in sorted(results.glob(f"*/{RECORD}"))}
    for run_id in run_ids or ():
        if run_id not in found:
            hint = suggest(run_id, sorted(found)) if found else ": it holds no runs"
            raise UserError(f"{results} has no run {run_id!r}{hint}")
    wanted = found if run_ids is None else {run_id: found[run_id] for run_id in run_ids}
    records, problems = [], []
    for _, path in sorted(wanted.items()):
        try:
            records.append(load(path))
        except UserError as error:
            problems.append(in_line(str(error)))
    return records, problems
