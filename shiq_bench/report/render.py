"""Documents and frames to what a person reads: terminal, Markdown, LaTeX, HTML, CSV.

Whatever a label or a message holds comes out as text: as no markup, no formula, and no escape of a terminal.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.escaping import in_csv, in_line, in_markdown
from shiq_bench.records.files import write_atomic
from shiq_bench.report.document import BROKEN, Document, Header, Table

if TYPE_CHECKING:
    import pandas as pd
    import rich.table
    from rich.console import Console, RenderableType
    from rich.text import Text

#: What can be printed or written.
FORMATS = ("rich", "md", "latex", "html", "csv")

#: Columns of a table that is not printed to a terminal.
WIDTH = 120


def check_format(format: str) -> None:
    """Raise UserError unless a format is one of :data:`FORMATS`."""
    if format not in FORMATS:
        raise UserError(f"no format is called {format!r}{suggest(format, FORMATS)}")


def room(format: str, console: Console | None = None) -> int | None:
    """Characters that a table of a format may take across, None where any number; of rich, what the console holds.

    A terminal decides how wide a rich table is; a pipe or a file gets 120 columns.

    Raises:
        UserError: no such format.
    """
    check_format(format)
    if format == "rich" and console is not None:
        return console.width if console.is_terminal else max(console.width, WIDTH)
    return {"rich": WIDTH, "latex": PAGE}.get(format)


def text(made: Document | pd.DataFrame, format: str, width: int = WIDTH) -> str:
    """What is written to a file: of a csv a frame, a row a number, and of any other format a document."""
    check_format(format)
    if not isinstance(made, Document):
        return to_csv(made)
    if format == "rich":
        return terminal_text(made, width)
    return {"latex": to_latex, "md": to_markdown, "html": to_html}[format](made)


def show(made: Document | pd.DataFrame, format: str, console: Console, out: Path | None = None) -> None:
    """Print it, or write it to a file, whole or not at all.

    Raises:
        UserError: no such format, or a file that cannot be written.
    """
    from rich.console import Console

    if out is not None:
        write_atomic(out, text(made, format).encode())
    elif isinstance(made, Document) and format == "rich":
        if not console.is_terminal and console.width < WIDTH:
            console = Console(file=console.file, width=WIDTH, color_system=None)
        console.print(to_terminal(made))
    else:
        console.file.write(text(made, format))


def to_csv(frame: pd.DataFrame) -> str:
    """A frame as text, ten significant digits; undefined is an empty field, and no text is a formula."""
    text: str = frame.map(lambda x: in_csv(x) if isinstance(x, str) else x).to_csv(
        index=False, float_format="%.10g", lineterminator="\n"
    )
    return text


def to_terminal(document: Document) -> RenderableType:
    """For a rich console: tables, what they show, and notes underneath."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for section in document.sections:
        parts.append(_line(section.title, "bold cyan"))
        for table in section.tables:
            parts += [_line(""), _terminal_table(table)]
        parts += [_line(""), *map(_line, section.claims), *(_line(line, "dim") for line in section.notes), _line("")]
    return Group(*parts, *(_line(line, "bold yellow") for line in document.warnings))


def terminal_text(document: Document, width: int) -> str:
    """What :func:`to_terminal` prints, without colour."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(to_terminal(document))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip() + "\n"


def _terminal_table(table: Table) -> rich.table.Table:
    from rich import box
    from rich.table import Table as Made
    from rich.text import Text

    made = Made(
        title=_line(table.title, "bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, 1, 0, 0), header_style="",
    )  # fmt: skip
    made.add_column(_line(table.corner, "bold"), overflow="fold")
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
            texts.append(_line(text + mark, own))
        for i in reversed(table.breaks):
            texts.insert(i, _line(""))
        made.add_row(_line("  " * row.italic + row.label, style), *texts)
    return made


def _line(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(in_line(text), style=style)


def to_markdown(document: Document) -> str:
    """Sections under headings of the third level, the warnings as a list at the end."""
    out: list[str] = []
    for section in document.sections:
        out += [f"### {in_markdown(section.title)}", "", *pipe_tables(section.tables)]
        out += [*bullets((*section.claims, *section.notes)), ""]
    return "\n".join([*out, *bullets(document.warnings)]).rstrip() + "\n"


def pipe_tables(found: Iterable[Table]) -> list[str]:
    """Lines of pipe tables, each with its title above and an empty line behind it."""
    out: list[str] = []
    for table in found:
        rule = "|:--|" + (":--|" if table.left else "--:|") * len(table.headers)
        out += [
            f"**{in_markdown(table.title)}**",
            "",
            _pipe([in_markdown(table.corner), *_markdown_heads(table.headers)]),
            rule,
        ]
        for row in table.rows:
            texts = (f"**{t}**" if i in row.bold else t for i, t in enumerate(map(in_markdown, row.texts)))
            label = in_markdown(row.label)
            out.append(_pipe([f"*{label}*" if row.italic else label, *texts]))
        out.append("")
    return out


def bullets(lines: Iterable[str]) -> list[str]:
    """Lines of a list."""
    return [f"- {in_markdown(line)}" for line in lines]


def _markdown_heads(headers: Sequence[Header]) -> Iterable[str]:
    """Every head with its group before it and its note behind it."""
    group = ""
    for header in headers:
        group = header.group or group
        before = f"{group}: " if group and header.text != "n" else ""
        yield in_markdown(f"{before}{header.text}{f' ({header.note})' if header.note else ''}")


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_html(document: Document) -> str:
    """A heading a section, a table each, lists underneath; whatever is put into the template is escaped."""
    import jinja2

    template = (resources.files("shiq_bench.report") / "document.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        finalize=_html_text, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(template).render(document=document)


def _html_text(text: str) -> str:
    return escape("".join(c if c.isprintable() or c in "\n\t" else f"[U+{ord(c):04X}]" for c in text))


#: Characters that a line of a page holds, and rows of a page.
PAGE, ROWS = 90, 40

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", '"': r"\char34{}",
    "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "▼": r"$\bigtriangledown$", "·": r"$\cdot$",
    "×": r"$\times$", "–": "--", "—": "---", "…": r"\ldots{}", "≤": r"$\le$", "≥": r"$\ge$", "→": r"$\to$", "−": "$-$",
    "∞": r"$\infty$",
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "’": "'", "‘": "`", "“": "``", "”": "''",
    "\n": " ", "\t": " ", "\xa0": "~",
}  # fmt: skip

#: Between letters that would run together: two hyphens into a dash, two quotes into another quote.
_LIGATURES = re.compile(r"(?<=-)(?=-)|(?<=')(?=')|(?<=,)(?=,)|(?<=[`?!])(?=`)")

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
    "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda",
    "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip

_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r ", "\u030c": "v ",
    "\u0327": "c ",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text as LaTeX prints it, with no package loaded; what it has no sign for comes as ``[U+4E2D]``."""
    parts = _LIGATURES.split(unicodedata.normalize("NFC", text))
    return "{}".join("".join(map(_latex_character, part)) for part in parts)


def _latex_character(c: str) -> str:
    if c in _LATEX:
        return _LATEX[c]
    if c in _GREEK:
        return f"$\\{_GREEK[c]}$"
    if " " <= c <= "~":
        return c
    base, *marks = list(unicodedata.normalize("NFD", c))
    if len(marks) == 1 and marks[0] in _ACCENTS and base.isascii() and base.isalpha():
        dotless = {"i": r"\i", "j": r"\j"}.get(base, base)
        return f"\\{_ACCENTS[marks[0]]}{{{dotless}}}"
    return f"[U+{ord(c):04X}]"


def to_latex(document: Document) -> str:
    r"""A ``table`` a table, sentences as ordinary text behind it."""
    out = [r"% Needs \usepackage{booktabs,graphicx}."]
    for i, section in enumerate(document.sections):
        if i:
            out += [r"\clearpage", ""]  # LaTeX lets few tables wait for a page, and notes stay with theirs
        for table in section.tables:
            caption = rf"\caption{{{_breakable(f'{section.title}: {table.title}')}}}"
            for part in table.pages(ROWS):
                out += [r"\begin{table}[htbp]", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
                out += [caption, *_tabular(part), r"\end{table}"]
        if not section.tables:
            out.append(rf"\par\noindent {_breakable(section.title)}:\par")
        out += [*_notes((*section.claims, *section.notes)), ""]
    return "\n".join([*out, *_notes(document.warnings)]).rstrip() + "\n"


def _tabular(table: Table) -> Iterable[str]:
    """As wide as it is, or as the line where that is less."""
    yield rf"\sbox0{{\begin{{tabular}}{{l{('l' if table.left else 'r') * len(table.headers)}}}"
    yield r"\toprule"
    # Braces first: a bracket or a star behind a line break would be its argument.
    for i, row in enumerate(zip(*table.heads, strict=True)):
        corner = "" if i else latex_text(table.corner)
        yield f"{{}}{corner} & {' & '.join(latex_text(t.strip()) for t in row)} " + r"\\"
    yield r"\midrule"
    for line in table.rows:
        texts = (rf"\textbf{{{t}}}" if i in line.bold else t for i, t in enumerate(map(latex_text, line.texts)))
        label = latex_text(line.label)
        label = rf"\quad\textit{{{label}}}" if line.italic else label
        yield f"{{}}{label} & {' & '.join(texts)} " + r"\\"
    yield r"\bottomrule"
    yield r"\end{tabular}}%"
    yield r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi"


def _notes(captions: Sequence[str]) -> Iterable[str]:
    if captions:
        yield r"\par\medskip\begingroup\raggedright\scriptsize\setlength{\parindent}{0pt}"
        yield from (rf"{_breakable(line)}\par" for line in captions)
        yield r"\endgroup\medskip"


#: Where a long word may be broken: behind a comma or a slash, behind what LaTeX spells out, and wherever it goes on.
_JOINTS = re.compile(r"(?<=[,/])(?=\S)|(?<=[\x00-\x1f\x7f-\x9f\u0250-\U0010ffff])(?=\S)|(?<=[^\s,/]{24})(?=[^\s,/]{2})")


def _breakable(text: str) -> str:
    """Text of a paragraph, whose lines have room for any word."""
    return r"\allowbreak{}".join(map(latex_text, _JOINTS.split(unicodedata.normalize("NFC", text))))
