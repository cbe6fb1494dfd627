"""What is said of records whose winner is known, and that it is drawn, under the same bytes every time."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from shiq_bench.records.escaping import in_markdown
from shiq_bench.records.record import Evaluation, RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.report import figures
from shiq_bench.report.findings import findings
from shiq_bench.report.prose import number
from shiq_bench.report.reward_kl_frontier import front, gaps
from shiq_bench.report.steps_to_threshold import updates_until
from shiq_bench.report.study_results import Findings, StudyResults, Trial, View, duels
from shiq_bench.stats.clustered import summarise
from shiq_bench.studies.trials import shortened

ROOT = Path(__file__).parents[2]
N = 8
Values = Sequence[float | None]

#: What makes an instance hard is the same for every method: only paired differences see through it.
HARD = np.linspace(0.0, 1.0, N)
SHAKE = np.tile([0.01, -0.01], N // 2)


def evaluation(policy: str, step: int, metrics: Mapping[str, Values], diverged: Values = ()) -> Evaluation:
    n = len(next(iter(metrics.values())))
    examples = [
        {"prompt_id": f"instance {i}", **{k: v[i] for k, v in metrics.items()}, "details": {}} for i in range(n)
    ]
    for example, value in zip(examples, diverged, strict=False):
        example["diverged"] = value
    return Evaluation(policy, "instances", "exact", step, summarise(examples, list(metrics)), tuple(examples))


def record(algo: str, metrics: Mapping[str, Values], begun: float = 2.0, diverged: Values = ()) -> RunRecord:
    """A run of 100 updates whose metrics fall from ``begun`` to their last values, tenfold in ten updates at most."""
    n = len(next(iter(metrics.values())))
    start = {k: [begun] * n for k in metrics}
    curve = []
    for step in (0, 1, 10, 50, 100):
        share = step / 100
        now = {
            k: [None if v is None else begun ** (1 - share) * max(v, 1e-9) ** share for v in vs]
            for k, vs in metrics.items()
        }
        curve.append(evaluation("trained", step, now))
    spec = RunSpec(algo, "bandit", model="table", steps=100, seeds=n)
    found = (evaluation("reference", 0, start), evaluation("trained", 100, metrics, diverged))
    return RunRecord(spec.run_id, "done", spec, source_hash="5ee0c0de", evaluations=found, curve=tuple(curve))


def sheet(cells: Sequence[Trial], **changes: Any) -> StudyResults:
    panels = tuple(dict.fromkeys(c.panel for c in cells))
    methods = tuple(dict.fromkeys(c.method for c in cells))
    made = StudyResults(
        name="example", title="An example", asks="Who wins?", kind="curves", metric="regret", label="regret",
        better="lower", focus="Ours", x_label="off_policy", panels=panels, methods=methods,
        views=tuple(View(p, (p,), methods) for p in panels), cells=tuple(cells), log_x=True,
    )  # fmt: skip
    return replace(made, **changes)


def one_panel(ends: Mapping[str, Values], **changes: Any) -> StudyResults:
    cells = [Trial("bandit", m, record=record(m.lower(), {"regret": v})) for m, v in ends.items()]
    return sheet(cells, **changes)


def shifted(by: float, shake: float = 0.0) -> list[float]:
    """Ours plus ``by``, shaken or not; instances are spread over much more than either."""
    return [float(v) for v in 0.2 + HARD + by + shake * SHAKE]


KNOWN = {
    "Ours": shifted(0.0),
    "Worse": shifted(0.05, 1.0),
    "Better": shifted(-0.05, 1.0),
    "Even": shifted(0.0, 1.0),
    "Twin": shifted(0.0),
}


def claims(made: StudyResults) -> str:
    return "\n".join(findings(made).claims)


# --- who wins ---


def test_a_known_winner_and_a_known_loser() -> None:
    """Differences of 0.05 with a spread of 0.01, while instances spread over 1: paired they are beyond doubt."""
    text = claims(one_panel(KNOWN))
    assert "Ours wins against Worse (0.05); it loses to Better (0.05); undecided: Even and Twin (equal)." in text
    assert text.startswith("bandit: lowest at the end: Better (")
    assert {d.method: d.verdict for d in duels(one_panel(KNOWN), "bandit")} == {
        "Worse": "wins", "Better": "loses", "Even": "undecided", "Twin": "undecided",
    }  # fmt: skip


def test_nobody_wins() -> None:
    ends = {"Ours": KNOWN["Ours"], "Even": KNOWN["Even"]}
    assert "Ours wins against none; it loses to none; undecided: Even." in claims(one_panel(ends))


def test_the_difference_is_paired_over_the_instances_both_have() -> None:
    """Even where the other finished fewer of them, and its mean looks better for it."""
    easy = [v if i < 4 else None for i, v in enumerate(shifted(0.05, 1.0))]
    made = one_panel({"Ours": KNOWN["Ours"], "Part": easy})
    (duel,) = duels(made, "bandit")
    assert duel.difference.n == 4 and duel.difference.mean == pytest.approx(0.05)
    assert duel.verdict == "undecided", "four instances cannot go below p = 0.125"
    assert duel.difference.mean == pytest.approx(0.05)


def test_higher_can_be_better() -> None:
    text = claims(one_panel(KNOWN, better="higher"))
    assert "highest at the end: Worse (" in text
    assert "Ours wins against Better (0.05); it loses to Worse (0.05)" in text


def test_one_instance_claims_nothing() -> None:
    text = claims(one_panel({"Ours": [0.1], "Other": [0.9]}))
    assert "wins against none; it loses to none; undecided: Other." in text


def test_what_is_under_the_floor_is_equal() -> None:
    tiny = {"Ours": [1e-9 * (i + 1) for i in range(N)], "Other": [1e-8 * (i + 1) for i in range(N)]}
    assert "wins against Other" in claims(one_panel(tiny))
    text = claims(one_panel(tiny, floor=1e-6))
    assert "lowest at the end: Ours and Other (1.0e-06" in text and "undecided: Other (equal)" in text


def test_who_ends_worse_than_it_began() -> None:
    ends = {"Ours": shifted(0.0), "Worse": shifted(3.0, 1.0)}
    assert "Worse than where they start (95% intervals, not adjusted): Worse." in claims(one_panel(ends))


def test_a_language_model_ends_worse_than_the_reference_beyond_the_luck_of_prompts() -> None:
    """Every seed is 0.1 below one evaluation of the reference on 2 prompts: that may be the reference's luck."""

    def scored(seed: int, falls: Sequence[float]) -> RunRecord:
        made = played("worse", seed, 0.0, 1.0)
        found = []
        for policy, by in (("reference", [0.0] * len(falls)), ("trained", falls)):
            examples = [{"prompt_id": f"p{i}", "reward": 0.5 - x - 0.001 * seed * x} for i, x in enumerate(by)]
            metrics = summarise(examples, ["reward"])
            found.append(
                Evaluation(policy, "heldout", "sampled", 0 if policy == "reference" else 200, metrics, examples)
            )
        return replace(made, evaluations=tuple(found))

    def said(*falls: float) -> str:
        cells = [Trial("chat", "Worse", record=shortened(scored(seed, falls)), seed=seed) for seed in range(6)]
        told = {"kind": "table", "metric": "reward", "better": "higher", "split": "heldout", "mode": "sampled"}
        return claims(sheet(cells, focus="", **told))

    assert "Worse than where they start" not in said(0.3, -0.1, 0.2, 0.0)
    assert "Worse than where they start (95% intervals, not adjusted): Worse." in said(0.3, 0.28, 0.31, 0.29)
    bare = [Trial("chat", "Worse", record=played("worse", s, 0.1 - s / 1000, 1.0), seed=s) for s in range(6)]
    told = {"kind": "table", "metric": "reward", "better": "higher", "split": "heldout", "mode": "sampled"}
    assert "not adjusted; of Worse over seeds alone, which takes the reference as known): Worse." in claims(
        sheet(bare, focus="", **told)
    )


def test_without_a_focus_or_its_run_nothing_is_compared() -> None:
    assert "wins" not in claims(one_panel(KNOWN, focus=""))
    made = one_panel(KNOWN)
    gone = replace(made.cells[0], record=None, problem="exploded")
    said = findings(replace(made, cells=(gone, *made.cells[1:])))
    assert "Ours has no finished run here: nothing is compared." in said.claims[0]
    assert "Not there: Ours on bandit: exploded." in said.problems


def test_a_contrast_pairs_two_panels() -> None:
    cells = [
        Trial(panel, method, record=record(method.lower(), {"regret": ends}))
        for panel, by in (("told late", 0.1), ("told at once", 0.0))
        for method, ends in (("Ours", shifted(0.0)), ("Credit", shifted(by, 1.0)))
    ]
    text = claims(sheet(cells, contrasts=(("told at once", "told late"),)))
    line = "told at once against told late: better on the former: Credit (0.1); better on the latter: none; undecided: "
    assert f"{line}Ours." in text


def test_lost_instances_and_versions_are_told() -> None:
    lost = record("lost", {"regret": [None, *[0.1] * (N - 1)]}, diverged=[1.0] + [0.0] * (N - 1))
    cells = [Trial("bandit", "Ours", record=replace(lost, source_hash="0ther"))]
    cells += [Trial("bandit", "Other", record=record("other", {"regret": [0.1] * N}))]
    cells += [Trial("bandit", "Never", left_out="it has no need to")]
    said = findings(sheet(cells))
    notes = said.notes
    assert said.problems == (f"Ours on bandit diverged on 1 of {N} instances, which its numbers leave out.",)
    assert "Left out: Never on bandit: it has no need to." in notes
    assert any(n.startswith("MIXED SOURCES") for n in notes)


# --- speed ---


def test_updates_until_a_threshold_are_interpolated() -> None:
    """1 at 0 updates, 1e-2 at 10: 1e-1 is halfway in the logarithm; what never falls so far is None; once is enough."""
    curve = tuple(
        evaluation("trained", step, {"kl": values})
        for step, values in ((0, [1.0, 1.0, 0.05]), (10, [1e-2, 0.5, 0.5]), (20, [1.0, 0.2, 0.01]))
    )
    made = replace(record("a", {"kl": [0.0] * 3}), curve=curve)
    found = updates_until(made, "kl", 0.1)
    assert found == {"instance 0": pytest.approx(5.0), "instance 1": None, "instance 2": 0.0}


def test_speed_is_counted_instance_by_instance() -> None:
    """On half of the instances one is first, on the others the other, and by the same factor: undecided."""
    fast, slow = 1e-8, 1e-4
    half = [fast, slow] * (N // 2)
    ends = {"Ours": half, "Mirror": half[::-1], "Slow": [1e-3] * N, "Never": [1.0] * N}
    made = one_panel(ends, reach=("regret", 1e-2, "regret"))
    said = findings(made)
    text = "\n".join(said.claims)
    assert f"Ours on {N // 2}, Mirror on {N // 2}, Slow on 0 and Never on 0 of {N} instances." in text
    assert "Ours needs fewer updates than Slow (n 8), more than none; undecided: Mirror (n 8) and Never (n 0)." in text
    rows = {row[0]: row for row in said.embedded[0].rows}
    assert rows["Never"][1] == f"0 of {N}" and rows["Never"][2] == "–"
    assert rows["Mirror"][3].startswith("1 [")
    assert any("updates until regret falls to 0.01" in line for line in figures.aligned(said.embedded[0]))


# --- against what varies ---


def varied(**changes: Any) -> StudyResults:
    """The other is worse at 0 and better at 2; at 1 nobody is."""
    others = {0.0: shifted(0.05, 1.0), 1.0: shifted(0.0, 1.0), 2.0: shifted(-0.05, 1.0)}
    cells = [Trial("tree", "Ours", x, record=record("ours", {"regret": shifted(0.0)})) for x in others]
    cells += [Trial("tree", "Other", x, record=record("other", {"regret": v})) for x, v in others.items()]
    cells += [Trial("tree", "Always", x, record=record("always", {"regret": shifted(1.0, 1.0)})) for x in others]
    return sheet(cells, kind="against", log_x=False, **changes)


def test_claims_name_the_values_where_they_hold() -> None:
    text = claims(varied())
    assert "Ours wins against Other at 0; Always at every value." in text
    assert "Ours loses to Other at 2." in text and "Ours is undecided against Other at 1." in text
    assert "lowest: Ours at 0" in text and "Other at 2" in text
    grid = findings(varied()).grids[0]
    assert grid.headers == ("off_policy →", "0", "1", "2")
    other = next(row for row in grid.rows if row[0] == "Other")
    assert other[1].endswith("(+)") and not other[2].endswith(")") and other[3].endswith("(-)")


# --- tables ---


def proof() -> StudyResults:
    tight, loose = [1e-9, 3e-8], [1e-9, 2e-3]
    cells = [
        Trial("tree", "Exact", record=record("exact", {"kl": [0.0, -1e-17]}), bound=1e-6),
        Trial("tree", "Close", record=record("close", {"kl": tight}), bound=1e-6),
        Trial("tree", "Off", record=record("off", {"kl": loose}), bound=1e-6),
        Trial("tree", "None", record=record("none", {"kl": [None, None]}), bound=1e-6),
        Trial("tree", "Broken", bound=1e-6, problem="exploded"),
        Trial("grid", "Exact", left_out="too large"),
        Trial("grid", "Close", left_out="of no use"),
        Trial("grid", "Off", record=record("off", {"kl": loose})),
        Trial("grid", "None", left_out="too large"),
        Trial("grid", "Broken", record=record("broken", {"kl": [1e-3, None]})),
    ]
    made = sheet(cells, kind="table", metric="kl", label="KL", focus="")
    return replace(made, views=(View("Everything", made.panels, made.methods),))


def test_a_table_marks_what_breaks_its_promise() -> None:
    said = findings(proof())
    assert said.grids[0].rows == (
        ("Exact", "<1e-12", "a"),
        ("Close", "3.0e-08 (1.5e-08)", "b"),
        ("Off", "2.0e-03 (1.0e-03) !", "2.0e-03 (1.0e-03)"),
        ("None", "–", "a"),
        ("Broken", "failed", "1.0e-03 (1.0e-03) 1 of 2"),
    )
    assert said.claims == (
        "At or under 1.0e-06 in 2 of the 3 cells of which that is promised; above: Off on tree (0.002).",
    )
    assert "(a) too large." in said.notes and said.problems == ("Not there: Broken on tree: exploded.",)
    text = figures.page(proof(), said)
    assert "| Off | 2.0e-03 (1.0e-03) ! | 2.0e-03 (1.0e-03) |" in text and ".png" not in text


# --- language models: a run a seed ---

#: What makes a seed lucky is the same for every method.
LUCK = np.linspace(-0.2, 0.2, 8)


def played(algo: str, seed: int, reward: float, kl: float, beta: float = 0.1) -> RunRecord:
    """A run whose numbers elsewhere (other splits, other modes) are others."""

    def seen(policy: str, split: str, mode: str, **metrics: float | None) -> Evaluation:
        found = {name: {"mean": mean, "n": 40.0, "stderr": 0.1} for name, mean in metrics.items()}
        return Evaluation(policy, split, mode, 0 if policy == "reference" else 200, found, ())

    spec = RunSpec(algo, "bfcl", {"beta": beta}, seed=seed)
    found = (
        seen("reference", "heldout", "sampled", reward=0.5, truncated=0.0),
        seen("trained", "heldout", "greedy", reward=9.0, truncated=0.0),
        seen("trained", "heldout", "sampled", reward=reward, kl=kl, truncated=0.25),
        seen("trained", "rl", "sampled", reward=9.0, kl=9.0, truncated=0.0),
    )
    return RunRecord(spec.run_id, "done", spec, source_hash="5ee0c0de", evaluations=found)


Line = Sequence[tuple[float, float]]


def fronts(lines: Mapping[str, Sequence[Line]], **changes: Any) -> StudyResults:
    """Method -> a line of (KL, reward) for every seed, whose points are those of beta 1, 2, ..."""
    cells = [
        Trial("chat", method, float(i), record=played(method.lower(), seed, y, x, float(i)), seed=seed)
        for method, seeds in lines.items()
        for seed, line in enumerate(seeds)
        for i, (x, y) in enumerate(line, 1)
    ]
    told = {
        "kind": "front", "metric": "reward", "label": "mean reward", "better": "higher", "x_label": "beta",
        "split": "heldout", "mode": "sampled", "x_metric": "kl", "x_metric_label": "KL (nats)", "log_x": False,
        "log_y": False,
    }  # fmt: skip
    return sheet(cells, **{**told, **changes})


def lucky(line: Line, by: float, seeds: int = 8, shake: float = 0.0) -> list[Line]:
    """A line for every seed: higher or lower by its luck, and by how much better the method is."""
    return [
        [(x, float(y + luck + by + shake * s)) for x, y in line] for luck, s in zip(LUCK[:seeds], SHAKE, strict=False)
    ]


RISING: Line = [(1.0, 1.0), (2.0, 2.0), (4.0, 3.0)]


def test_fronts_are_compared_at_equal_kl() -> None:
    """By hand: parallel lines, crossing ones, a bend, points in another order than KL, and ranges apart."""
    cases: list[tuple[Line, Line, float | None]] = [
        ([(0, 0), (2, 2)], [(1, 0), (3, 2)], 1.0),  # over 1 to 2
        ([(0, 0), (2, 2)], [(0, 2), (2, 0)], 0.0),
        ([(2, 1), (0, 0), (1, 1)], [(0, 0), (2, 0)], 0.75),  # (0.5 + 1) / 2
        ([(0, 0), (1, 1)], [(2, 0), (3, 1)], None),
        ([(1, 5)], [(0, 0), (3, 1)], None),  # a point is no front
    ]
    for one, other, expected in cases:
        found = gaps(fronts({"Ours": [one], "Other": [other]}), "chat", "Ours", "Other")
        assert found.get("seed 0", (None,))[0] == (None if expected is None else pytest.approx(expected))
    assert gaps(fronts({"Ours": [cases[0][0]], "Other": [cases[0][1]]}), "chat", "Ours", "Other")["seed 0"][1:] == (
        1,
        2,
    )


def test_a_front_that_lies_above_another() -> None:
    """By less than luck spreads the seeds: only in pairs is it seen."""
    made = fronts({"Ours": lucky(RISING, 0.1), "Other": lucky(RISING, 0.0, shake=1.0), "Even": lucky(RISING, 0.1)})
    text = claims(made)
    assert text.startswith("chat: highest mean: Ours at beta 3 (3.1 [")
    assert "Better at equal KL (nats): Ours than Other (by 0.1) and Even than Other (by 0.1); undecided: Ours " in text
    assert "too few" not in text and "Not compared" not in text
    assert "Better at equal KL (nats): Other than Ours" in claims(replace(made, better="lower"))
    pair = {row[0]: row for row in findings(made).grids[1].rows}["Ours against Other"]
    assert pair[1] == "1 to 4" and pair[3] == "8 of 8" and float(pair[4]) == pytest.approx(3 * 2 / 2**8, abs=5e-4)


def test_three_seeds_are_too_few_to_call_a_winner() -> None:
    made = fronts({"Ours": lucky(RISING, 5.0, 3), "Other": lucky(RISING, 0.0, 3)})
    text = claims(made)
    assert "Better at equal KL (nats): none; undecided: Ours against Other." in text
    assert "n = 3 seeds are too few to call a winner: p, adjusted, cannot fall below 0.25." in text
    apart = fronts({"Ours": lucky(RISING, 5.0, 3), "Other": [[(x + 9, y) for x, y in RISING]] * 3})
    assert "Not compared, for no seed has both in one range: Ours and Other." in claims(apart)


def test_the_numbers_of_a_front_are_means_over_seeds_and_failures_are_counted() -> None:
    made = fronts({"Ours": lucky(RISING, 0.0, 3)})
    lost = [
        replace(c, record=None, problem="diverged: loss is nan") if (c.x, c.seed) == (2, 1) else c for c in made.cells
    ]
    made = replace(made, cells=tuple(lost))
    points = front(made, "chat", "Ours")
    assert [(p.value, p.x.mean, p.y.units) for p in points] == [(1, 1, 3), (2, 2, 2), (3, 4, 3)]
    assert points[0].y.mean == pytest.approx(1 + LUCK[:3].mean()) and points[0].y.low is not None
    said = findings(made)
    rows = said.grids[0].rows
    assert [row[1] for row in rows] == ["1", "2", "3", ""] and [row[-2:] for row in rows[:3]] == [
        ("0", "3"),
        ("1", "2"),
        ("0", "3"),
    ]
    assert rows[-1][:5] == ("(reference)", "", "0", "0.5", "0") and rows[0][4] == "0.25"
    assert said.problems == ("Not there: Ours on chat at 2, seed 1: diverged: loss is nan.",)
    more = [replace(c, record=None, problem="exploded") if (c.x, c.seed) == (3, 0) else c for c in made.cells]
    (line,) = findings(replace(made, cells=tuple(more))).problems
    assert line.startswith(
        "Not there: 2 of 9 runs of Ours on chat (2, seed 1; 3, seed 0), the first of them because: div"
    )
    assert "on split heldout, sampled answers" in said.lead and "n = 2 to 3 seeds" in said.lead
    written = list(csv.DictReader(io.StringIO(figures.numbers(made))))
    assert [(r["metric"], r["x"], r["n"]) for r in written] == [
        (m, x, n) for m in ("reward", "kl") for x, n in (("1", "3"), ("2", "2"), ("3", "3"))
    ]
    assert {run for r in written for run in r["run_id"].split()} == {r.run_id for r in made.done}


def test_a_front_is_drawn_with_its_reference_and_the_same_bytes() -> None:
    lines = {"Ours": lucky(RISING, 0.5), "Other": lucky(RISING, 0.0, shake=1.0), "Third": lucky(RISING, -0.5)}
    made = fronts(lines)
    empty = replace(made, cells=tuple(replace(c, record=None) for c in made.cells))
    drawn = figures.draw(made, findings(made))
    image, blank = decoded(drawn["png"]), pixels(empty)
    for method, look in figures.looks(made).items():
        assert colour(image, look.colour) > colour(blank, look.colour) + 100, method
    assert colour(image, "#999999") > colour(blank, "#999999") + 50, "the reference"
    for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
        assert edge.min() > 0.99, "something runs over the edge"
    assert figures.draw(fronts(lines), findings(made)) == drawn


def test_language_models_against_what_varies() -> None:
    lines = {"Ours": lucky(RISING, 0.5), "Other": lucky(RISING, 0.0, shake=1.0)}
    made = fronts(lines, kind="against", x_metric="")
    assert "highest: Ours at every value. Ours wins against Other at every value." in claims(made)
    few = fronts({m: seeds[:5] for m, seeds in lines.items()}, kind="against", x_metric="")
    assert "Ours wins against none." in claims(few) and claims(few).endswith("adjusted, cannot fall below 0.19.")


def test_a_front_of_tables_pairs_instances() -> None:
    """Its units are the instances of a run, and the reference is where its own number says."""
    cells = [
        Trial("tree", m, x, record=record(m.lower(), {"regret": [v + by for v in shifted(0.0)], "kl": [x] * N}))
        for m, by in (("Ours", 0.0), ("Other", 0.5))
        for x in (1.0, 2.0)
    ]
    made = sheet(cells, kind="front", x_metric="kl", x_metric_label="KL", x_label="beta")
    assert "lowest mean: Ours at beta 1" in claims(made) and "Better at equal KL: Ours than Other (by 0.5)." in claims(
        made
    )
    assert findings(made).grids[0].rows[-1] == ("(reference)", "", "2", "2", str(N))


def table(lines: Mapping[tuple[str, str], Sequence[float]], **changes: Any) -> StudyResults:
    """(panel, method) -> the reward of every seed."""
    cells = [
        Trial(panel, method, record=played(method.lower(), seed, reward, 1.5), seed=seed)
        for (panel, method), rewards in lines.items()
        for seed, reward in enumerate(rewards)
    ]
    told = {"kind": "table", "metric": "reward", "label": "reward", "better": "higher", "split": "heldout"}
    return sheet(cells, **{**told, "mode": "sampled", **changes})


def test_a_table_of_language_models_compares_by_seed() -> None:
    ends = {("chat", m): [float(1 + u + by) for u in LUCK] for m, by in (("Ours", 0.1), ("Other", 0.0), ("Bad", -0.9))}
    made = table(ends)
    lost = Trial("chat", "Gone", problem="exploded", seed=0)
    said = findings(replace(made, cells=(*made.cells, lost), methods=(*made.methods, "Gone")))
    assert said.claims[0].startswith("chat: highest at the end: Ours (1.1 [")
    assert "Ours wins against Other (0.1) and Bad (1); it loses to none." in said.claims[0]
    assert said.claims[0].endswith("over seeds alone, which takes the reference as known): Bad.")
    rows = {row[0]: row for row in said.grids[0].rows}
    assert said.grids[0].headers[2:6] == ("KL (nats)", "truncated", "failed", "n")
    assert rows["Ours"][2:6] == ("1.5", "0.25", "0", "8") and rows["Gone"][1:6] == ("–", "–", "–", "1", "0")
    assert rows["(reference)"][1:6] == ("0.5", "–", "0", "", "–")
    few = claims(table({place: rewards[:5] for place, rewards in ends.items()}))
    assert (
        "undecided: Other and Bad. n = 5 seeds are too few to call a winner: p, adjusted, cannot fall below 0.12."
        in few
    )


def test_a_contrast_of_language_models_pairs_seeds() -> None:
    ends = {
        (panel, method): [float(1 + u + by * (method == "Credit")) for u in LUCK]
        for panel, by in (("each turn", 0.05), ("the end", 0.0))
        for method in ("Credit", "Return")
    }
    made = table(ends, focus="", contrasts=(("each turn", "the end"),))
    text = (
        "each turn against the end: better on the former: Credit (0.05); better on the latter: none; undecided: Return."
    )
    assert findings(made).claims[-1] == text
    deviating = tuple(replace(c, record=replace(c.record, deviations=("cut",))) for c in made.cells if c.record)
    assert "In 32 of 32 runs: cut." in findings(replace(made, cells=deviating)).notes


# --- files ---


def white(made: StudyResults) -> np.ndarray:
    """Height x width: 0 black to 1 white, of the picture."""
    return pixels(made).mean(-1)


def pixels(made: StudyResults) -> np.ndarray:
    return decoded(figures.draw(made, findings(made))["png"])


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
    styles = figures.looks(made)
    assert len({(s.colour, s.line) for s in styles.values()}) == len({s.marker for s in styles.values()}) == len(KNOWN)
    for method, look in styles.items():
        assert colour(image, look.colour) > colour(blank, look.colour) + 100, method
    for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
        assert edge.min() > 0.99, "something runs over the edge"


def test_more_methods_than_colours_still_differ() -> None:
    cells = [Trial("bandit", f"m{i}") for i in range(20)]
    styles = figures.looks(sheet(cells, focus="m3")).values()
    assert len({(s.colour, str(s.line)) for s in styles}) == 20


@pytest.mark.parametrize("made", [one_panel(KNOWN, reach=("regret", 0.5, "regret")), varied(log_y=False), proof()])
def test_the_same_records_give_the_same_bytes(made: StudyResults, tmp_path: Path) -> None:
    first = {p.name: p.read_bytes() for p in figures.write(made, tmp_path / "a")}
    second = {p.name: p.read_bytes() for p in figures.write(replace(made), tmp_path / "b")}
    assert first == second
    assert set(first) == {f"example.{s}" for s in ("md", "csv", *(["png", "pdf"] if made.kind != "table" else []))}


SCRIPT = """
import sys
import shiq_bench.report.figures, shiq_bench.report.findings
early = [m for m in ("torch", "matplotlib", "pandas", "rich") if m in sys.modules]
import hashlib
from tests.report.test_figures import KNOWN, findings, one_panel, pictures
made = one_panel(KNOWN)
drawn = figures.draw(made, findings(made))
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
    drawn = figures.draw(one_panel(KNOWN), findings(one_panel(KNOWN)))
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
    rows = list(csv.DictReader(io.StringIO(figures.numbers(made))))
    assert {r["run_id"] for r in rows} == {r.run_id for r in made.done}
    assert [r["x"] for r in rows if r["method"] == "Other"] == ["0", "1", "2"]
    assert float(rows[0]["mean"]) == pytest.approx(np.mean(shifted(0.0)))
    curve = list(csv.DictReader(io.StringIO(figures.numbers(one_panel(KNOWN)))))
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


def test_lines_are_as_wide_as_they_were_measured() -> None:
    """Of a long caption none may end outside the picture."""
    text = (
        "All methods get the same instances: ShiQ wins where the test over paired differences has p < 0.05 after Holm. "
    )
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(figures.RC)
        for line in figures._wrapped(text * 3, 11.7):
            figure = Figure(figsize=(12, 1), dpi=figures.DPI)
            drawn = figure.text(0, 0, line, fontsize=figures.TEXT)
            width = drawn.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.dpi
            assert width == pytest.approx(figures._inches(line), rel=2e-3) and width <= 11.75
