"""What models and records hold is text wherever it is shown: in Markdown, in a terminal, in a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from markdown_it import MarkdownIt

from shiq_bench.records.errors import UserError
from shiq_bench.records.escaping import in_csv, in_line, in_markdown, visible
from shiq_bench.records.record import RunRecord
from shiq_bench.report import figures, tables
from shiq_bench.report.comparison import compare
from shiq_bench.report.pairwise import versus as versus_of
from shiq_bench.report.render import FORMATS, to_csv
from shiq_bench.report.tables import frame as frame_of
from tests.report.studies import one_panel
from tests.report.synthetic import METRICS, record
from tests.report.test_pairwise import _with_text, text

SMALL = {"rl": 3}
LIVE = [
    "![p](https://evil/t.png)", "[x](https://evil)", "<img src=x onerror=alert(1)>", "<https://evil>", "&lt;b&gt;",
    "$x^2$", "# head", "~~gone~~", "> quote", "- item", "+ item", "12. item", "3) item", "---", "`code`", "**b** __c__",
    "a|b\\|c", "https://evil/x_y", "www.evil.com", "mailto:a@b.c", "[^1]: note", "[a]: https://evil", "=== \\", "-0.4",
    "    code", "a\\", "!", "- [ ] task",
]  # fmt: skip


def rendered(text: str) -> str:
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def elements(html: str) -> set[str]:
    return set(re.findall(r"<([a-z0-9]+)", html))


@pytest.mark.parametrize("text", LIVE)
@pytest.mark.parametrize("around", ["{}", "- {}", "### {}", "**a {}**"])
def test_markdown_shows_the_text_itself(text: str, around: str) -> None:
    html = rendered(around.format(in_markdown(text)))
    assert elements(html) <= {"p", "ul", "li", "h3", "strong"}
    assert unescape(re.sub(r"<[^>]*>", "", html)).strip().removeprefix("a ") == text.strip()


def test_an_address_is_no_link_without_marks() -> None:
    assert in_markdown("see http://a.b, www.a.b and a@b.c") == r"see http\://a.b, www\.a.b and a\@b.c"
    assert in_markdown("step 3: 0.9 ± 1.0, -0.4") == "step 3: 0.9 ± 1.0, -0.4"


def _hostile(say: str) -> list[RunRecord]:
    options: dict[str, Any] = {"task_options": {"category": say}, "algo_options": {"note": say}, "prompts": SMALL}
    return [
        record("shiq", **options),
        record("shiq", **{**options, "algo_options": {"note": f"other {say}"}}),
        record("dpo", **options, status="failed", error=f"{say}\nsecond"),
    ]


def test_tables_in_markdown_hold_no_more_than_tables() -> None:
    say = "\n\n".join(["<img src=x onerror=alert(1)>", *LIVE])
    md = tables.text(compare(_hostile(say), METRICS), "md")
    html = rendered(md)
    assert elements(html) <= {"h3", "p", "strong", "em", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert "<img src=x onerror=alert(1)>" in unescape(html)
    # Every row that was written is a row, and nothing else is.
    rules = sum(line.startswith("|:--|") for line in md.splitlines())
    assert html.count("<tr>") == sum(line.startswith("|") for line in md.splitlines()) - rules


def test_two_compared_in_markdown() -> None:
    say = " ".join(LIVE)
    a, b = (_with_text(record(m), {"p0": x, "p1": 0.5}, f"{say} {m}") for m, x in (("shiq", 1.0), ("dpo", 0.0)))
    md = text(versus_of([a], [b], ("![x](https://evil)", "dpo\n| a |"), METRICS, count=1), "md")
    assert {"img", "a", "h1", "code", "del"}.isdisjoint(elements(rendered(md)))
    assert not re.findall(r"(?<!\\)<\w+>", md)


def test_a_page_of_a_study_in_markdown() -> None:
    md = figures.page(one_panel({"a": [1.0, 2.0]}, title="t ![p](https://evil)", asks="<b>pi*</b>?"), _said())
    html = rendered(md)
    assert html.count("<img") == 1 and "<b>" not in html and "&lt;b&gt;pi*&lt;/b&gt;?" in html


def _said() -> Any:
    from shiq_bench.report.findings import findings

    return findings(one_panel({"a": [1.0, 2.0]}))


ESCAPES = "\x1b]0;title\x07 \x1b[2J \x9b1m \u202eabc\r\n"


def test_a_terminal_is_told_nothing() -> None:
    comparison = compare([replace(r, deviations=(ESCAPES,)) for r in _hostile(ESCAPES)], METRICS)
    for format in FORMATS:
        assert all(c.isprintable() or c == "\n" for c in tables.text(comparison, format)), format
    assert r"\x1b[2J" in tables.text(comparison, "rich", 400)


def test_a_study_tells_a_terminal_nothing() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(figures.terminal(one_panel({ESCAPES: [1.0, 2.0]}, title=ESCAPES)))
    assert not set("\x1b\x07\x9b\u202e\r") & set(console.file.getvalue())  # type: ignore[attr-defined]


def test_errors_and_skipped_records_are_one_harmless_line() -> None:
    from shiq_bench.records.escaping import one_line

    assert one_line(UserError("no \x1b[2J\nrun")) == r"no \x1b[2J run"


def test_lines_stay_lines_where_they_may() -> None:
    assert visible("a\nb\tc") == "a\nb\\tc" and in_line("a\r\nb\u2028c") == "a b c"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-x", "'-x"), ("@sum", "'@sum"), ("\tx", "'\\tx"), ("\rx", "'\\rx"),
        (" =1", "' =1"), ("-0.5", "-0.5"), ("+1e-3", "+1e-3"), ("-1-1", "'-1-1"), ("a=1", "a=1"), ("", ""),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(text: str, cell: str) -> None:
    assert in_csv(text) == cell


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_files_of_numbers_hold_no_formula_and_all_numbers() -> None:
    records = [record(prompts=SMALL, algo="=cmd()"), record("dpo", prompts=SMALL)]
    comparison = compare(records, METRICS)
    rows = _rows(tables.text(comparison, "csv"))
    assert {r["policy"] for r in rows} == {"reference", "dpo", "'=cmd()"}
    means = [x for x in frame_of(comparison.blocks)["mean"] if x == x]
    assert min(means) < 0 and [float(r["mean"]) for r in rows if r["mean"]] == pytest.approx(means)
    (first, *_) = _rows(text(versus_of(records[:1], records[1:], ("=a", "-b"), METRICS), "csv"))
    assert (first["one"], first["other"]) == ("'=a", "'-b") and float(first["mean_one"]) >= 0
    assert {r["method"] for r in _rows(to_csv(figures.frame(one_panel({"@a": [-1.0, 2.0]}))))} == {"'@a"}
