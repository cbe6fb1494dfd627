"""Documents as one HTML page without script or link. Whatever a label or a message holds comes out as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from shiq_bench.report.document import Document, Table

_STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse;margin:1em 0}"
    "caption{text-align:left;font-weight:bold}th,td{padding:.15em .6em;text-align:right}"
    "th:first-child,td:first-child,table.left *{text-align:left}thead tr{border-bottom:1px solid}"
    "tr.difference{font-style:italic}"
)


def to_html(document: Document) -> str:
    """A heading a section, a table each, lists underneath."""
    out = ["<!DOCTYPE html>", '<html lang="en">', '<head><meta charset="utf-8"><title>shiq-bench</title>']
    out += [f"<style>{_STYLE}</style></head>", "<body>"]
    for section in document.sections:
        out.append(f"<h2>{_text(section.title)}</h2>")
        for table in section.tables:
            out += _table(table)
        out += _list((*section.claims, *section.notes))
    return "\n".join([*out, *_list(document.warnings), "</body>", "</html>"]) + "\n"


def _table(table: Table) -> Iterable[str]:
    yield '<table class="left">' if table.left else "<table>"
    yield from (f"<caption>{_text(table.title)}</caption>", "<thead>")
    rows = [[h.group for h in table.headers], [h.text for h in table.headers], [h.note for h in table.headers]]
    for i, heads in enumerate(rows):
        if i == 1 or any(heads):
            corner = _text(table.corner) if i == 1 else ""
            yield f"<tr><th>{corner}</th>{''.join(f'<th>{_text(t)}</th>' for t in heads)}</tr>"
    yield from ("</thead>", "<tbody>")
    for row in table.rows:
        texts = (f"<b>{t}</b>" if i in row.bold else t for i, t in enumerate(map(_text, row.texts)))
        cells = "".join(f"<td>{t}</td>" for t in (_text(row.label), *texts))
        yield f'<tr class="difference">{cells}</tr>' if row.italic else f"<tr>{cells}</tr>"
    yield from ("</tbody>", "</table>")


def _list(lines: Sequence[str]) -> list[str]:
    return ["<ul>", *(f"<li>{_text(line)}</li>" for line in lines), "</ul>"] if lines else []


def _text(text: str) -> str:
    return escape("".join(c if c.isprintable() or c in "\n\t" else f"[U+{ord(c):04X}]" for c in text))
