"""A study is drawn and written, under the same bytes every time."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shiq_bench.records.escaping import in_markdown
from shiq_bench.report import figures, render
from shiq_bench.report.findings import findings
from shiq_bench.report.format import number
from shiq_bench.report.plot import draw, looks
from shiq_bench.report.study_results import Findings, StudyResults, Trial
from tests.report.studies import (
    KNOWN,
    RISING,
    fronts,
    lucky,
    one_panel,
    proof,
    shifted,
    study,
    varied,
)

ROOT = Path(__file__).parents[2]


def white(made: StudyResults) -> np.ndarray:
    """Height x width: 0 black to 1 white, of the picture."""
    return pixels(made).mean(-1)


def pixels(made: StudyResults) -> np.ndarray:
    return decoded(draw(made)["png"])


def decoded(png: bytes) -> np.ndarray:
    from matplotlib.image import imread

    out: np.ndarray = imread(io.BytesIO(png))[..., :3]
    return out


def colour(image: np.ndarray, name: str) -> int:
    """Pixels of a colour."""
    rgb = np.array([int(name[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(image - rgb).max(-1) < 0.02).sum())


def test_every_method_is_drawn_and_nothing_is_cut() -> None:
    made = one_panel(KNOWN)
    empty = replace(made, cells=tuple(replace(c, record=None) for c in made.cells))
    image, blank = pixels(made), pixels(empty)
    styles = looks(made)
    assert len({(s.colour, s.line) for s in styles.values()}) == len({s.marker for s in styles.values()}) == len(KNOWN)
    for method, look in styles.items():
        assert colour(image, look.colour) > colour(blank, look.colour) + 100, method
    for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
        assert edge.min() > 0.99, "something runs over the edge"


def test_more_methods_than_colours_still_differ() -> None:
    cells = [Trial("bandit", f"m{i}") for i in range(20)]
    styles = looks(study(cells, focus="m3")).values()
    assert len({(s.colour, str(s.line)) for s in styles}) == 20


@pytest.mark.parametrize("made", [one_panel(KNOWN, reach=("regret", 0.5, "regret")), varied(log_y=False), proof()])
def test_the_same_records_give_the_same_bytes(made: StudyResults, tmp_path: Path) -> None:
    first = {p.name: p.read_bytes() for p in figures.write(made, tmp_path / "a")}
    second = {p.name: p.read_bytes() for p in figures.write(replace(made), tmp_path / "b")}
    assert first == second
    assert set(first) == {f"example.{s}" for s in ("md", "csv", *(["png", "pdf"] if made.kind != "table" else []))}


SCRIPT = """
import sys
import shiq_bench.report.figures
early = [m for m in ("torch", "matplotlib", "pandas", "rich") if m in sys.modules]
import hashlib
from shiq_bench.report.plot import draw
from tests.report.studies import KNOWN, one_panel
drawn = draw(one_panel(KNOWN))
heavy = [m for m in ("torch", "transformers", "matplotlib.pyplot") if m in sys.modules]
print(early, heavy, hashlib.sha256(drawn["png"]).hexdigest(), hashlib.sha256(drawn["pdf"]).hexdigest())
"""


def test_another_process_draws_the_same_without_torch(tmp_path: Path) -> None:
    """Whatever its hash seed and its user's matplotlibrc."""
    import os

    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nbackend: TkAgg\n")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "DISPLAY": ""}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    drawn = draw(one_panel(KNOWN))
    digests = [hashlib.sha256(drawn[s]).hexdigest() for s in ("png", "pdf")]
    assert done.stdout.strip() == f"[] [] {digests[0]} {digests[1]}"


def test_a_page_says_it_and_the_index_repeats_it_without_the_numbers(tmp_path: Path) -> None:
    made = one_panel(KNOWN, notes=("A remark_of the study.",))
    figures.write(made, tmp_path)
    text = (tmp_path / "example.md").read_text()
    said: Findings = findings(made)
    for part in (
        "# An example",
        "Who wins?",
        "![An example](example.png)",
        in_markdown(said.claims[0]),
        "A remark\\_of the study.",
    ):
        assert part in text
    assert "| Worse |" in text
    figures.index(tmp_path, ["example", "never-drawn"])
    whole = (tmp_path / figures.INDEX).read_text()
    assert "## An example" in whole and in_markdown(said.claims[0]) in whole and "| Worse |" not in whole
    assert "never" not in whole


def test_every_number_traces_to_its_run() -> None:
    made = varied()
    rows = list(csv.DictReader(io.StringIO(render.to_csv(figures.frame(made)))))
    assert {r["run_id"] for r in rows} == {r.run_id for r in made.done}
    assert [r["x"] for r in rows if r["method"] == "Other"] == ["0", "1", "2"]
    assert float(rows[0]["mean"]) == pytest.approx(np.mean(shifted(0.0)))
    curve = list(csv.DictReader(io.StringIO(render.to_csv(figures.frame(one_panel(KNOWN))))))
    assert [r["x"] for r in curve if r["method"] == "Ours"] == ["1", "10", "50", "100"]


def test_a_terminal_gets_the_claims() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=140)
    console.print(figures.terminal(proof()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2.0e-03 (1.0e-03) !" in text and "At or under 1.0e-06 in 2 of the 3" in text


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (-0.5, "-0.5"), (3e-5, "3.0e-05"), (123.4, "123"), (12345.0, "1.2e+04")],
)
def test_numbers_are_short(x: float, text: str) -> None:
    assert number(x) == text


def test_a_front_is_drawn_with_its_reference_and_the_same_bytes() -> None:
    lines = {"Ours": lucky(RISING, 0.5), "Other": lucky(RISING, 0.0, shake=1.0), "Third": lucky(RISING, -0.5)}
    made = fronts(lines)
    empty = replace(made, cells=tuple(replace(c, record=None) for c in made.cells))
    drawn = draw(made)
    image, blank = decoded(drawn["png"]), pixels(empty)
    for method, look in looks(made).items():
        assert colour(image, look.colour) > colour(blank, look.colour) + 100, method
    assert colour(image, "#999999") > colour(blank, "#999999") + 50, "the reference"
    for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
        assert edge.min() > 0.99, "something runs over the edge"
    assert draw(fronts(lines)) == drawn


def test_long_titles_and_names_are_not_cut() -> None:
    made = one_panel(
        {f"{name}, a method with a long name (beta=0.1)": x for name, x in KNOWN.items()}, title="Why? " * 60
    )
    for edge in ((image := pixels(made))[:2], image[-2:], image[:, :2], image[:, -2:]):
        assert edge.min() > 0.99, "something runs over the edge"
