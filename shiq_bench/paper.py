"""All tables and pictures of a results folder at once, with a manifest that leads from every file to its runs.

Only records are read, and the same records give the same bytes. Tables are written a task at a
time; a study is drawn as soon as the folder has one of its runs, and what it lacks is said in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shiq_bench import study as studies
from shiq_bench.api import Metric, tasks
from shiq_bench.records import SCHEMA_VERSION, RunRecord, UserError, canonical_json
from shiq_bench.reporting import pictures, runs, tables
from shiq_bench.reporting.tables import BY, By
from shiq_bench.store import write_atomic, write_json
from shiq_bench.study_cells import Cell, expand, look_up
from shiq_bench.study_file import Study, find, load, shipped

MANIFEST = "manifest.json"
INDEX = "index.md"


@dataclass(frozen=True)
class Made:
    """One file of a paper.

    Attributes:
        path: from the paper's folder.
        runs: ids of those that it shows.
        command: what draws it again, of a study.
    """

    path: str
    runs: tuple[str, ...]
    command: str = ""


def paper(
    folders: Sequence[Path], out: Path, given: Sequence[str] = (), *, allow_mixed: bool = False
) -> tuple[list[Made], list[str]]:
    """Write everything, and the manifest last.

    Args:
        folders: of run records.
        given: studies beside the shipped ones, by their paths.

    Returns:
        The files made, and a line for every record that could not be read.

    Raises:
        UserError: there are no records, what would be one table comes from different code and that is not allowed, or
            the folder cannot be written.
    """
    records, problems = runs.load_several(folders)
    if not records:
        raise UserError(f"no runs in {', '.join(map(str, folders))}: start with shiq-bench sweep")
    made = _tables(records, out, allow_mixed)
    for path in [*shipped().values(), *(p for name in given for p in find(name))]:
        made += _study(path, folders, out, allow_mixed)
    _write_manifest(records, made, out)
    return made, problems


def _tables(records: Sequence[RunRecord], out: Path, allow_mixed: bool) -> list[Made]:
    made = []
    known = set(tasks.names())
    by_task: dict[str, list[RunRecord]] = {}
    for record in records:
        by_task.setdefault(record.spec.task, []).append(record)
    for task, some in sorted(by_task.items()):
        metrics: Sequence[Metric] = tasks.get(task).metrics if task in known else ()
        ids = tuple(sorted(r.run_id for r in some))
        for by in BY:
            name = task if by == "task" else f"{task}-by-{by}"
            try:
                texts = _rendered(some, metrics, by, allow_mixed)
            except UserError as error:
                raise UserError(f"{task}: {error}") from None
            for suffix, text in texts.items():
                write_atomic(out / "tables" / f"{name}.{suffix}", text.encode())
                made.append(Made(f"tables/{name}.{suffix}", ids))
    return made


def _rendered(records: Sequence[RunRecord], metrics: Sequence[Metric], by: By, allow_mixed: bool) -> dict[str, str]:
    """Suffix -> text. The csv holds every number, whatever the table is by: it is written once."""
    comparison = tables.compare(records, metrics, allow_mixed=allow_mixed)
    out = {
        "md": tables.markdown(comparison, by),
        "html": tables.html(comparison, by),
        "tex": tables.latex(comparison, by),
    }
    return {**out, "csv": tables.csv(comparison)} if by == "task" else out


def _study(path: Path, folders: Sequence[Path], out: Path, allow_mixed: bool) -> list[Made]:
    study = load(path)
    cells = _found(study, folders)
    records = [cell.record for cell in cells if cell.record is not None]
    if not records:
        return []
    versions = sorted({r.source_hash for r in records})
    if len(versions) > 1 and not allow_mixed:
        raise UserError(f"{study.name}: its runs come from different code ({', '.join(versions)}): add --allow-mixed")
    shown = [c.shown if c.record or c.left_out else replace(c.shown, problem="it was not run") for c in cells]
    shown = [replace(s, problem=studies.unfinished(s)) if s.record and not s.problem else s for s in shown]
    files = pictures.write(studies.sheet(study, cells, shown), out / "studies")
    name = study.name if path == shipped().get(study.name) else str(path)
    ids = tuple(sorted(r.run_id for r in records))
    return [Made(f"studies/{file.name}", ids, f"shiq-bench study {name}") for file in files]


def _found(study: Study, folders: Sequence[Path]) -> list[Cell]:
    """The study's cells with the records of whichever folder has them."""
    cells = look_up(expand(study, folders[0]))
    for folder in folders[1:]:
        more = look_up(expand(study, folder))
        cells = [a if a.record is not None else b for a, b in zip(cells, more, strict=True)]
    return cells


def _write_manifest(records: Iterable[RunRecord], made: Sequence[Made], out: Path) -> None:
    write_json(
        out / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "paper",
            "runs": {r.run_id: _origin(r) for r in records},
            "files": {m.path: {"sha256": _digest(out / m.path), "runs": list(m.runs)} for m in made},
        },
    )
    lines = ["# Tables and pictures", "", f"Every file with its runs: [{MANIFEST}]({MANIFEST}).", ""]
    lines += [f"- [{m.path}]({m.path})" + (f", drawn by `{m.command}`" if m.command else "") for m in made]
    write_atomic(out / INDEX, ("\n".join(lines) + "\n").encode())


def _origin(record: RunRecord) -> Mapping[str, object]:
    """What tells a record from another one of the same run."""
    data = {k: v for k, v in record.to_json().items() if k not in ("timings", "peak_memory_mb", "hardware")}
    return {
        "content": hashlib.sha256(canonical_json(data).encode()).hexdigest(),
        "status": record.status,
        "source_hash": record.source_hash,
        "git_commit": record.git_commit,
        "git_dirty": record.git_dirty,
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
