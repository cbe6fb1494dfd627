"""The one store of run records: ``<results>/<run_id>/record.json``.

The folder of a run also holds ``checkpoints/`` and ``policy/``; they belong to whoever trains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.escaping import in_line
from shiq_bench.records.files import write_json
from shiq_bench.records.record import SCHEMA_VERSION, RunRecord

RECORD = "record.json"

_ADAPTER = TypeAdapter(RunRecord)


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
    write_json(path, _readable(record.to_json()))
    return path


def _readable(data: Any) -> Any:
    """Half of a pair of surrogates, which Python holds and no other reader of JSON takes, replaced in every text."""
    if isinstance(data, str):
        return data if data.isascii() else data.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(data, dict):
        return {_readable(k): _readable(v) for k, v in data.items()}
    return [_readable(v) for v in data] if isinstance(data, list | tuple) else data


def load(path: Path | str) -> RunRecord:
    """Read one record, given its file or its run's folder.

    Raises:
        UserError: it is missing, cut, of a newer schema, or no run record by its fields and their types; the line
            names the file.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RECORD
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text, parse_constant=_no_number)
    except FileNotFoundError:
        raise UserError(f"no run record at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is cut or is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a run record: it holds a {type(data).__name__}; expected an object")
    try:
        if data.get("schema_version") == SCHEMA_VERSION:
            _check_types(text, data)
        return RunRecord.from_json(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def find(results: Path | str, run_id: str) -> RunRecord | None:
    """A run's record; None where there is none, or none that can be read, which the run itself will say."""
    try:
        return load(run_folder(results, run_id))
    except UserError:
        return None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds {text}")


def _check_types(text: str, data: Mapping[str, Any]) -> None:
    """Nothing later has to ask what a field of a record is: by its annotations, here, or not at all."""
    try:
        _ADAPTER.validate_json(text, strict=True)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=False)
        raise UserError(f"not a run record: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for evaluation in (*data["evaluations"], *data.get("curve", ())):
        numbers = {key for name in evaluation["metrics"] for key in (name, f"{name}/n")}
        for example in evaluation["examples"]:
            if not isinstance(example.get("prompt_id"), str):
                raise UserError("not a run record: an example has no prompt_id, or one that is no text")
            if bad := [k for k in numbers & example.keys() if not isinstance(example[k], int | float | None)]:
                raise UserError(f"not a run record: {min(bad)} of an example is no number")


def load_all(*folders: Path | str, run_ids: Sequence[str] | None = None) -> tuple[list[RunRecord], list[str]]:
    """Every record of some results folders (or those asked for), by run id, and what could not be read.

    A record that cannot be read is skipped and gets one line in the second list; it is up to the
    caller to show those lines. Folders without a ``record.json`` are no runs. A run that is there
    twice, and equal, counts once.

    Raises:
        UserError: no such folder, a run that was asked for is in none of them, or one run is there twice with
            different content; the line names both files.
    """
    found = [path for folder in dict.fromkeys(map(Path, folders)) for path in _found(folder)]
    names = {path.parent.name for path in found}
    for run_id in run_ids or ():
        if run_id not in names:
            where = f"{folders[0]} has no run" if len(folders) == 1 else "no folder has run"
            raise UserError(f"{where} {run_id!r}{suggest(run_id, sorted(names)) if names else ': no runs are there'}")
    records: dict[str, tuple[Path, RunRecord]] = {}
    problems = []
    for path in found:
        if run_ids is not None and path.parent.name not in run_ids:
            continue
        try:
            record = load(path)
        except UserError as error:
            problems.append(in_line(str(error)))
            continue
        other, same = records.setdefault(record.run_id, (path, record))
        if same is not record and same.to_json() != record.to_json():
            raise UserError(f"run {record.run_id} differs between {other} and {path}: leave one of them out")
    return [record for _, (_, record) in sorted(records.items())], problems


def _found(results: Path) -> list[Path]:
    """The records of one folder, by run id."""
    if not results.is_dir():
        what = "is a file; expected a folder" if results.exists() else "does not exist: no results"
        raise UserError(f"{results} {what}; pass another with --results")
    return sorted(results.glob(f"*/{RECORD}"))
