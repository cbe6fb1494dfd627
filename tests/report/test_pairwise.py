"""Two runs, or two methods, side by side: which runs a name means, what is computed, what is refused, what is shown."""

from __future__ import annotations

import csv as table
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.escaping import visible
from shiq_bench.records.record import Evaluation, RunRecord
from shiq_bench.report import render
from shiq_bench.report.pairwise import Versus, document, frame, print_versus, select, shortened, told, versus
from shiq_bench.stats.clustered import linearised_difference, paired_examples, summarise
from shiq_bench.stats.intervals import crossed_t, mean_ci_t
from tests.command import shiq_bench
from tests.report.synthetic import METRICS, record

SMALL = {"rl": 8, "heldout": 5}
NAMES = ("one", "other")


def _seeds(algo: str, skill: float, seeds: range = range(6), **spec: Any) -> list[RunRecord]:
    return [record(algo, s, skill=skill, prompts=SMALL, **spec) for s in seeds]


def text(made: Versus, format: str, width: int = render.WIDTH) -> str:
    room = width if format == "rich" else render.room(format)
    return render.text(frame(made) if format == "csv" else document(made, room), format, width)


def _last(r: RunRecord, split: str, mode: str) -> Evaluation:
    return next(e for e in r.evaluations if (e.policy, e.split, e.mode) == ("trained", split, mode))


def _row(found: Any, split: str, mode: str, metric: str) -> Any:
    return next(r for r in found.rows if (r.split, r.mode, r.metric.name) == (split, mode, metric))


def test_names() -> None:
    records = [*_seeds("shiq", 0.6), *_seeds("shiq", 0.7, algo_options={"beta": 0.3}), *_seeds("dpo", 0.1, range(2))]
    assert select(records, records[3].run_id) == [records[3]]
    assert [r.spec.seed for r in select(records, "dpo")] == [0, 1]
    assert {r.spec.algo_options["beta"] for r in select(records, "shiq:beta=0.3")} == {0.3}
    assert select(records, "shiq:beta=.30,seed=2")[0].spec.seed == 2
    for name, says in {
        "shiq": "different settings, beta is 0.1, 0.3: say shiq:beta=",
        "shqi": "did you mean 'shiq'",
        "shiq:beta=7": "no run of shiq has beta=7; there is 0.1, 0.3",
        "shiq:betta=7": "did you mean 'beta'",
        "shiq:beta": "expected key=value",
    }.items():
        with pytest.raises(UserError, match=says):
            select(records, name)
    other_task = dataclasses.replace(records[0], spec=dataclasses.replace(records[0].spec, task="tree"))
    with pytest.raises(UserError, match="run on bfcl, tree: say which with --task"):
        select([*_seeds("shiq", 0.6), other_task], "shiq")
    assert select([*_seeds("shiq", 0.6), other_task], "shiq", "tree") == [other_task]


def test_two_single_runs_are_paired_by_prompt() -> None:
    a, b = record("shiq", 0, skill=0.9, prompts=SMALL), record("dpo", 0, skill=0.1, prompts=SMALL)
    found = versus([a], [b], NAMES, METRICS)
    for metric in ("reward", "turn_success"):
        row = _row(found, "rl", "sampled", metric)
        expected = paired_examples(_last(a, "rl", "sampled").examples, _last(b, "rl", "sampled").examples, metric)
        assert row.difference == expected and row.over == "prompts" and (row.prompts, row.seeds) == (8, 1)
        assert row.one - row.other == pytest.approx(row.difference.mean)
        assert row.p == pytest.approx(2 * stats.t(7).sf(abs(expected.mean / expected.stderr)))
    by_prompt = [
        {p: np.mean([e["reward"] for e in _last(r, "rl", "sampled").examples if e["prompt_id"] == p]) for p in
         sorted({e["prompt_id"] for e in _last(r, "rl", "sampled").examples})}
        for r in (a, b)
    ]  # fmt: skip
    scipy = stats.ttest_rel(list(by_prompt[0].values()), list(by_prompt[1].values()))
    assert _row(found, "rl", "sampled", "reward").p == pytest.approx(scipy.pvalue)


def test_seeds_are_paired_and_prompts_are_shared() -> None:
    one, other = _seeds("shiq", 0.9), _seeds("dpo", 0.1, range(1, 8))
    found = versus(one, other, NAMES, METRICS)
    row = _row(found, "rl", "sampled", "reward")
    pairs = [(_last(one[s], "rl", "sampled"), _last(other[s - 1], "rl", "sampled")) for s in range(1, 6)]
    each = [paired_examples(a.examples, b.examples, "reward").mean for a, b in pairs]
    assert row.seeds == 5 and None not in each
    means = [
        [{e["prompt_id"]: 0.0 for e in ev.examples} for ev in pair] for pair in pairs
    ]  # prompt -> mean of its four answers
    for pair, sides in zip(pairs, means, strict=True):
        for ev, side in zip(pair, sides, strict=True):
            for e in ev.examples:
                side[e["prompt_id"]] += e["reward"] / 4
    matrix = [[a[p] - b[p] for p in sorted(a)] for a, b in means]
    assert row.over == "seeds and prompts"
    expected = crossed_t(matrix)
    assert row.difference.mean == pytest.approx(expected.mean) and row.difference.low == pytest.approx(expected.low)
    assert row.p == pytest.approx(2 * stats.t(expected.degrees).sf(abs(expected.mean / expected.stderr)))
    rate = _row(found, "rl", "sampled", "turn_success")
    rates = crossed_t([list(linearised_difference(a.examples, b.examples, "turn_success").values()) for a, b in pairs])
    assert rate.over == "seeds and prompts" and rate.difference == rates
    over = mean_ci_t(paired_examples(a.examples, b.examples, "turn_success").mean for a, b in pairs)
    assert rates.mean == pytest.approx(over.mean)
    assert f"Left out: {one[0].run_id}: its seed is not shared." in found.captions


def test_p_and_interval_never_contradict() -> None:
    """Small effects over seeds and prompts, where the sign-flip test of seeds says otherwise in some."""
    decided = []
    for skill in np.linspace(0.1, 1.0, 12):
        for row in versus(_seeds("shiq", skill), _seeds("dpo", 0.1), NAMES, METRICS).rows:
            if row.difference.half:
                excludes = row.difference.low > 0 or row.difference.high < 0  # type: ignore[operator]
                assert row.p is not None and (row.p < 0.05) == excludes, row
                decided.append(excludes)
    assert any(decided) and not all(decided)


def test_what_differs_in_settings() -> None:
    found = versus(
        _seeds("shiq", 0.9, range(1)), _seeds("shiq", 0.6, range(1), algo_options={"beta": 0.3}, steps=400), NAMES
    )
    assert set(found.settings) == {("beta", "0.1", "0.3"), ("steps", "200", "400")}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task_options": {"category": "live"}}, "task_options is .*multi_turn_base.* and .*live"),
        ({"eval_samples": 2}, "eval_samples is 4 and 2"),
        ({"source_hash": "another"}, "different versions of the source.*--allow-mixed"),
        ({"status": "diverged"}, "other has no finished run: dpo-bfcl-.* is diverged"),
        ({"seed": 3}, ""),
    ],
)
def test_what_is_refused(change: dict[str, Any], says: str) -> None:
    a = [record("shiq", 0, prompts=SMALL)]
    b = [record("dpo", **{"seed": 0, "prompts": SMALL, **change})]
    if not says:
        assert "The two have different seeds." in versus(a, b, NAMES).captions
        return
    with pytest.raises(UserError, match=says) as caught:
        versus(a, b, NAMES)
    assert "\n" not in str(caught.value)
    if "source_hash" in change:
        assert any("MIXED SOURCES" in c for c in versus(a, b, NAMES, allow_mixed=True).captions)


def test_other_judges_tasks_and_seeds_are_refused() -> None:
    a, b = record("shiq", 0, prompts=SMALL), record("dpo", 0, prompts=SMALL)
    with pytest.raises(UserError, match="judges is none and abc"):
        versus([a], [dataclasses.replace(b, judges_hash="abc")], NAMES)
    elsewhere = dataclasses.replace(b, spec=dataclasses.replace(b.spec, task="tree"))
    with pytest.raises(UserError, match="task is bfcl and tree"):
        versus([a], [elsewhere], NAMES)
    with pytest.raises(UserError, match="have a run in common"):
        versus([a], [a], NAMES)
    with pytest.raises(UserError, match=r"no seed in common: one has \[0, 1\], other has \[2, 3\]"):
        versus(_seeds("shiq", 0.6, range(2)), _seeds("dpo", 0.6, range(2, 4)), NAMES)


def _with_text(r: RunRecord, scores: dict[str, float], text: str) -> RunRecord:
    examples = [{"prompt_id": p, "reward": v, "details": {"answer": f"{text} {p}"}} for p, v in scores.items()]
    e = Evaluation("trained", "rl", "greedy", 200, summarise(examples, ["reward"]), examples)
    return dataclasses.replace(r, evaluations=[e])


def _duel(text: str = "said") -> Any:
    a = _with_text(record("shiq", 0), {"p0": 1.0, "p1": 0.0, "p2": 0.5, "p3": 1.0, "mine": 1.0}, text)
    b = _with_text(record("dpo", 0), {"p0": 0.9, "p1": 1.0, "p2": 0.5, "p3": 0.2, "theirs": 0.0}, f"{text} otherwise")
    return versus([a], [b], NAMES, METRICS, count=2)


def test_examples_that_differ_most() -> None:
    """Differences 0.1, -1, 0, 0.8; a prompt that one alone has says nothing."""
    found = _duel()
    assert [(e.prompt, round(e.difference, 6)) for e in found.examples] == [("p1", -1.0), ("p3", 0.8)]
    assert found.examples[0].one["details"]["answer"] == "said p1"
    row = _row(found, "rl", "greedy", "reward")
    assert row.prompts == 4 and row.one == pytest.approx(2.5 / 4) and row.other == pytest.approx(2.6 / 4)


def test_prompts_without_a_trial_on_either_side_are_not_shared() -> None:
    """On p0 and p1 the first has 3 of 4 and the other 2 of 4; p2 and p3 are of one of them alone."""

    def made(algo: str, trials: dict[str, tuple[int, int]]) -> RunRecord:
        examples = [{"prompt_id": p, "turn_success": x, "turn_success/n": n} for p, (x, n) in trials.items()]
        e = Evaluation("trained", "rl", "greedy", 200, summarise(examples, ["turn_success"]), examples)
        return dataclasses.replace(record(algo, 0), evaluations=[e])

    a = made("shiq", {"p0": (1, 2), "p1": (2, 2), "p2": (0, 8)})
    b = made("dpo", {"p0": (1, 2), "p1": (1, 2), "p2": (0, 0), "p3": (4, 4)})
    row = _row(versus([a], [b], NAMES, METRICS), "rl", "greedy", "turn_success")
    assert (row.one, row.other, row.prompts) == (0.75, 0.5, 2)
    assert row.one - row.other == pytest.approx(row.difference.mean)
    assert [e.prompt for e in versus([a], [b], NAMES, METRICS).examples] == ["p1"]


def test_seeds_are_those_that_both_measured() -> None:
    one, other = _seeds("shiq", 0.9), _seeds("dpo", 0.1)
    lost = [dataclasses.replace(e, metrics={k: v for k, v in e.metrics.items() if k != "reward"}, examples=[
        {k: v for k, v in x.items() if k != "reward"} for x in e.examples
    ]) for e in one[0].evaluations]  # fmt: skip
    found = versus([dataclasses.replace(one[0], evaluations=lost), *one[1:]], other, NAMES, METRICS)
    rows = [_row(found, "rl", "sampled", m) for m in ("reward", "entry_accuracy")]
    assert [r.seeds for r in rows] == [5, 6] and [r.over for r in rows] == ["seeds and prompts"] * 2


def test_options_called_like_a_setting_are_told_apart() -> None:
    records = [record("shiq", prompts=SMALL, algo_options={"samples": n}) for n in (8, 16)]
    assert versus(records[:1], records[1:], NAMES).settings == (("algo.samples", "8", "16"),)
    assert select(records, "shiq:algo.samples=8") == records[:1]
    with pytest.raises(UserError, match=r"algo.samples is 16, 8: say shiq:algo.samples="):
        select(records, "shiq")


HOSTILE = "[bold red]x[/bold red] \x1b[2J\x1b]0;title\x07 \u202eabc\u2066 a|b\r\n" + "long " * 400 + "end"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_model_text_is_text(width: int) -> None:
    shown = text(_duel(HOSTILE), "rich", width)
    assert not any(c in shown for c in "\x1b\x07\u202e\u2066\r")
    assert "more lines" in shown and max(map(len, shown.splitlines())) <= width
    if width == 200:  # narrower columns break them
        assert "[bold red]x[/bold red]" in shown and r"\x1b[2J" in shown and r"\u202e" in shown
    for format in ("latex", "html"):
        assert not any(c in text(_duel(HOSTILE), format) for c in "\x1b\x07\u202e\u2066\r")
    md = text(_duel(HOSTILE), "md")
    assert not any(c in md for c in "\x1b\x07\u202e\r") and "a\\|b" in md


def test_what_is_equal_on_both_sides_is_left_out() -> None:
    """The question is the same for both, and long; what they answered is not."""
    question = {"question": "long " * 200}
    one = {"prompt_id": "p", "reward": 1.0, "length": 3.0, "details": question | {"said": "yes " * 9, "ok": "y"}}
    other = {**one, "reward": 0.0, "details": question | {"said": "no", "ok": "n"}}
    assert told(one, other, _duel()) == ["reward 1", "ok: y", "said: " + "yes " * 9]


def test_visible_and_shortened() -> None:
    assert visible("a\tb\x00é\n中\u200b") == "a\\tb\\x00é\n中\\u200b"
    assert shortened(["abcdef", ""], 4) == ["abcd", "ef", ""]
    assert shortened(["a"] * 20, 4, 3) == ["a", "a", "… 18 more lines"]


def test_formats() -> None:
    found = _duel()
    rows = list(table.DictReader(io.StringIO(text(found, "csv"))))
    assert [r["metric"] for r in rows] == ["reward"] and float(rows[0]["difference"]) == pytest.approx(-0.1 / 4)
    assert (rows[0]["prompts"], rows[0]["seeds"], rows[0]["interval_over"]) == ("4", "1", "prompts")
    for name in ("md", "csv", "latex", "html"):
        console = Console(file=io.StringIO(), width=40)
        print_versus(found, name, console)
        assert console.file.getvalue() == text(found, name) == text(_duel(), name)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="did you mean 'csv'"):
        print_versus(found, "cvs", Console())


def test_command(tmp_path: Path) -> None:
    for r in [*_seeds("shiq", 0.9, range(2)), *_seeds("dpo", 0.1, range(2))]:
        run_store.save(r, tmp_path)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "record.json").write_text('{"run_id": "cu')

    compare = ("compare", "--results", tmp_path)
    done = shiq_bench(*compare, "shiq", "dpo", "--task", "bfcl", "--format", "md")
    assert done.code == 1 and "skipped: " in done.err and "cut" in done.err
    assert "shiq minus dpo" in done.out and "mean reward" in done.out
    refused = shiq_bench(*compare, "shiq", "dppo")
    assert refused.code == 2 and "did you mean 'dpo'" in refused.err
