"""Documents and frames to what a person reads: one renderer a format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.files import write_atomic
from shiq_bench.report.document import Document
from shiq_bench.report.render.csv import to_csv
from shiq_bench.report.render.html import to_html
from shiq_bench.report.render.latex import PAGE, to_latex
from shiq_bench.report.render.markdown import to_markdown
from shiq_bench.report.render.terminal import terminal_text, to_terminal

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

#: What can be printed or written.
FORMATS = ("rich", "md", "latex", "html", "csv")

#: Columns of a table that is not printed to a terminal.
WIDTH = 120

#: Makes a document whose tables take at most so many characters; None is any number.
Make = Callable[[int | None], Document]
Numbers = Callable[[], "pd.DataFrame"]


def check_format(format: str) -> None:
    """Raise UserError unless a format is one of :data:`FORMATS`."""
    if format not in FORMATS:
        raise UserError(f"no format is called {format!r}{suggest(format, FORMATS)}")


def text(make: Make, numbers: Numbers, format: str, width: int = WIDTH) -> str:
    """What is written to a file; of a csv every number, a row each.

    Raises:
        UserError: no such format.
    """
    check_format(format)
    if format == "csv":
        return to_csv(numbers())
    if format == "rich":
        return terminal_text(make(width), width)
    return to_latex(make(PAGE)) if format == "latex" else (to_markdown if format == "md" else to_html)(make(None))


def show(make: Make, numbers: Numbers, format: str, console: Console | None = None, out: Path | None = None) -> None:
    """Print it, or write it to a file, whole or not at all.

    A terminal decides how wide a rich table is; a pipe or a file gets 120 columns.

    Raises:
        UserError: no such format, or a file that cannot be written.
    """
    from rich.console import Console

    console = console or Console()
    if out is not None:
        write_atomic(out, text(make, numbers, format).encode())
    elif format == "rich":
        if not console.is_terminal and console.width < WIDTH:
            console = Console(file=console.file, width=WIDTH, color_system=None)
        console.print(to_terminal(make(console.width)))
    else:
        console.file.write(text(make, numbers, format))
