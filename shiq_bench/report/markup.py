"""Tables as LaTeX and as HTML: whatever a label or a message holds comes out as text."""

from __future__ import annotations

import html as markup
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from shiq_bench.report.layout import Panel, Section

#: Characters that a line of a page holds in LaTeX, those that it may be shrunk to hold, and rows of a page.
PAGE, SMALLEST, ROWS = 90, 130, 40

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

_STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse;margin:1em 0}"
    "caption{text-align:left;font-weight:bold}th,td{padding:.15em .6em;text-align:right}"
    "th:first-child,td:first-child{text-align:left}thead tr{border-bottom:1px solid}tr.difference{font-style:italic}"
)


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


def latex(sections: Sequence[Section], captions: Sequence[str]) -> str:
    r"""A ``table`` a panel, notes as ordinary text behind it, for an ``\input`` into a document that loads booktabs
    and graphicx."""
    out = [r"% Needs \usepackage{booktabs,graphicx}."]
    for i, section in enumerate(sections):
        if i:
            out += [r"\clearpage", ""]  # LaTeX lets few tables wait for a page, and notes stay with theirs
        for panel in section.panels:
            title = _breakable(f"{section.title}: {panel.title}")
            for part in parts(panel):
                out += [r"\begin{table}[htbp]", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
                out += [f"\\caption{{{title}}}", *_tabular(part), r"\end{table}"]
        if not section.panels:
            out += [rf"\par\noindent {_breakable(section.title)}: no evaluations yet.\par"]
        out += [*_notes(section.captions), ""]
    return "\n".join([*out, *_notes(captions)]).rstrip() + "\n"


def parts(panel: Panel) -> Iterable[Panel]:
    """Panels that a page holds: no smaller than can be read, no longer than it is."""
    starts = [i for i, (_, label, _) in enumerate(panel.headers) if label not in ("p", "n")]
    cuts = [0]
    for i in starts:
        if i > cuts[-1] and panel.columns(cuts[-1], _end(panel, i)).width > SMALLEST:
            cuts.append(i)
    for low, high in pairwise([*cuts, len(panel.headers)]):
        part = panel.columns(low, high)
        for first in range(0, max(len(part.lines), 1), ROWS):
            yield replace(part, lines=part.lines[first : first + ROWS])


def _end(panel: Panel, i: int) -> int:
    """Behind a column and the p and n that belong to it."""
    after = range(i + 1, len(panel.headers))
    return next((j for j in after if panel.headers[j][1] not in ("p", "n")), len(panel.headers))


def _tabular(panel: Panel) -> Iterable[str]:
    """As wide as it is, or as the line where that is less."""
    yield rf"\sbox0{{\begin{{tabular}}{{l{'r' * len(panel.headers)}}}"
    yield r"\toprule"
    # Braces first: a bracket or a star behind a line break would be its argument.
    for row in zip(*panel.heads, strict=True):
        yield "{} & " + " & ".join(latex_text(t.strip()) for t in row) + r" \\"
    yield r"\midrule"
    for line in panel.lines:
        texts = map(latex_text, line.texts)
        cells = [rf"\textbf{{{t}}}" if b else t for t, b in zip(texts, line.bold, strict=True)]
        label = latex_text(line.label.strip())
        label = rf"\quad\textit{{{label}}}" if line.difference else label
        yield f"{{}}{label} & {' & '.join(cells)} " + r"\\"
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


def _header_rows(panel: Panel) -> list[list[str]]:
    """Split, policy and state of the runs, a row each where any column has one."""
    rows = [[header[i] for header in panel.headers] for i in range(3)]
    return [row for i, row in enumerate(rows) if i == 1 or any(row)]


def html(sections: Sequence[Section], captions: Sequence[str]) -> str:
    """One page without script or link: a table a panel, everything escaped."""
    out = ["<!DOCTYPE html>", '<html lang="en">', '<head><meta charset="utf-8"><title>shiq-bench</title>']
    out += [f"<style>{_STYLE}</style></head>", "<body>"]
    for section in sections:
        out.append(f"<h2>{_html(section.title)}</h2>")
        for panel in section.panels:
            out += ["<table>", f"<caption>{_html(panel.title)}</caption>", "<thead>"]
            for row in _header_rows(panel):
                out.append(f"<tr><th></th>{''.join(f'<th>{_html(t)}</th>' for t in row)}</tr>")
            out += ["</thead>", "<tbody>"]
            for line in panel.lines:
                style = ' class="difference"' if line.difference else ""
                texts = [f"<b>{_html(t)}</b>" if b else _html(t) for t, b in zip(line.texts, line.bold, strict=True)]
                cells = "".join(f"<td>{t}</td>" for t in (_html(line.label.strip()), *texts))
                out.append(f"<tr{style}>{cells}</tr>")
            out += ["</tbody>", "</table>"]
        if not section.panels:
            out.append("<p>No evaluations yet.</p>")
        out += _list(section.captions)
    return "\n".join([*out, *_list(captions), "</body>", "</html>"]) + "\n"


def _list(captions: Sequence[str]) -> list[str]:
    return ["<ul>", *(f"<li>{_html(line)}</li>" for line in captions), "</ul>"] if captions else []


def _html(text: str) -> str:
    return markup.escape("".join(c if c.isprintable() or c in "\n\t" else f"[U+{ord(c):04X}]" for c in text))
