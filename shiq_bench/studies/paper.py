"""All tables and pictures of a results folder at once, with a manifest that leads from every file to its runs.

Only records are read, and the same records give the same bytes. Tables are written a task at a
time; a study is drawn as soon as the folder has one of its runs, and what it lacks is said in it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shiq_bench.api.registry import tasks
from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import write_atomic, write_json
from shiq_bench.records.hashing import canonical_json
from shiq_bench.records.provenance import code_versions
from shiq_bench.records.record import SCHEMA_VERSION, Metric, RunRecord
from shiq_bench.report import figures, tables
from shiq_bench.report.comparison import compare
from shiq_bench.studies.schema import find, load, shipped
from shiq_bench.studies.study import PlannedTrial, expand, look_up, sheet

MANIFEST = "manifest.json"
INDEX = "index.md"
#: Suffix of a table's file -> its format.
TABLES = {"md": "md", "html": "html", "tex": "latex", "csv": "csv"}


@dataclass(frozen=True)
class Made:
    """One file of a paper: its path in there, its bytes, the ids of the runs it shows, and what draws a study again."""

    path: str
    data: bytes
    runs: tuple[str, ...]
    command: str = ""


def paper(
    folders: Sequence[Path],
    out: Path,
    given: Sequence[str] = (),
    *,
    allow_mixed: bool = False,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[list[Made], list[str]]:
    """Write everything, and the manifest last.

    Records are read once and everything is drawn before anything is written, so that a refusal leaves
    the folder as it was. What an earlier paper wrote, nobody has changed and no record backs any more is
    deleted, unless some record cannot be read.

    Args:
        given: studies beside the shipped ones, by their paths.

    Returns:
        The files made, and a line for every record that could not be read.

    Raises:
        UserError: there are no records, what would be one table comes from different code and that is not allowed, or
            the folder cannot be written.
    """
    records, problems = run_store.load_all(*folders)
    if not records:
        raise UserError(f"no runs in {', '.join(map(str, folders))}: start with shiq-bench sweep")
    made = _tables(records, allow_mixed, report)
    paths = [*shipped().values(), *(p for name in given for p in find(name))]
    for i, path in enumerate(paths):
        report("studies", i, len(paths))
        made += _study(path, records, folders[0], allow_mixed)
    for file in made:
        write_atomic(out / file.path, file.data)
    left = {name: digest for name, digest in _listed(out).items() if name not in {m.path for m in made}}
    if not problems:
        _delete(left, out)
    extra = [word for name in given for word in ("--study", str(name))]
    command = _command(["table", "--paper"], folders, extra)
    _write_manifest(records, made, left if problems else {}, command, out)
    return made, problems


def _tables(records: Sequence[RunRecord], allow_mixed: bool, report: Callable[[str, int, int], None]) -> list[Made]:
    made: list[Made] = []
    by_task = {task: [r for r in records if r.spec.task == task] for task in sorted({r.spec.task for r in records})}
    for i, (task, some) in enumerate(by_task.items()):
        report("tables", i, len(by_task))
        metrics: Sequence[Metric] = tasks.get(task).metrics if task in tasks.names() else ()
        ids = tuple(sorted(r.run_id for r in some))
        try:
            comparison = compare(some, metrics, allow_mixed=allow_mixed)
        except UserError as error:
            raise UserError(f"{task}: {error}") from None
        for suffix, format in TABLES.items():
            made.append(Made(f"tables/{task}.{suffix}", tables.text(comparison, format).encode(), ids))
    return made


def _study(path: Path, records: Sequence[RunRecord], results: Path, allow_mixed: bool) -> list[Made]:
    study = load(path)
    there = {r.run_id: r for r in records}
    cells = look_up(expand(study, results), lambda spec: there.get(spec.run_id))
    found = [cell.record for cell in cells if cell.record is not None]
    if not found:
        return []
    if (versions := code_versions(found)) and not allow_mixed:
        raise UserError(f"{study.name}: its runs come from different code ({'; '.join(versions)}): add --allow-mixed")
    shown = [replace(cell, problem=cell.problem or _missing(cell, there)) for cell in cells]
    files = figures.files_of(sheet(study, shown))
    name = study.name if path == shipped().get(study.name) else str(path)
    command = _command(["study", name], [results])
    ids = tuple(sorted(r.run_id for r in found))
    return [Made(f"studies/{study.name}.{suffix}", data, ids, command) for suffix, data in files.items()]


def _command(words: Sequence[str], folders: Sequence[Path], extra: Sequence[str] = ()) -> str:
    """What a person types to do so again; the usual folder of results goes without saying."""
    told = [] if [*folders] == [Path("results")] else [word for f in folders for word in ("--results", str(f))]
    return shlex.join(["shiq-bench", *words, *told, *extra])


def _missing(cell: PlannedTrial, there: Mapping[str, RunRecord]) -> str:
    """Why a cell has no finished record; "" where it has one, or is not to have one."""
    if cell.record is not None or cell.left_out:
        return ""
    record = there.get(cell.resolved.spec.run_id)
    return "it was not run" if record is None else f"{record.status}: {record.error or 'it was stopped'}"


def _listed(out: Path) -> dict[str, str]:
    """The files of the manifest that is there, with their hashes; none where there is no readable one."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        assert manifest["kind"] == "paper"
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        return {str(name): str(digest) for name, digest in {**manifest.get("kept", {}), **files}.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        return {}


def _delete(files: Mapping[str, str], out: Path) -> None:
    """Delete unchanged files of an earlier paper, and nothing outside its two folders, whatever a manifest says."""
    for name, digest in files.items():
        path = Path(name)
        ours = len(path.parts) == 2 and path.parts[0] in ("tables", "studies") and (out / path).is_file()
        if ours and _sha256((out / path).read_bytes()) == digest:
            (out / path).unlink()


def _write_manifest(
    records: Iterable[RunRecord], made: Sequence[Made], kept: Mapping[str, str], command: str, out: Path
) -> None:
    """With what an earlier paper wrote and was not deleted, for the next one to do so."""
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": "paper",
        "runs": {r.run_id: _origin(r) for r in records},
        "files": {m.path: {"sha256": _sha256(m.data), "runs": list(m.runs)} for m in made},
    }
    write_json(out / MANIFEST, manifest | ({"kept": kept} if kept else {}))
    head = f"# Tables and pictures\n\nWritten by `{command}`. Every file with its runs: [{MANIFEST}]({MANIFEST}).\n\n"
    lines = [f"- [{m.path}]({m.path})" + (f", drawn by `{m.command}`" if m.command else "") for m in made]
    write_atomic(out / INDEX, (head + "\n".join(lines) + "\n").encode())


def _origin(record: RunRecord) -> Mapping[str, object]:
    """What tells a record from another one of the same run."""
    data = {k: v for k, v in record.to_json().items() if k not in ("timings", "peak_memory_mb", "hardware")}
    told = ("status", "source_hash", "git_commit", "git_dirty")
    return {"content": _sha256(canonical_json(data).encode()), **{name: data[name] for name in told}}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
