"""What is said of records whose winner is known."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

import pytest

from shiq_bench.records.record import Evaluation, RunRecord
from shiq_bench.report import figures, render
from shiq_bench.report.findings import findings
from shiq_bench.report.reward_kl_frontier import front, gaps
from shiq_bench.report.steps_to_threshold import updates_until
from shiq_bench.report.study_results import Trial, focus_tests
from shiq_bench.stats.clustered import summarise
from shiq_bench.studies.study import shortened
from tests.report.studies import (
    KNOWN,
    LUCK,
    RISING,
    Line,
    N,
    claims,
    evaluation,
    fronts,
    lucky,
    one_panel,
    played,
    proof,
    record,
    rows_of,
    shifted,
    study,
    table,
    varied,
)

# --- who wins ---


def test_a_known_winner_and_a_known_loser() -> None:
    """Differences of 0.05 with a spread of 0.01, while instances spread over 1: paired they are beyond doubt."""
    text = claims(one_panel(KNOWN))
    assert "Ours wins against Worse (0.05); it loses to Better (0.05); undecided: Even and Twin (equal)." in text
    assert text.startswith("bandit: lowest at the end: Better (")
    assert {d.method: d.verdict for d in focus_tests(one_panel(KNOWN), "bandit")} == {
        "Worse": "wins", "Better": "loses", "Even": "undecided", "Twin": "undecided",
    }  # fmt: skip


def test_nobody_wins() -> None:
    ends = {"Ours": KNOWN["Ours"], "Even": KNOWN["Even"]}
    assert "Ours wins against none; it loses to none; undecided: Even." in claims(one_panel(ends))


def test_the_difference_is_paired_over_the_instances_both_have() -> None:
    """Even where the other finished fewer of them, and its mean looks better for it."""
    easy = [v if i < 4 else None for i, v in enumerate(shifted(0.05, 1.0))]
    made = one_panel({"Ours": KNOWN["Ours"], "Part": easy})
    (test,) = focus_tests(made, "bandit")
    assert test.difference.n == 4 and test.difference.mean == pytest.approx(0.05)
    assert test.verdict == "undecided", "four instances are fewer than six"
    assert test.difference.mean == pytest.approx(0.05)


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
    assert "Worse than the starting policy (unadjusted 95% intervals): Worse." in claims(one_panel(ends))


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
        return claims(study(cells, focus="", **told))

    assert "Worse than" not in said(0.3, -0.1, 0.2, 0.0)
    assert "Worse than the starting policy (unadjusted 95% intervals): Worse." in said(0.3, 0.28, 0.31, 0.29)
    bare = [Trial("chat", "Worse", record=played("worse", s, 0.1 - s / 1000, 1.0), seed=s) for s in range(6)]
    told = {"kind": "table", "metric": "reward", "better": "higher", "split": "heldout", "mode": "sampled"}
    assert "(unadjusted 95% intervals, seed variance only for Worse): Worse." in claims(study(bare, focus="", **told))


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
    text = claims(study(cells, contrasts=(("told at once", "told late"),)))
    line = "told at once against told late: better on the former: Credit (0.1); better on the latter: none; undecided: "
    assert f"{line}Ours." in text


def test_lost_instances_and_versions_are_told() -> None:
    lost = record("lost", {"regret": [None, *[0.1] * (N - 1)]}, diverged=[1.0] + [0.0] * (N - 1))
    cells = [Trial("bandit", "Ours", record=replace(lost, source_hash="0ther"))]
    cells += [Trial("bandit", "Other", record=record("other", {"regret": [0.1] * N}))]
    cells += [Trial("bandit", "Never", left_out="it has no need to")]
    said = findings(study(cells))
    notes = said.notes
    assert said.problems == (f"Ours on bandit diverged on 1 of {N} instances, which its numbers leave out.",)
    assert "Left out: Never on bandit: it has no need to." in notes
    assert any(n.startswith("MIXED SOURCES") for n in notes)


def diverged(algo: str = "wild") -> RunRecord:
    """As a run is stored all of whose instances diverged: without a number."""
    return replace(record(algo, {"regret": [0.1] * N}), status="diverged", evaluations=(), curve=())


def test_a_method_that_diverged_everywhere_is_told_and_not_drawn_as_perfect() -> None:
    cells = [Trial("bandit", "Ours", record=record("ours", {"regret": shifted(0.0)}))]
    cells += [Trial("bandit", "Wild", record=diverged())]
    said = findings(study(cells, reach=("regret", 0.5, "regret")))
    assert said.problems == ("Wild on bandit diverged on every instance: it has no numbers.",)
    (row,) = [r for r in rows_of(said.tables[0]) if r[0] == "Wild"]
    assert row[-1] == "–" and "<1e-12" not in row


def test_what_diverged_does_not_keep_its_promise() -> None:
    made = proof()
    cells = [replace(c, record=diverged()) if (c.method, c.panel) == ("Close", "tree") else c for c in made.cells]
    said = findings(replace(made, cells=tuple(cells)))
    assert rows_of(said.tables[0])[1][1] == "diverged !"
    assert said.claims == (
        "At or under 1.0e-06 in 1 of the 3 cells of which that is promised; not: Close on tree (diverged) and Off on "
        "tree (0.002).",
    )


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
    rows = {row[0]: row for row in rows_of(said.embedded[0])}
    assert rows["Never"][1] == f"0 of {N}" and rows["Never"][2] == "–"
    assert rows["Mirror"][3].startswith("1 [")
    assert said.embedded[0].title == "bandit: updates until regret falls to 0.01"


# --- against what varies ---


def test_claims_name_the_values_where_they_hold() -> None:
    text = claims(varied())
    assert "Ours wins against Other at 0; Always at every value." in text
    assert "Ours loses to Other at 2." in text and "Ours is undecided against Other at 1." in text
    assert "lowest: Ours at 0" in text and "Other at 2" in text
    made = findings(varied()).tables[0]
    assert (made.corner, *(h.text for h in made.headers)) == ("off_policy →", "0", "1", "2")
    other = next(row for row in rows_of(made) if row[0] == "Other")
    assert other[1].endswith("(+)") and not other[2].endswith(")") and other[3].endswith("(-)")


# --- tables ---


def test_a_table_marks_what_breaks_its_promise() -> None:
    said = findings(proof())
    assert rows_of(said.tables[0]) == (
        ("Exact", "<1e-12", "a"),
        ("Close", "3.0e-08 (1.5e-08)", "b"),
        ("Off", "2.0e-03 (1.0e-03) !", "2.0e-03 (1.0e-03)"),
        ("None", "–", "a"),
        ("Broken", "failed", "1.0e-03 (1.0e-03) 1 of 2"),
    )
    assert said.claims == (
        "At or under 1.0e-06 in 2 of the 3 cells of which that is promised; not: Off on tree (0.002).",
    )
    assert "(a) too large." in said.notes and said.problems == ("Not there: Broken on tree: exploded.",)
    text = figures.page(proof(), said)
    assert "| Off | 2.0e-03 (1.0e-03) ! | 2.0e-03 (1.0e-03) |" in text and ".png" not in text


# --- language models: a run a seed ---


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
    pair = {row[0]: row for row in rows_of(findings(made).tables[1])}["Ours against Other"]
    assert pair[1] == "1 to 4" and pair[3] == "8 of 8" and pair[4] == "<0.001"


def test_equal_ends_of_fronts_share_the_first_place() -> None:
    text = claims(fronts({"Ours": lucky(RISING, 0.1), "Other": lucky(RISING, 0.0), "Even": lucky(RISING, 0.1)}))
    assert "highest mean: Ours at beta 3 (3.1 [" in text and "KL (nats) 4) and Even at beta 3 (3.1 [" in text


def test_three_seeds_are_too_few_to_call_a_winner() -> None:
    made = fronts({"Ours": lucky(RISING, 5.0, 3), "Other": lucky(RISING, 0.0, 3)})
    text = claims(made)
    assert "Better at equal KL (nats): none; undecided: Ours against Other." in text
    assert "n = 3 seeds are too few to call a winner: that takes 6." in text
    apart = fronts({"Ours": lucky(RISING, 5.0, 3), "Other": [[(x + 9, y) for x, y in RISING]] * 3})
    assert "Not compared, because no seed covers a common range: Ours and Other." in claims(apart)


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
    rows = rows_of(said.tables[0])
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
    written = list(csv.DictReader(io.StringIO(render.to_csv(figures.frame(made)))))
    assert [(r["metric"], r["x"], r["n"]) for r in written] == [
        (m, x, n) for m in ("reward", "kl") for x, n in (("1", "3"), ("2", "2"), ("3", "3"))
    ]
    assert {run for r in written for run in r["run_id"].split()} == {r.run_id for r in made.done}


def test_language_models_against_what_varies() -> None:
    lines = {"Ours": lucky(RISING, 0.5), "Other": lucky(RISING, 0.0, shake=1.0)}
    made = fronts(lines, kind="against", x_metric="")
    assert "highest: Ours at every value. Ours wins against Other at every value." in claims(made)
    few = fronts({m: seeds[:5] for m, seeds in lines.items()}, kind="against", x_metric="")
    assert "Ours wins against none." in claims(few) and claims(few).endswith(
        "are too few to call a winner: that takes 6."
    )


def test_a_front_of_tables_pairs_instances() -> None:
    """Its units are the instances of a run, and the reference is where its own number says."""
    cells = [
        Trial("tree", m, x, record=record(m.lower(), {"regret": [v + by for v in shifted(0.0)], "kl": [x] * N}))
        for m, by in (("Ours", 0.0), ("Other", 0.5))
        for x in (1.0, 2.0)
    ]
    made = study(cells, kind="front", x_metric="kl", x_metric_label="KL", x_label="beta")
    assert "lowest mean: Ours at beta 1" in claims(made) and "Better at equal KL: Ours than Other (by 0.5)." in claims(
        made
    )
    assert rows_of(findings(made).tables[0])[-1] == ("(reference)", "", "2", "2", str(N))


def test_a_table_of_language_models_compares_by_seed() -> None:
    ends = {("chat", m): [float(1 + u + by) for u in LUCK] for m, by in (("Ours", 0.1), ("Other", 0.0), ("Bad", -0.9))}
    made = table(ends)
    lost = Trial("chat", "Gone", problem="exploded", seed=0)
    said = findings(replace(made, cells=(*made.cells, lost), methods=(*made.methods, "Gone")))
    assert said.claims[0].startswith("chat: highest at the end: Ours (1.1 [")
    assert "Ours wins against Other (0.1) and Bad (1); it loses to none." in said.claims[0]
    assert said.claims[0].endswith("(unadjusted 95% intervals, seed variance only for Bad): Bad.")
    rows = {row[0]: row for row in rows_of(said.tables[0])}
    assert tuple(h.text for h in said.tables[0].headers[1:5]) == ("KL (nats)", "truncated", "failed", "n")
    assert rows["Ours"][2:6] == ("1.5", "0.25", "0", "8") and rows["Gone"][1:6] == ("–", "–", "–", "1", "0")
    assert rows["(reference)"][1:6] == ("0.5", "–", "0", "", "–")
    few = claims(table({place: rewards[:5] for place, rewards in ends.items()}))
    assert "undecided: Other and Bad. n = 5 seeds are too few to call a winner: that takes 6." in few


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
