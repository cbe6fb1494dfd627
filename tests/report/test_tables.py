"""Tables in every format: golden bytes, what fits, and that texts stay texts."""

from __future__ import annotations

import dataclasses
import io
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from shiq_bench.records.record import Evaluation, RunRecord
from shiq_bench.report.comparison import compare
from shiq_bench.report.document import Document, Section, simple_table
from shiq_bench.report.format import metric_label
from shiq_bench.report.render import PAGE, ROWS, latex_text, to_latex
from shiq_bench.report.tables import document, place_title, print_table, texts
from shiq_bench.report.tables import text as in_format
from tests import needs
from tests.report.synthetic import METRICS, SMALL, record, several

GOLDEN = Path(__file__).parent / "golden"
#: Suffix of a golden file -> its format.
RENDERED = {"md": "md", "csv": "csv", "txt": "rich", "tex": "latex", "html": "html"}
markdown, csv, terminal_text, latex, html = (partial(in_format, format=name) for name in RENDERED.values())


def golden_records(which: str) -> list[RunRecord]:
    """Records whose ids do not move when a setting is added to RunSpec."""
    records = [record(prompts=SMALL)] if which == "run" else several()
    return [dataclasses.replace(r, run_id=f"{r.spec.algo}-bfcl-{i:012x}") for i, r in enumerate(records)]


@pytest.mark.parametrize(("suffix", "format"), RENDERED.items())
@pytest.mark.parametrize("which", ["run", "several"])
def test_golden_bytes(suffix: str, format: str, which: str) -> None:
    records = golden_records(which)
    text = in_format(compare(records, METRICS), format)
    assert text == (GOLDEN / f"{which}.{suffix}").read_text(encoding="utf-8")
    random.Random(0).shuffle(records)
    assert in_format(compare(records, METRICS), format) == text


@pytest.mark.parametrize("width", [90, 100, 120, 160])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_terminal_table_fits(width: int, count: int) -> None:
    records = [record(f"method{i}", s, prompts=SMALL) for i in range(count) for s in range(2)]
    text = terminal_text(compare(records, METRICS), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for i in range(count):
        assert f"method{i}" in text


def test_a_narrow_terminal_folds_and_loses_no_digit() -> None:
    records = [record(prompts=SMALL)]
    text = terminal_text(compare(records, METRICS), width=30)
    assert "…" not in text


def test_a_run_without_evaluations_has_a_table() -> None:
    nothing = dataclasses.replace(record(status="failed", error="boom"), evaluations=())
    for render in (terminal_text, markdown, latex, html):
        assert "No evaluations yet." in render(compare([nothing], METRICS))
    assert csv(compare([nothing], METRICS)).count("\n") == 1


def test_print_table_to_a_pipe_has_room_and_no_colour() -> None:
    out = io.StringIO()
    print_table([record(prompts=SMALL)], METRICS, console=Console(file=out))
    assert out.getvalue().startswith("bfcl · model tiny") and "\x1b" not in out.getvalue()
    assert max(len(line.rstrip()) for line in out.getvalue().splitlines()) > 80
    for name, render in (("md", markdown), ("csv", csv)):
        out = io.StringIO()
        print_table([record(prompts=SMALL)], METRICS, format=name, console=Console(file=out, width=20))
        assert out.getvalue() == render(compare([record(prompts=SMALL)], METRICS))


def _nasty() -> list[RunRecord]:
    """Labels and messages full of characters that a renderer has to escape."""
    name = "a&b%c$d#e_f{g}h~i^j\\k<l>m|n\"o--p``q''r?`s,,t[u]*v é ß α 中 ± \x1b[31m"
    return [
        record("shiq", s, prompts=SMALL, task_options={"category": name}, algo_options={"beta": 0.1, "note": name})
        for s in range(2)
    ] + [record("dpo", 0, status="failed", error=f"[x] * {name}", prompts=SMALL, task_options={"category": name})]


def _wide() -> list[RunRecord]:
    """More columns, rows and captions than a page holds, and words longer than a line."""
    long = "x" * 300 + "中" * 60
    return [
        *(record(f"method{i}", 0, prompts={"rl": 2}, algo_options={"a_long_option": float(i)}) for i in range(14)),
        *(record("shiq", 0, prompts={"rl": 2}, algo_options={"beta": i / 100}) for i in range(45)),
        record("shiq", 0, prompts={"rl": 2}, algo_options={"note": "W" * 50}),  # as few characters as fit, and wide
        *(
            record("dpo", s, status="failed", error=f"{long} {s}", prompts={"rl": 2}, deviations=[long * 4])
            for s in (0, 1)
        ),
    ]


@pytest.mark.parametrize("make", [lambda: [*several(), *_nasty()], _wide], ids=["nasty", "wide"])
def test_latex_compiles_as_it_stands_and_fits_its_pages(make: Callable[[], list[RunRecord]], tmp_path: Path) -> None:
    """With booktabs and graphicx alone."""
    pdflatex = needs.pdflatex("booktabs.sty", "graphicx.sty")
    (tmp_path / "table.tex").write_text(latex(compare(make(), METRICS)), encoding="utf-8")
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n\\input{table}\n\\end{document}\n"
    )
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").stat().st_size > 1000
    log = (tmp_path / "main.log").read_text(errors="replace")
    assert "Float too large" not in log
    assert [w for w in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log) if float(w) > 5] == []


def test_latex_shrinks_no_table_beyond_reading_and_loses_no_cell() -> None:
    comparison = compare(_wide(), METRICS)
    written = latex(comparison).split(r"\begin{table}")[1:]
    assert max(t.count(r"\\") for t in written) <= ROWS + 8
    tables = [t for s in document(comparison, PAGE).sections for t in s.tables]
    assert max(t.width for t in tables) <= PAGE and len(tables) == len(written)
    (block,) = comparison.blocks
    shown = Counter((t.title, r.label, x) for t in tables for r in t.rows for x in r.texts)
    for key, said in texts(block).items():
        metric = next(m for m in block.metrics if m.name == key[3])
        assert shown[place_title(block, key[:2]), metric_label(metric), said]


def test_latex_breaks_a_long_table_between_rows() -> None:
    table = simple_table("title", ("", "x"), [(f"row {i}", str(i)) for i in range(2 * ROWS + 1)])
    text = to_latex(Document((Section("section", (table,)),)))
    parts = text.split(r"\begin{table}")[1:]
    assert [part.count("row ") for part in parts] == [ROWS, ROWS, 1]


def test_a_panel_of_one_split_names_it() -> None:
    made = record(prompts={"rl": 3})
    assert "rl, greedy" in terminal_text(compare([made], METRICS))
    scores = {"acc": {"mean": 0.5, "n": 10, "stderr": 0.1}}
    both = [Evaluation(p, "hellaswag", "lm-eval", 0, scores, []) for p in ("reference", "trained")]
    tasks = compare([dataclasses.replace(made, evaluations=both)], METRICS)
    for render in (terminal_text, markdown, latex, html):
        assert "hellaswag, lm-eval" in render(tasks)


def test_every_special_character_of_latex_is_escaped() -> None:
    assert latex_text("a_b & 100% #1 ${x}^2~ \\") == (
        r"a\_b \& 100\% \#1 \$\{x\}\textasciicircum{}2\textasciitilde{} \textbackslash{}"
    )
    assert latex_text("--a ''b ``c ?` ,,") == "-{}-a '{}'b `{}`c ?{}` ,{},"
    assert latex_text("é ß α 中 \x1b <|>") == r"\'{e} \ss{} $\alpha$ [U+4E2D] [U+001B] $<$$|$$>$"
    # A row that begins with a bracket would be an argument of the line break before it.
    assert all(line.startswith("{}") for line in latex(compare(_nasty(), METRICS)).splitlines() if line.endswith(r"\\"))


def test_html_holds_no_markup_of_a_label() -> None:
    bad = "<script>alert('x')</script> & \"q\" \x1b[31m"
    text = html(compare([record(prompts=SMALL, task_options={"category": bad})], METRICS))
    assert "<script" not in text and "\x1b" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;q&quot; [U+001B]" in text
    assert "http" not in text and "src=" not in text


def test_print_table_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "table.tex"
    console = Console(file=io.StringIO())
    print_table([record(prompts=SMALL)], METRICS, format="latex", out=out, console=console)
    assert out.read_text(encoding="utf-8") == latex(compare([record(prompts=SMALL)], METRICS))
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
