"""Comparisons: grouping, what is computed, what is refused, what is never dropped."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import Evaluation, Metric, RunRecord
from shiq_bench.report.blocks import Block
from shiq_bench.report.comparison import compare
from shiq_bench.report.tables import frame as frame_of
from shiq_bench.report.tables import print_table
from shiq_bench.report.tables import text as in_format
from shiq_bench.stats.clustered import paired_examples, summarise
from shiq_bench.stats.intervals import crossed_t, mean_ci_t
from shiq_bench.stats.tests import detectable, holm, sign_flip_p
from tests.report.synthetic import METRICS, SMALL, record, several

markdown, csv, terminal_text = (partial(in_format, format=name) for name in ("md", "csv", "rich"))


def _one(records: list[RunRecord], **options: Any) -> Block:
    blocks = compare(records, METRICS, **options).blocks
    assert len(blocks) == 1
    return blocks[0]


def test_reference_once_and_first() -> None:
    block = _one(several())
    assert [c.label for c in block.columns] == ["reference", "dpo", "sft", "shiq"]
    frame = frame_of(compare(several(), METRICS).blocks)
    one = frame[(frame.split == "rl") & (frame["mode"] == "greedy") & (frame.metric == "reward")]
    assert list(one.policy) == ["reference", "dpo", "dpo", "sft", "sft", "shiq", "shiq"]
    assert list(one.kind[:3]) == ["value", "value", "minus_reference"]


def _seen(r: RunRecord, policy: str, mode: str = "greedy", split: str = "rl") -> Evaluation:
    return next(e for e in r.evaluations if (e.policy, e.split, e.mode) == (policy, split, mode))


def test_several_seeds_are_a_t_interval_over_them_and_their_prompts() -> None:
    """By hand: a prompt with m of M turns on average adds r + (x - r m) / (M / G) to the rate r of its seed."""
    records = [record(seed=s, prompts=SMALL) for s in range(3)]
    block = _one(records)
    cell, matrix = block.cells[("rl", "greedy", "shiq", "turn_success")], []
    for examples in (_seen(r, "trained").examples for r in records):
        turns = [e["turn_success/n"] for e in examples]
        rate = sum(e["turn_success"] for e in examples) / sum(turns)
        matrix.append(
            [rate + (e["turn_success"] - rate * m) / np.mean(turns) for e, m in zip(examples, turns, strict=True)]
        )
    expected = crossed_t(matrix)
    assert (cell.estimate.mean, cell.estimate.half) == pytest.approx((expected.mean, expected.half))
    assert cell.estimate.mean == pytest.approx(
        np.mean([_seen(r, "trained").metrics["turn_success"]["mean"] for r in records])
    )
    assert cell.over == "seeds and prompts" and len(cell.n) == 3
    captions = "\n".join(block.captions)
    assert "Trained, several seeds: t over seeds and prompts" in captions and "other prompts" not in captions


def _without(r: RunRecord, prompt: str) -> RunRecord:
    """The trained policy's answers to one prompt are gone."""
    found = []
    for e in r.evaluations:
        examples = [x for x in e.examples if x["prompt_id"] != prompt or e.policy == "reference"]
        found.append(dataclasses.replace(e, examples=examples, metrics=summarise(examples, e.metrics)))
    return dataclasses.replace(r, evaluations=found)


def test_without_the_same_prompts_the_interval_is_over_seeds_alone_and_says_so() -> None:
    records = [record(seed=s, prompts=SMALL) for s in range(3)]
    block = _one([_without(records[0], "rl_003"), *records[1:]])
    cell = block.cells[("rl", "greedy", "shiq", "reward")]
    assert cell.over == "seeds" and block.cells[("heldout", "greedy", "shiq", "reward")].over == "seeds and prompts"
    assert cell.estimate == mean_ci_t(_seen(c, "trained").metrics["reward"]["mean"] for c in block.columns[1].done)
    key = ("rl", "greedy", "shiq", "reward")
    assert block.differences[key].over == "seeds"
    captions = "\n".join(block.captions)
    assert "where not every seed has every prompt's number (mean reward, " in captions
    assert "Student's t over the seeds' means, which does not cover other prompts" in captions
    assert "covers neither other prompts nor the reference's own sampling" in captions
    bare = "\n".join(_one([_bare("shiq", s, 0.1 * s) for s in range(3)]).captions)
    assert "Trained, several seeds: Student's t over the seeds' means, which does not cover other prompts." in bare


def test_one_seed_is_the_clustered_interval_of_its_checkpoint() -> None:
    made = record(prompts=SMALL)
    cell = _one([made]).cells[("rl", "sampled", "shiq", "reward")]
    stored = next(e for e in made.evaluations if (e.policy, e.split, e.mode) == ("trained", "rl", "sampled"))
    assert cell.over == "prompts"
    assert cell.estimate.stderr == stored.metrics["reward"]["stderr"]
    assert cell.n == (8 * 4,)
    assert cell.estimate.units == 8


def test_differences_are_paired_by_prompt_then_over_seeds() -> None:
    records = [record(seed=s, prompts=SMALL) for s in range(3)]

    def difference(r: RunRecord) -> Any:
        found = {e.policy: e.examples for e in r.evaluations if (e.split, e.mode) == ("rl", "greedy")}
        return paired_examples(found["trained"], found["reference"], "reward")

    key = ("rl", "greedy", "shiq", "reward")
    assert _one(records[:1]).differences[key].estimate == difference(records[0])
    cell = _one(records).differences[key]
    assert cell.estimate.mean == pytest.approx(np.mean([difference(r).mean for r in records]))
    assert cell.over == "seeds and prompts"
    assert cell.estimate.half == pytest.approx(crossed_t(_differences(records, "greedy")).half)
    assert ("rl", "greedy", "shiq", "length") not in _one(records).differences


def _differences(records: list[RunRecord], mode: str) -> list[list[float]]:
    """Trained minus reference, mean reward of a prompt's answers. ``[S, P]``"""
    matrix = []
    for r in records:
        by_prompt = [
            {p: np.mean([e["reward"] for e in found if e["prompt_id"] == p]) for p in {e["prompt_id"] for e in found}}
            for found in (_seen(r, policy, mode).examples for policy in ("trained", "reference"))
        ]
        matrix.append([float(by_prompt[0][p] - by_prompt[1][p]) for p in sorted(by_prompt[0])])
    return matrix


def test_every_run_is_counted() -> None:
    comparison = compare(several(), METRICS)
    text = terminal_text(comparison)
    flat = " ".join(text.split())
    assert "1 diverged" in text and "1 failed" in text and "1 started" in text
    for r in several():
        assert r.run_id.rsplit("-", 1)[1] in flat
        if r.status != "done":
            assert f"Not in the means: {r.run_id}, {r.status}" in flat
    assert "diverged: loss is nan at step 31" in flat and "trace" not in flat
    frame = frame_of(comparison.blocks).set_index("policy")
    assert set(frame.loc["sft", ["done", "failed", "started"]].itertuples(index=False, name=None)) == {(1, 1, 1)}


def test_a_method_that_never_finished_keeps_its_column() -> None:
    records = [record("shiq", prompts=SMALL), record("dpo", status="diverged", prompts=SMALL)]
    block = _one(records)
    assert [c.state for c in block.columns] == ["", "1 diverged", "seed 0"]
    frame = frame_of(compare(records, METRICS).blocks)
    assert frame[frame.policy == "dpo"]["mean"].isna().all() and len(frame[frame.policy == "dpo"])


def test_the_last_checkpoint_counts() -> None:
    made = record(prompts=SMALL)
    early = [
        dataclasses.replace(e, step=10, metrics={"reward": {"mean": 9, "n": 1, "stderr": None}})
        for e in made.evaluations
    ]
    both = dataclasses.replace(made, evaluations=[*made.evaluations, *(e for e in early if e.policy == "trained")])
    assert _one([both]).cells == _one([made]).cells
    assert "Checkpoint: the last one (step 200)." in _one([both]).captions


def test_captions_say_what_a_reader_must_know() -> None:
    captions = "\n".join(_one([record(prompts={"rl": 40})]).captions)
    assert "95% interval over prompts, errors clustered by prompt" in captions
    assert "it does not cover other training seeds" in captions
    assert "exact per-position, nats a dialogue" in captions and "temperature 1" in captions
    assert "Model: tiny" in captions
    assert "truncated at most" in captions
    assert "Minimum detectable effect, entry accuracy, rl:" in captions and "40 prompts" in captions
    across = "\n".join(_one([record(seed=s, prompts=SMALL) for s in range(2)]).captions)
    assert "t over seeds and prompts, from their variance components. Reference: one checkpoint" in across
    assert "Model: tiny" not in "\n".join(_one([record(model="org/model", prompts=SMALL)]).captions)
    assert "Deviation, sft (1 of 3 runs): clipped 3% of the ratios" in _one(several()).captions


def test_a_missing_truncation_rate_is_said() -> None:
    made = record(prompts=SMALL)
    bare = [
        dataclasses.replace(e, metrics={k: v for k, v in e.metrics.items() if k not in ("truncated", "forced_end")})
        for e in made.evaluations
    ]
    assert "Truncation: not recorded." in _one([dataclasses.replace(made, evaluations=bare)]).captions


def test_other_source_is_refused_unless_asked_for() -> None:
    records = [record(seed=0, prompts=SMALL), record(seed=1, source_hash="another", prompts=SMALL)]
    with pytest.raises(UserError, match="another"):
        compare(records, METRICS)
    for render in (markdown, terminal_text):
        assert "MIXED SOURCES" in render(compare(records, METRICS, allow_mixed=True))


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no run records"):
        compare([])
    with pytest.raises(UserError, match="given twice"):
        compare([record(prompts=SMALL)] * 2)
    with pytest.raises(UserError, match="did you mean 'csv'"):
        print_table([record(prompts=SMALL)], format="cvs")


def test_settings_of_the_evaluation_split_tables_and_of_training_split_columns() -> None:
    records = [
        record(prompts=SMALL),
        record(prompts=SMALL, algo_options={"beta": 0.3}),
        record(prompts=SMALL, eval_samples=2),
        record(prompts=SMALL, task_options={"category": "multi_turn_miss_func"}),
    ]
    blocks = compare(records, METRICS).blocks
    assert len(blocks) == 3
    labels = [[c.label for c in b.columns] for b in blocks]
    assert sorted(map(len, labels)) == [2, 2, 3]
    assert ["reference", "shiq beta=0.1", "shiq beta=0.3"] in labels
    assert len({b.title for b in blocks}) == 3


def test_unequal_settings_across_methods_are_said() -> None:
    captions = _one([record("shiq", prompts=SMALL), record("dpo", steps=400, prompts=SMALL)]).captions
    assert "Settings that differ: steps is 400 for dpo, 200 for shiq." in captions
    assert "Checkpoint: the last one (dpo step 400, shiq step 200)." in captions


def test_methods_that_do_not_share_beta_say_so() -> None:
    def beta(**values: float | None) -> list[str]:
        options = {algo: {} if value is None else {"beta": value} for algo, value in values.items()}
        block = _one([record(algo, prompts={"rl": 3}, algo_options=own) for algo, own in options.items()])
        return [c for c in block.captions if c.startswith("beta")]

    said = "beta is not shared (0.3 for dpo and 0.1 for shiq): these methods optimise different objectives."
    assert beta(shiq=0.1, dpo=0.3, sft=None) == [said]
    assert beta(shiq=0.1, dpo=0.1, sft=None) == [] == beta(shiq=0.1, sft=None)


def test_seeds_alone_make_one_column() -> None:
    block = _one([record(seed=s, prompts=SMALL) for s in (3, 1, 2)])
    assert [c.state for c in block.columns] == ["", "3 seeds"]
    assert [r.spec.seed for r in block.columns[1].done] == [1, 2, 3]


def test_a_reference_that_differs_is_said() -> None:
    other = record(seed=1, prompts=SMALL)
    shifted = [
        dataclasses.replace(e, metrics={"reward": {"mean": 7.0, "n": 8, "stderr": None}})
        if e.policy == "reference"
        else e
        for e in other.evaluations
    ]
    block = _one([record(prompts=SMALL), dataclasses.replace(other, evaluations=shifted)])
    assert any("1 runs measured the reference differently" in c for c in block.captions)
    assert not any("measured the reference" in c for c in _one([record(prompts=SMALL), other]).captions)


def _bare(algo: str, seed: int, score: float | None, n: int = 40) -> RunRecord:
    made = record(algo, seed, prompts={"rl": 2})
    metrics = {"entry_accuracy": {"mean": score, "n": 0 if score is None else n, "stderr": None}}
    return dataclasses.replace(made, evaluations=[Evaluation("trained", "rl", "greedy", 200, metrics, [])])


@pytest.mark.parametrize(("seeds", "marked"), [(5, False), (6, True)])
def test_bold_from_six_seeds_on(seeds: int, marked: bool) -> None:
    records = [_bare("dpo", s, 0.2 + 0.01 * s) for s in range(seeds)]
    records += [_bare("shiq", s, 0.5 + 0.02 * s) for s in range(seeds)]
    assert bool(_one(records).best) == marked
    assert ("**" in markdown(compare(records, METRICS)).replace("**rl, greedy**", "")) == marked
    if marked:
        assert _one(records).best == {("rl", "greedy", "shiq", "entry_accuracy")}
        assert "Bold" in terminal_text(compare(records, METRICS))


def test_no_bold_where_the_lead_is_noise_or_the_metric_has_no_direction() -> None:
    records = [_bare("dpo", s, 0.3 + 0.1 * (s % 2)) for s in range(6)]
    records += [_bare("shiq", s, 0.31 + 0.1 * ((s + 1) % 2)) for s in range(6)]
    assert not _one(records).best
    clear = [_bare(a, s, v) for a, v in (("dpo", 0.2), ("shiq", 0.6)) for s in range(6)]
    neither = [Metric("entry_accuracy", "neither", "entries")]
    assert not compare(clear, neither).blocks[0].best


def test_undefined_is_a_dash_and_another_n_is_shown() -> None:
    text = markdown(compare([_bare("dpo", 0, None), _bare("shiq", 0, 0.5, 40), _bare("sft", 0, 0.25, 30)], METRICS))
    row = next(line for line in text.splitlines() if line.startswith("| entry accuracy"))
    assert [c.strip() for c in row.strip("|").split("|")][1:5] == ["–", "– (0)", "25.0 (30)", "50.0"]
    text = markdown(compare([_bare("shiq", 0, 0.5), _bare("shiq", 1, None), _bare("shiq", 2, 0.5)], METRICS))
    assert "50.0 (2 of 3 seeds)" in text
    assert "0.0" not in text.split("±: ")[0].replace("50.0", "")


def test_a_stored_record_gives_the_table_of_the_run_itself(tmp_path: Path) -> None:
    made = record(prompts=SMALL)
    run_store.save(made, tmp_path)
    stored, _ = run_store.load_all(tmp_path)
    for metrics in ((), METRICS):
        for render in (markdown, csv, terminal_text):
            assert render(compare(stored, metrics)) == render(compare([made], metrics))


def test_metrics_come_in_the_tasks_order_then_the_rest() -> None:
    made = record(prompts=SMALL)
    names = [m.name for m in _one([made]).metrics]
    assert names == [*(m.name for m in METRICS), "kl", "kl_k1", "kl_token", "length", "truncated"]
    by_task = compare([made], {"bfcl": METRICS, "tree": ()}).blocks[0].metrics
    assert [m.name for m in by_task] == names
    untold = compare([made]).blocks[0].metrics
    assert {m.name for m in untold} == set(names)
    assert untold[0].name == "reward"


def test_p_is_exact_over_paired_seeds_and_adjusted_over_all_pairs_of_methods() -> None:
    """Which method is the best is learnt from the row: all three pairs of three methods count."""
    records = [_bare(a, s, v + 0.01 * s * k) for k, (a, v) in enumerate((("dpo", 0.2), ("sft", 0.3), ("shiq", 0.5)))
               for s in range(6)]  # fmt: skip
    block = _one(records)
    keys = {label: ("rl", "greedy", label, "entry_accuracy") for label in ("dpo", "sft", "shiq")}
    assert keys["shiq"] not in block.to_best
    # All six differences have one sign, 2 / 2^6; the smallest of three p times 3, and the others made monotone.
    for label in ("dpo", "sft"):
        assert (block.to_best[keys[label]].p, block.to_best[keys[label]].adjusted) == (2 / 64, 6 / 64)
    frame = frame_of(compare(records, METRICS).blocks).set_index("policy")
    assert frame.loc["dpo", "p"] == 2 / 64 and frame.loc["dpo", "p_holm"] == 6 / 64 and frame.loc["dpo", "p_units"] == 6
    said = "shiq against dpo 0.094, sft 0.094 (6 seeds)"
    how = "the best method against each other one (exact sign-flip over paired seeds; Holm over all pairs of methods)"
    assert any(how in c and said in c for c in block.captions)
    many = [_bare(r.spec.algo, s, s / 100 + (r.spec.algo == "shiq")) for r in records[::6] for s in range(21)]
    assert any("(sign-flip (100,000 random patterns) over paired seeds; Holm" in c for c in _one(many).captions)
    assert any(c.startswith("Bold") and "exact" not in c for c in _one(many).captions)


def test_where_all_methods_are_equal_none_is_called_the_best() -> None:
    """Of a rate that is 0 for everybody, and of two that tie above a third."""
    equal = [_bare(a, s, 0.0) for a in ("copg", "dpo") for s in range(6)]
    for records in (equal, [*(_bare(a, s, 0.5) for a in ("copg", "dpo") for s in range(6))]):
        block = _one(records)
        assert not block.to_best and not block.best
        assert not any("the best method" in c for c in block.captions)
    third = [_bare("sft", s, -0.1 - s / 100) for s in range(6)]
    assert not any("the best method" in c for c in _one([*equal, *third]).captions)
    assert any("copg against sft 0.031" in c for c in _one([*equal[:6], *third]).captions)


def test_no_p_of_a_table_contradicts_its_interval() -> None:
    found = 0
    for skill in (0.3, 0.5, 0.7, 0.9, 1.2, 1.5):
        block = _one([record("shiq", s, skill=skill, prompts=SMALL) for s in range(6)])
        for key, cell in block.differences.items():
            e, p = cell.estimate, block.to_reference[key].p
            assert e.low is not None and e.high is not None
            if e.half:
                assert (p is not None and p < 0.05) == (e.low > 0 or e.high < 0), key
                found += p is not None and p < 0.05
    assert found


def test_differences_to_the_reference_are_tested_over_seeds_and_prompts() -> None:
    block = _one(several())
    key = ("rl", "sampled", "shiq", "reward")
    # One evaluation of the reference for all seeds: its own luck is an error of every difference.
    crossed = crossed_t(_differences(several()[:6], "sampled"))
    assert crossed.mean is not None and crossed.stderr is not None and crossed.freedom is not None
    p = 2 * stats.t(crossed.freedom).sf(abs(crossed.mean / crossed.stderr))
    assert block.to_reference[key].p == pytest.approx(p)
    how = "(t test of its interval, sign-flip where all differences are alike; Holm over methods)"
    assert any(f"difference to the reference {how}" in c for c in block.captions)
    # Two methods have several seeds; sft has one, which no test can be made of.
    others = [block.to_reference[("rl", "sampled", m, "reward")] for m in ("dpo", "shiq")]
    assert [t.adjusted for t in others] == holm([t.p for t in others])
    assert block.to_reference[("rl", "sampled", "sft", "reward")].p is None
    least = detectable(block.differences[key].estimate)
    assert least is not None and f"mean reward {least:.2g} (rl, sampled)" in "\n".join(
        _one([r for r in several() if r.spec.algo == "shiq"]).captions
    )


def test_a_lead_that_one_seed_contradicts_is_not_bold_at_six() -> None:
    """The t interval excludes 0, and the exact test of six seeds does not: p is 4 / 64 with one that is against it."""
    leads = [0.5, 0.5, 0.5, 0.5, 0.5, -0.02]
    assert (mean_ci_t(leads).low or 0) > 0 and (sign_flip_p(leads) or 0) > 0.05
    records = [_bare("dpo", s, 0.2) for s in range(6)] + [_bare("shiq", s, 0.2 + x) for s, x in enumerate(leads)]
    assert not _one(records).best


def test_an_option_of_one_method_may_be_called_like_a_setting() -> None:
    """``samples`` is an option of some methods and a setting of every run."""
    records = [
        record("shiq", prompts=SMALL),
        record("dpo", prompts=SMALL, samples=2),
        record("sft", prompts=SMALL, algo_options={"samples": 8}),
        record("sft", prompts=SMALL, algo_options={"samples": 16}, skill=0.9),
    ]
    block = _one(records)
    assert [c.label for c in block.columns] == ["reference", "dpo", "sft algo.samples=8", "sft algo.samples=16", "shiq"]
    each = [block.cells[("rl", "greedy", c.label, "reward")].estimate.mean for c in block.columns[2:4]]
    assert each == [_seen(r, "trained").metrics["reward"]["mean"] for r in records[2:]]
    said = next(c for c in block.captions if c.startswith("Settings that differ: samples is "))
    assert "2 for dpo, 4 for sft algo.samples=8, 4 for sft algo.samples=16, 4 for shiq" in said
    with pytest.raises(UserError, match="two columns of different settings would be called 'sft note=1'"):
        compare([record("sft", prompts=SMALL, algo_options={"note": note}) for note in (1, "1")], METRICS)


def test_who_lost_runs_is_not_bold_and_a_lucky_survivor_is_not_the_best() -> None:
    low, high = ([_bare(a, s, v + s / 100) for s in range(7)] for a, v in (("dpo", 0.2), ("shiq", 0.6)))
    lucky = _bare("sft", 0, 0.99)
    block = _one([*low, *high, lucky])
    key = ("rl", "greedy", "shiq", "entry_accuracy")
    assert block.best == {key} and key not in block.to_best, "one seed ranks nowhere"
    assert block.to_best[("rl", "greedy", "dpo", "entry_accuracy")].p == 2 / 128
    assert any("shiq against dpo 0.016 (7 seeds)" in c for c in block.captions)
    fell = dataclasses.replace(_bare("shiq", 9, 0.0), status="diverged", evaluations=())
    block = _one([*low, *high, fell])
    assert not block.best and block.unmarked == {key}
    said = (
        "Not bold despite the best mean, because seeds are missing (failed, diverged, unfinished or without a number): "
        "shiq in 1 row."
    )
    assert said in block.captions
    undefined = _one([*low, *high, _bare("shiq", 9, None)])
    assert not undefined.best and undefined.unmarked == {key}


def test_what_is_measured_against_a_methods_own_target_has_no_reference_and_no_best() -> None:
    metrics = [Metric("entry_accuracy", "higher", "own", percent=True, headline=True, own=True)]
    records = [_bare(a, s, v) for a, v in (("dpo", 0.2), ("shiq", 0.6)) for s in range(6)]
    begun = [
        dataclasses.replace(e, policy="reference", step=0, metrics={"entry_accuracy": {"mean": i, "n": 1, "stderr": 0}})
        for i, r in enumerate(records)
        for e in r.evaluations
    ]
    both = [dataclasses.replace(r, evaluations=[e, *r.evaluations]) for r, e in zip(records, begun, strict=True)]
    block = compare(both, metrics).blocks[0]
    assert block.cells and not any("reference" in k for k in block.cells)
    assert not block.best and not block.to_best and not block.differences
    assert not any("measured the reference differently" in c for c in block.captions)
    other = compare(both, METRICS).blocks[0]
    assert other.best and any("measured the reference differently" in c for c in other.captions)


def test_blocks_of_different_judges_are_told_apart() -> None:
    records = [
        dataclasses.replace(record("dpo", s, prompts=SMALL), judges_hash=judge)
        for s, judge in enumerate(("aaaabbbbccccdddd", "0000111122223333"))
    ]
    titles = [b.title for b in compare(records, METRICS).blocks]
    assert [t.rpartition(" · ")[2] for t in titles] == ["judges=000011112222", "judges=aaaabbbbcccc"]
    frame = frame_of(compare(records, METRICS).blocks)
    assert [c.rpartition(" ")[2] for c in dict.fromkeys(frame.conditions)] == [t.rpartition(" ")[2] for t in titles]
    assert "judges" not in _one(records[:1]).title and "judges" not in csv(compare(records[:1], METRICS))
