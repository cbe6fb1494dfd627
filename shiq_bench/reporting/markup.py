"""Tables as LaTeX and as HTML: whatever a label or a message holds comes out as text."""

from __future__ import annotations

import html as markup
import re
import unicodedata
from collections.abc import Iterable, Sequence

from shiq_bench.reporting.layout import Panel, Section

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
    r"""A ``table`` environment a section, for an ``\input`` into a document that loads booktabs."""
    out = ["% Needs \\usepackage{booktabs}."]
    for section in sections:
        out += [r"\begin{table}[htbp]", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
        out.append(f"\\caption{{{latex_text(section.title)}}}")
        for panel in section.panels:
            out += [rf"\par\medskip\textbf{{{latex_text(panel.title)}}}\par\smallskip", *_tabular(panel)]
        if not section.panels:
            out.append(r"\par No evaluations yet.")
        out += [*_notes(section.captions), r"\end{table}", ""]
    if captions:
        out += [*_notes(captions), ""]
    return "\n".join(out).rstrip() + "\n"


def _tabular(panel: Panel) -> Iterable[str]:
    yield rf"\begin{{tabular}}{{l{'r' * len(panel.headers)}}}"
    yield r"\toprule"
    # Braces first: a bracket or a star behind a line break would be its argument.
    for row in _header_rows(panel):
        yield "{} & " + " & ".join(map(latex_text, row)) + r" \\"
    yield r"\midrule"
    for line in panel.lines:
        texts = map(latex_text, line.texts)
        cells = [rf"\textbf{{{t}}}" if b else t for t, b in zip(texts, line.bold, strict=True)]
        label = latex_text(line.label.strip())
        label = rf"\quad\textit{{{label}}}" if line.difference else label
        yield f"{{}}{label} & {' & '.join(cells)} " + r"\\"
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _notes(captions: Sequence[str]) -> Iterable[str]:
    if captions:
        yield r"\par\medskip"
        yield r"\begin{minipage}{\linewidth}\raggedright\scriptsize"
        yield from (rf"{latex_text(line)}\par" for line in captions)
        yield r"\end{minipage}"


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
