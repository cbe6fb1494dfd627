"""Run records to tables: the reference beside every trained policy, with intervals and n.

:func:`compare` does the arithmetic once; the renderers only lay it out. The same records give the
same bytes: nothing here reads a clock or a folder.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.escaping import in_csv, in_line, in_markdown
from shiq_bench.records.files import write_atomic
from shiq_bench.records.metric import ENGINE_METRICS, Metric
from shiq_bench.records.record import RunRecord
from shiq_bench.report import markup
from shiq_bench.report.blocks import Block, Cell, Column, Comparison
from shiq_bench.report.comparison import compare
from shiq_bench.report.frame import frame
from shiq_bench.report.layout import Section
from shiq_bench.report.pivots import BY, By, sections
from shiq_bench.stats.ranking import BOLD_SEEDS

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "BOLD_SEEDS", "BY", "ENGINE_METRICS", "FORMATS", "WIDTH", "Block", "By", "Cell", "Column", "Comparison", "compare",
    "csv", "html", "latex", "markdown", "markdown_sections", "print_table", "run_table",
    "terminal", "terminal_sections", "terminal_text",
]  # fmt: skip

#: What a comparison can be printed as.
FORMATS = ("rich", "md", "latex", "html", "csv")

#: Columns of a table that is not printed to a terminal.
WIDTH = 120


def run_table(record: RunRecord, metrics: Sequence[Metric] = (), *, console: Console | None = None) -> None:
    """Print the table of one run: reference and trained, every split, greedy and sampled."""
    print_table([record], metrics, console=console)


def print_table(
    records: Iterable[RunRecord],
    metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]] = (),
    *,
    format: str = "rich",
    by: str = "task",
    out: Path | None = None,
    allow_mixed: bool = False,
    console: Console | None = None,
) -> None:
    """:func:`compare`, and print it, or write it to a file.

    A terminal decides how wide a rich table is; a pipe or a file gets 120 columns.

    Args:
        format: one of :data:`FORMATS`; ``csv`` holds every number, a row each, whatever ``by`` is.
        by: what a section is about (:func:`arrangements.sections`).
        out: a file to write, whole or not at all, instead of printing.

    Raises:
        UserError: as :func:`compare`, another format or arrangement, or a file that cannot be written.
    """
    from rich.console import Console

    if format not in FORMATS:
        raise UserError(f"no table format is called {format!r}{suggest(format, FORMATS)}")
    arranged = next((known for known in BY if known == by), None)
    if arranged is None:
        raise UserError(f"no table is made by {by!r}{suggest(by, BY)}")
    records, console = list(records), console or Console()
    with console.status(f"comparing {len(records)} runs") if console.is_terminal else nullcontext():
        comparison = compare(records, metrics, allow_mixed=allow_mixed)
    if out is None and format == "rich":
        if not console.is_terminal and console.width < WIDTH:
            console = Console(file=console.file, width=WIDTH, color_system=None)
        console.print(terminal(comparison, console.width, arranged))
        return
    render: dict[str, Callable[..., str]] = {"rich": terminal_text, "md": markdown, "latex": latex, "html": html}
    text = csv(comparison) if format == "csv" else render[format](comparison, by=arranged)
    if out is None:
        console.file.write(text)
    else:
        write_atomic(out, text.encode())


# --- renderers -----------------------------------------------------------------------------------


def terminal(comparison: Comparison, width: int = WIDTH, by: By = "task") -> RenderableType:
    """For a rich console: tables that fit the width, captions underneath."""
    return terminal_sections(sections(comparison, by, width), comparison.captions)


def terminal_sections(found: Sequence[Section], captions: Sequence[str]) -> RenderableType:
    """Sections for a rich console, whatever they are about; no markup is read from their texts, and no escape."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def said(text: str, style: str = "") -> Text:
        return Text(in_line(text), style=style)

    parts: list[RenderableType] = []
    for section in found:
        parts.append(said(section.title, "bold cyan"))
        for panel in section.panels:
            table = Table(
                title=said(panel.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
                pad_edge=False, padding=(0, 1, 0, 0), header_style="",
            )  # fmt: skip
            table.add_column("")
            for i, ((split, policy, state), head) in enumerate(zip(panel.headers, panel.heads, strict=True)):
                lines = Text()
                for line_number, text in enumerate(head):
                    kind = "bold magenta" if text == split else "dim" if text in state else "bold"
                    lines.append(("\n" if line_number else "") + in_line(text), style=kind)
                if i in panel.breaks:
                    table.add_column("")
                # Folding a number that does not fit keeps its digits; cutting it would not.
                table.add_column(lines, justify="right", overflow="fold", style="dim" if policy == "n" else "")
            for line in panel.lines:
                style = "italic" if line.difference else ""
                texts = [
                    said(t + ("*" if b else " " if panel.marked else ""), "bold" if b else style)
                    for t, b in zip(line.texts, line.bold, strict=True)
                ]
                for i in reversed(panel.breaks):
                    texts.insert(i, Text(""))
                table.add_row(said(line.label, style), *texts)
            parts += [Text(""), table]
        if not section.panels:
            parts.append(Text("no evaluations yet", style="dim"))
        parts.append(Text(""))
        parts += [said(line, "dim") for line in section.captions]
        parts.append(Text(""))
    parts += [said(line, "bold yellow") for line in captions]
    return Group(*parts)


def terminal_text(comparison: Comparison, width: int = WIDTH, by: By = "task") -> str:
    """What :func:`terminal` prints, without colour."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(terminal(comparison, width, by))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip() + "\n"


def markdown(comparison: Comparison, by: By = "task") -> str:
    """Pipe tables, one a mode, with the captions as a list underneath."""
    return markdown_sections(sections(comparison, by), comparison.captions)


def markdown_sections(found: Sequence[Section], captions: Sequence[str]) -> str:
    """Sections as pipe tables, whatever they are about; all of it is text."""
    out: list[str] = []
    for section in found:
        out += [f"### {in_markdown(section.title)}", ""]
        for panel in section.panels:
            split = ""
            heads = []
            for name, policy, state in panel.headers:
                split = name or split
                before = f"{split}: " if split and policy != "n" else ""
                heads.append(f"{before}{policy}{f' ({state})' if state else ''}")
            out += [
                f"**{in_markdown(panel.title)}**",
                "",
                pipe(["", *map(in_markdown, heads)]),
                "|:--|" + "--:|" * len(heads),
            ]
            for line in panel.lines:
                cells = zip(map(in_markdown, line.texts), line.bold, strict=True)
                texts = [f"**{t}**" if b else t for t, b in cells]
                label = in_markdown(line.label)
                label = f"*{label}*" if line.difference else label
                out.append(pipe([label, *texts]))
            out.append("")
        if not section.panels:
            out += ["No evaluations yet.", ""]
        out += [f"- {in_markdown(line)}" for line in section.captions] + [""]
    out += [f"- {in_markdown(line)}" for line in captions]
    return "\n".join(out).rstrip() + "\n"


def latex(comparison: Comparison, by: By = "task") -> str:
    """See :func:`markup.latex`; splits stand below each other where a page would be too narrow."""
    return markup.latex(sections(comparison, by, markup.PAGE), comparison.captions)


def html(comparison: Comparison, by: By = "task") -> str:
    """See :func:`markup.html`."""
    return markup.html(sections(comparison, by), comparison.captions)


def csv(comparison: Comparison) -> str:
    """The frame of a comparison as text, ten significant digits; undefined is an empty field."""
    table = frame(comparison.blocks).map(lambda x: in_csv(x) if isinstance(x, str) else x)
    text: str = table.to_csv(index=False, float_format="%.10g", lineterminator="\n")
    return text


def pipe(cells: Sequence[str]) -> str:
    """A row of a Markdown table; what stands in its cells is Markdown."""
    return f"| {' | '.join(cells)} |"
