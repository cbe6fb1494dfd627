"""Text of models and records, written so that it stays text: in a terminal, in Markdown, in a spreadsheet."""

from __future__ import annotations

import re

from shiq_bench.records.errors import UserError

#: What begins an element of Markdown wherever it stands; an exclamation mark does so before a bracket alone.
_MARKS = re.compile(r"[\\`*_\[\]<>&|~$#@]")

#: Addresses that become links without any mark.
_ADDRESSES = re.compile(r"(?i)(?<=[a-z]):(?=//)|(?<=mailto):|(?<=xmpp):|(?<=www)\.")

#: What is a list or a rule at the beginning of a line.
_BEGINNINGS = re.compile(r"^(\d*)([-+.)])(?=[-\s]|$)")

#: Breaks of lines, as str.splitlines knows them.
_BREAKS = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def visible(text: str) -> str:
    """Text whose control and formatting characters are written out: an escape is ``\\x1b``; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


def in_line(text: str) -> str:
    """:func:`visible` in a single line."""
    return visible(_BREAKS.sub(" ", text))


def in_markdown(text: str) -> str:
    """One line that Markdown, GitHub's too, shows as it is: no image, link, formula, table or list comes of it."""
    text = _MARKS.sub(r"\\\g<0>", in_line(text).strip())
    return _BEGINNINGS.sub(r"\1\\\2", _ADDRESSES.sub(r"\\\g<0>", text))


def in_csv(text: str) -> str:
    """A cell that no spreadsheet computes: an apostrophe stands before a formula; numbers stay numbers."""
    formula = text.lstrip(" ")[:1] in tuple("=+-@\t\r") and not _NUMBER.fullmatch(text)
    return ("'" if formula else "") + visible(text)


def one_line(error: UserError) -> str:
    """The message, whatever line breaks and control characters a library or a record put in it."""
    return visible(" ".join(str(error).split()))
