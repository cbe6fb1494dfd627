"""What is printed or written: sections of tables and sentences. Whatever a report shows is turned into this first.

Texts are as their source has them; every renderer escapes them for its format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

#: Ends a text that breaks what was promised of it.
BROKEN = " !"

#: Before an option of a method: a place where a head may be broken into lines.
_OPTION = re.compile(r" (?=\S+=)")


@dataclass(frozen=True)
class Header:
    """The head of a column.

    Attributes:
        group: what this column and those after it belong to (a split); "" where the group goes on.
        note: the state of the runs behind the column.
    """

    text: str
    group: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        texts: one a column, the label aside.
        bold: which of them are the best of the row.
        italic: whether the row belongs to the one above it, such as a difference; it is indented too.
    """

    label: str
    texts: tuple[str, ...]
    bold: frozenset[int] = frozenset()
    italic: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        headers: one a column, that of the labels aside.
        corner: the head of the labels.
        left: whether columns hold prose, not numbers.
    """

    title: str
    headers: tuple[Header, ...]
    rows: tuple[Row, ...]
    corner: str = ""
    left: bool = False

    @property
    def heads(self) -> list[list[str]]:
        """Header lines of every column, as many in each: its group, its text an option a line, the parts of its note.

        Groups are named only where there are several.
        """
        several = len({h.group for h in self.headers if h.group}) > 1
        parts = [
            ([h.group] if several else [], _OPTION.split(h.text), h.note.split(", ") if h.note else [])
            for h in self.headers
        ]
        texts, notes = (max((len(p[i]) for p in parts), default=0) for i in (1, 2))
        # A space and not nothing: a terminal would drop an empty line and shift the rest.
        return [
            [*(g or " " for g in group), *text, *[" "] * (texts - len(text)), *note, *[" "] * (notes - len(note))]
            for group, text, note in parts
        ]

    @property
    def breaks(self) -> list[int]:
        """Columns with which a further group begins."""
        return [i for i, header in enumerate(self.headers) if header.group and i]

    @property
    def marked(self) -> bool:
        """Whether any text is bold, which takes a character where there are no fonts."""
        return any(row.bold for row in self.rows)

    @property
    def width(self) -> int:
        """Characters it takes in a terminal."""
        label = max(map(len, [self.corner, *("  " * row.italic + row.label for row in self.rows)]))
        columns = [max(map(len, [*head, *(row.texts[i] for row in self.rows)])) for i, head in enumerate(self.heads)]
        return label + sum(columns) + (2 + self.marked) * len(columns) + 2 * len(self.breaks)

    def pages(self, rows: int) -> list[Table]:
        """The same in parts of at most so many rows."""
        starts = range(0, max(len(self.rows), 1), rows)
        return [replace(self, rows=self.rows[start : start + rows]) for start in starts]


@dataclass(frozen=True)
class Section:
    """Tables under one title, what they show, and how to read them."""

    title: str
    tables: tuple[Table, ...] = ()
    claims: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """Sections, and what has to be said of all of them."""

    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()


def simple_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain texts, whose first column holds the labels."""
    corner, *heads = headers
    return Table(title, tuple(map(Header, heads)), tuple(Row(row[0], tuple(row[1:])) for row in rows), corner)
