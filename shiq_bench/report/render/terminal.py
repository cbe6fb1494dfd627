"""Documents for a terminal: no markup is read from their texts, and no escape reaches it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from shiq_bench.records.escaping import in_line
from shiq_bench.report.document import BROKEN, Document, Table

if TYPE_CHECKING:
    import rich.table
    from rich.console import RenderableType
    from rich.text import Text


def to_terminal(document: Document) -> RenderableType:
    """For a rich console: tables, what they show, and notes underneath."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for section in document.sections:
        parts.append(_text(section.title, "bold cyan"))
        for table in section.tables:
            parts += [_text(""), _table(table)]
        parts += [_text(""), *map(_text, section.claims), *(_text(line, "dim") for line in section.notes), _text("")]
    return Group(*parts, *(_text(line, "bold yellow") for line in document.warnings))


def terminal_text(document: Document, width: int) -> str:
    """What :func:`to_terminal` prints, without colour."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(to_terminal(document))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip() + "\n"


def _table(table: Table) -> rich.table.Table:
    from rich import box
    from rich.table import Table as Made
    from rich.text import Text

    made = Made(
        title=_text(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, 1, 0, 0), header_style="",
    )  # fmt: skip
    made.add_column(_text(table.corner, "bold"), overflow="fold")
    for i, (header, head) in enumerate(zip(table.headers, table.heads, strict=True)):
        lines = Text()
        for number, text in enumerate(head):
            style = "bold magenta" if text == header.group else "dim" if text in header.note else "bold"
            lines.append(("\n" if number else "") + in_line(text), style=style)
        if i in table.breaks:
            made.add_column("")
        # Folding a number that does not fit keeps its digits; cutting it would not.
        style, justify = ("dim" if header.text == "n" else ""), ("left" if table.left else "right")
        made.add_column(lines, justify=justify, overflow="fold", style=style)  # type: ignore[arg-type]
    for row in table.rows:
        style = "italic" if row.italic else ""
        texts = []
        for i, text in enumerate(row.texts):
            mark = "*" if i in row.bold else " " if table.marked else ""
            own = "bold" if i in row.bold else "bold red" if text.endswith(BROKEN) else style
            texts.append(_text(text + mark, own))
        for i in reversed(table.breaks):
            texts.insert(i, _text(""))
        made.add_row(_text("  " * row.italic + row.label, style), *texts)
    return made


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(in_line(text), style=style)
