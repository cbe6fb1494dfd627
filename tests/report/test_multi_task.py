"""What is said and drawn over several tasks: normalised by hand, few tasks first, the same bytes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from shiq_bench.report import figures, render
from shiq_bench.report.findings import findings
from shiq_bench.report.multi_task import IMPROVEMENT, PROFILES, improvements, means, normalised, profiles, thresholds
from shiq_bench.report.plot import draw
from shiq_bench.report.study_results import StudyResults, Trial, View
from tests.report.studies import N, record, rows_of, study

#: Regrets of N instances, where the reference has 2.
GOOD, FAIR, POOR = [0.5] * N, [1.0] * N, [3.0] * N
SPREAD = np.linspace(-0.2, 0.2, N)


def across(panels: int = 5, normalise: str = "optimum", **ends: list[float]) -> StudyResults:
    ends = ends or {"Ours": GOOD, "Other": FAIR, "Worst": POOR}
    cells = [
        Trial(f"task {i}", m, record=record(m.lower(), {"regret": (np.add(v, SPREAD[: len(v)]) + i / 100).tolist()}))
        for i in range(panels)
        for m, v in ends.items()
    ]
    made = study(cells, kind="across", normalise=normalise, log_x=False, log_y=False)
    return replace(made, views=tuple(View(t, made.panels, made.methods) for t in (PROFILES, IMPROVEMENT)))


def test_scores_lie_between_the_reference_and_the_optimum() -> None:
    """The reference has 2 and the optimum 0: 0.5 is three quarters of the way, 3 is half a way back."""
    scores = normalised(across(1))
    assert scores["Ours"]["task 0"] == pytest.approx(0.75 - SPREAD / 2)
    assert scores["Worst"]["task 0"] == pytest.approx(-0.5 - SPREAD / 2)


def test_scores_lie_between_the_worst_and_the_best_run() -> None:
    for better, first in (("lower", 1.0), ("higher", 0.0)):
        made = replace(across(1, "minmax", Ours=[1.0, 2.0], Other=[4.0, 5.0]), better=better)  # type: ignore[arg-type]
        values = normalised(made)
        every = sorted(x for by_panel in values.values() for xs in by_panel.values() for x in xs)
        assert (every[0], every[-1]) == (0.0, 1.0)
        assert values["Ours"]["task 0"][0] == first
    alike = across(1, "minmax", Ours=GOOD)
    same = replace(alike, cells=(replace(alike.cells[0], record=record("ours", {"regret": GOOD})),))
    assert normalised(same) == {"Ours": {}}, "a task on which all are alike has no scores"


def test_a_known_winner_is_found() -> None:
    made = across()
    assert list(means(made)) == ["Ours", "Other", "Worst"]
    assert means(made)["Ours"].mean == pytest.approx(0.75 - 0.02 / 2)
    assert {m: e.mean for m, e in improvements(made).items()} == {"Other": 1.0, "Worst": 1.0}
    said = findings(made)
    text = "\n".join(said.claims)
    assert "highest interquartile mean: Ours (0.74" in text
    assert "Ours is more often better than Other (1) and Worst (1); more often worse than none." in text
    assert "0 is the reference's mean regret on the task, 1 the exact optimum" in said.lead
    assert rows_of(said.embedded[0])[0][2:4] == ("5", str(5 * N))


def test_equal_methods_share_the_first_place() -> None:
    text = "\n".join(findings(across(5, Twin=GOOD, Ours=GOOD, Worst=POOR)).claims)
    assert "highest interquartile mean: Twin and Ours (0.74" in text and "Next: Worst (" in text


def test_alike_is_undecided() -> None:
    even = [x + (0.01 if i % 2 else -0.01) for i, x in enumerate(GOOD)]
    text = "\n".join(findings(across(5, Ours=GOOD, Even=even)).claims)
    assert "better than none; more often worse than none; undecided: Even." in text


def test_with_few_tasks_every_task_comes_first() -> None:
    few, many = findings(across(3)), findings(across(5))
    assert few.lead.startswith("Fewer than 5 tasks: the intervals of every task come first.")
    assert few.claims[0].startswith("task 0: lowest at the end: Ours (")
    assert few.embedded[0].title == "task 0" and few.embedded[-1].title == "over all tasks"
    assert not many.lead.startswith("Fewer") and many.embedded[0].title == "over all tasks"


def test_scores_that_rounding_alone_tells_apart_have_profiles() -> None:
    """One ulp apart: no 101 thresholds fit between them."""
    ends = np.tile([1.0, np.nextafter(1.0, 2.0)], N // 2)
    cells = [Trial("task 0", m, record=record(m.lower(), {"regret": ends.tolist()})) for m in ("Ours", "Other")]
    made = replace(across(1), cells=tuple(cells), panels=("task 0",), methods=("Ours", "Other"))
    assert np.diff(thresholds(made, normalised(made))).min() > 0
    assert profiles(made).keys() == {"Ours", "Other"}


def test_who_lacks_a_task_is_not_summed_up() -> None:
    made = across()
    gone = replace(made.cells[1], record=None, problem="exploded")
    less = replace(made, cells=(made.cells[0], gone, *made.cells[2:]))
    assert list(means(less)) == ["Ours", "Worst"] == list(profiles(less))
    said = findings(less)
    assert "Left out of the summary, because some task has no run of them: Other." in said.claims
    assert "Not there: Other on task 0: exploded." in said.problems
    assert improvements(less)["Other"].n == 2 * 4 * N, "over the four tasks both have"


def test_it_is_drawn_and_the_bytes_are_the_same() -> None:
    made = across()
    drawn = [draw(made) for _ in range(2)]
    for kind in ("png", "pdf"):
        assert len({hashlib.sha256(d[kind]).hexdigest() for d in drawn}) == 1
    assert drawn[0]["png"].startswith(b"\x89PNG") and drawn[0]["pdf"].startswith(b"%PDF")
    assert figures.page(made, findings(made)).count("over all tasks") == 1
    assert render.to_csv(figures.frame(made)).count("\n") == 1 + 15


def test_nothing_finished_is_said_and_drawn() -> None:
    made = across()
    empty = replace(made, cells=tuple(replace(c, record=None, problem="exploded") for c in made.cells))
    assert "No method has a finished run on every task." in findings(empty).claims
    assert draw(empty)["png"]
