"""Documents as Markdown: pipe tables and lists. Whatever a label or a message holds comes out as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shiq_bench.records.escaping import in_markdown
from shiq_bench.report.document import Document, Header, Table


def to_markdown(document: Document) -> str:
    """Sections under headings of the third level, the warnings as a list at the end."""
    out: list[str] = []
    for section in document.sections:
        out += [f"### {in_markdown(section.title)}", "", *tables(section.tables)]
        out += [*bullets((*section.claims, *section.notes)), ""]
    return "\n".join([*out, *bullets(document.warnings)]).rstrip() + "\n"


def tables(found: Iterable[Table]) -> list[str]:
    """Lines of pipe tables, each with its title above and an empty line behind it."""
    out: list[str] = []
    for table in found:
        rule = "|:--|" + (":--|" if table.left else "--:|") * len(table.headers)
        out += [f"**{in_markdown(table.title)}**", "", _pipe([in_markdown(table.corner), *_heads(table.headers)]), rule]
        for row in table.rows:
            texts = (f"**{t}**" if i in row.bold else t for i, t in enumerate(map(in_markdown, row.texts)))
            label = in_markdown(row.label)
            out.append(_pipe([f"*{label}*" if row.italic else label, *texts]))
        out.append("")
    return out


def bullets(lines: Iterable[str]) -> list[str]:
    """Lines of a list."""
    return [f"- {in_markdown(line)}" for line in lines]


def _heads(headers: Sequence[Header]) -> Iterable[str]:
    """Every head with its group before it and its note behind it."""
    group = ""
    for header in headers:
        group = header.group or group
        before = f"{group}: " if group and header.text != "n" else ""
        yield in_markdown(f"{before}{header.text}{f' ({header.note})' if header.note else ''}")


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
