r"""Documents as LaTeX for an ``\input``, with booktabs and graphicx alone. Whatever a label holds comes out as text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from shiq_bench.report.document import Document, Table

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
