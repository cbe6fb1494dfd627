"""A study's records to files: the picture, a page of Markdown with what it shows, the numbers as CSV.

The same records give the same bytes: no file holds a date.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from shiq_bench.records.escaping import in_markdown
from shiq_bench.records.files import write_atomic
from shiq_bench.report import render
from shiq_bench.report.document import Document, Section
from shiq_bench.report.findings import findings
from shiq_bench.report.plot import draw
from shiq_bench.report.render import bullets, pipe_tables
from shiq_bench.report.study_results import Findings, StudyResults, series

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

#: In a page: what follows is not repeated in the index.
NUMBERS = "<!-- numbers -->"
INDEX = "theory.md"


def files_of(study: StudyResults) -> dict[str, bytes]:
    """Everything about one study by its suffix: ``png`` and ``pdf`` (where it is drawn), ``md`` and ``csv``."""
    drawn = {} if study.kind == "table" else draw(study)
    text = {"md": page(study, findings(study)), "csv": render.to_csv(frame(study))}
    return {**drawn, **{suffix: data.encode() for suffix, data in text.items()}}


def write(study: StudyResults, out: Path) -> list[Path]:
    """Write :func:`files_of` a study, under its name, or raise UserError where the folder cannot be written."""
    files = {out / f"{study.name}.{suffix}": data for suffix, data in files_of(study).items()}
    for path, data in files.items():
        write_atomic(path, data)
    return [*files]


def page(study: StudyResults, said: Findings) -> str:
    """The study in Markdown: question, picture or tables, what it shows, notes, and the numbers behind it."""
    drawn = study.kind != "table"
    first = [f"![{in_markdown(study.title)}]({study.name}.png)", ""] if drawn else pipe_tables(said.tables)
    rest = [table for table in said.tables if drawn and table not in said.embedded]
    files = " and ".join(f"[{study.name}.{s}]({study.name}.{s})" for s in (["csv", "pdf"] if drawn else ["csv"]))
    lines = [
        f"# {in_markdown(study.title)}", "", in_markdown(study.asks), "", *first, in_markdown(said.lead), "",
        *bullets((*said.claims, *said.problems)), "", *pipe_tables(said.embedded), *bullets(said.notes), "",
        NUMBERS, "", *pipe_tables(rest), f"Every number with its run: {files}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def index(out: Path, names: Sequence[str]) -> Path:
    """Write ``theory.md``: the pages of a folder one after the other, without their tables of numbers."""
    parts = ["# The theory, made visible", ""]
    for name in names:
        path = out / f"{name}.md"
        if path.is_file():
            text = path.read_text(encoding="utf-8").split(NUMBERS)[0].rstrip()
            parts += [f"#{text}", "", f"[Numbers]({name}.md)", ""]
    write_atomic(out / INDEX, ("\n".join(parts).rstrip() + "\n").encode())
    return out / INDEX


def frame(study: StudyResults) -> pd.DataFrame:
    """One row a point: what is drawn or tabled, and the run it comes from (of language models, one a seed)."""
    import pandas as pd

    rows = []
    metrics = [study.metric, *([study.x_metric] if study.kind == "front" else [])]
    for panel, method, metric in product(study.panels, study.methods, metrics):
        runs: dict[float | None, list[str]] = {}
        for cell in study.of(panel, method):
            if cell.record is not None:
                runs.setdefault(cell.x, []).append(cell.record.run_id)
        for x, e in series(study, panel, method, metric):
            run = " ".join(runs.get(None if None in runs else x, []))
            rows.append((panel, method, x, metric, e.mean, e.low, e.high, e.units, run))
    return pd.DataFrame(rows, columns=["panel", "method", "x", "metric", "mean", "low", "high", "n", "run_id"])


def terminal(study: StudyResults) -> RenderableType:
    """For a rich console: the tables of a study that is a table, and what it shows."""
    said = findings(study)
    shown = said.tables if study.kind == "table" else said.embedded
    section = Section(study.title, shown, (said.lead, *said.claims, *said.problems), said.notes)
    return render.to_terminal(Document((section,)))
