"""Tables: golden bytes, grouping, what is refused, what is never dropped."""

from __future__ import annotations

import dataclasses
import io
import random
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.metric import Metric
from shiq_bench.records.record import Evaluation, RunRecord
from shiq_bench.report import markup
from shiq_bench.report.blocks import Block
from shiq_bench.report.comparison import compare
from shiq_bench.report.frame import frame as frame_of
from shiq_bench.report.markup import ROWS, SMALLEST, latex_text
from shiq_bench.report.pivots import By, sections
from shiq_bench.report.tables import csv, html, latex, markdown, print_table, run_table, terminal_text
from shiq_bench.stats.clustered import paired_examples, summarise
from shiq_bench.stats.intervals import crossed_t, mean_ci_t
from shiq_bench.stats.power import detectable
from shiq_bench.stats.tests import holm, sign_flip_p
from tests import needs
from tests.report.synthetic import METRICS, record

SMALL = {"rl": 8, "heldout": 5}
GOLDEN = Path(__file__).parent / "golden"
RENDERED: dict[str, Any] = {
    "md": markdown, "csv": csv, "txt": terminal_text, "tex": latex, "html": html,
    "method.md": partial(markdown, by="method"), "setting.md": partial(markdown, by="setting"),
}  # fmt: skip


def _several() -> list[RunRecord]:
    return [
        *(record("shiq", s, skill=0.9, prompts=SMALL) for s in range(6)),
        *(record("dpo", s, skill=0.1, prompts=SMALL) for s in range(6)),
        record("dpo", 6, status="diverged", error="loss is nan at step 31\ntrace", prompts=SMALL),
        record("sft", 0, skill=0.1, algo_options={}, deviations=["clipped 3% of the ratios"], prompts=SMALL),
        record("sft", 1, status="failed", algo_options={}, error="out of memory", prompts=SMALL),
        record("sft", 2, status="started", algo_options={}, prompts=SMALL),
    ]


def golden_records(which: str) -> list[RunRecord]:
    """Records whose ids do not move when a setting is added to RunSpec."""
    records = [record(prompts=SMALL)] if which == "run" else _several()
    return [dataclasses.replace(r, run_id=f"{r.spec.algo}-bfcl-{i:012x}") for i, r in enumerate(records)]


def _one(records: list[RunRecord], **options: Any) -> Block:
    blocks = compare(records, METRICS, **options).blocks
    assert len(blocks) == 1
    return blocks[0]


@pytest.mark.parametrize(("name", "render"), RENDERED.items())
@pytest.mark.parametrize("which", ["run", "several"])
def test_golden_bytes(name: str, render: Any, which: str) -> None:
    records = golden_records(which)
    text = render(compare(records, METRICS))
    assert text == (GOLDEN / f"{which}.{name}").read_text(encoding="utf-8")
    random.Random(0).shuffle(records)
    assert render(compare(records, METRICS)) == text


@pytest.mark.parametrize("width", [90, 100, 120, 160])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_terminal_table_fits(width: int, count: int) -> None:
    records = [record(f"method{i}", s, prompts=SMALL) for i in range(count) for s in range(2)]
    text = terminal_text(compare(records, METRICS), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for i in range(count):
        assert f"method{i}" in text


def test_a_narrow_terminal_folds_and_loses_no_digit() -> None:
    records = [record(prompts=SMALL)]
    text = terminal_text(compare(records, METRICS), 30)
    assert "…" not in text


def test_reference_once_and_first() -> None:
    block = _one(_several())
    assert [c.label for c in block.columns] == ["reference", "dpo", "sft", "shiq"]
    frame = frame_of(compare(_several(), METRICS).blocks)
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
    comparison = compare(_several(), METRICS)
    text = terminal_text(comparison)
    flat = " ".join(text.split())
    assert "1 diverged" in text and "1 failed" in text and "1 started" in text
    for r in _several():
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


def test_a_run_without_evaluations_has_a_table() -> None:
    nothing = dataclasses.replace(record(status="failed", error="boom"), evaluations=())
    assert "no evaluations yet" in terminal_text(compare([nothing], METRICS))
    assert "No evaluations yet." in markdown(compare([nothing], METRICS))
    assert csv(compare([nothing], METRICS)).count("\n") == 1


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
    assert "Deviation, sft (1 of 3 runs): clipped 3% of the ratios" in _one(_several()).captions


def test_a_missing_truncation_rate_is_said() -> None:
    made = record(prompts=SMALL)
    bare = [
        dataclasses.replace(e, metrics={k: v for k, v in e.metrics.items() if k not in ("truncated", "forced_end")})
        for e in made.evaluations
    ]
    assert "Cut by a limit: not recorded." in _one([dataclasses.replace(made, evaluations=bare)]).captions


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
    assert "Not the same everywhere: steps is 400 for dpo, 200 for shiq." in captions
    assert "Checkpoint: the last one (dpo step 400, shiq step 200)." in captions


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


def test_print_table_to_a_pipe_has_room_and_no_colour() -> None:
    out = io.StringIO()
    run_table(record(prompts=SMALL), METRICS, console=Console(file=out))
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
        *(
            record("dpo", s, status="failed", error=f"{long} {s}", prompts={"rl": 2}, deviations=[long * 4])
            for s in (0, 1)
        ),
    ]


@pytest.mark.parametrize("make", [lambda: [*_several(), *_nasty()], _wide], ids=["nasty", "wide"])
@pytest.mark.parametrize("by", ["task", "method", "setting"])
def test_latex_compiles_as_it_stands_and_fits_its_pages(
    by: By, make: Callable[[], list[RunRecord]], tmp_path: Path
) -> None:
    """With booktabs and graphicx alone."""
    pdflatex = needs.pdflatex("booktabs.sty", "graphicx.sty")
    (tmp_path / "table.tex").write_text(latex(compare(make(), METRICS), by), encoding="utf-8")
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
    text = latex(comparison, "setting")
    tables = text.split(r"\begin{table}")[1:]
    assert max(t.count(r"\\") for t in tables) <= ROWS + 8
    parts = [p for s in sections(comparison, "setting") for panel in s.panels for p in markup.parts(panel)]
    assert max(p.width for p in parts) <= SMALLEST and len(parts) == len(tables)
    cells = [sum(len(line.texts) for line in p.lines) for p in parts]
    assert sum(cells) == sum(len(x.texts) for s in sections(comparison, "setting") for p in s.panels for x in p.lines)


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


def test_by_method_and_by_setting_show_the_same_numbers() -> None:
    records = [*_several(), *(record("shiq", s, prompts=SMALL, algo_options={"beta": 0.3}) for s in range(6))]
    comparison = compare(records, METRICS)
    block = comparison.blocks[0]
    methods = {s.title: s for s in sections(comparison, "method")}
    assert list(methods) == ["dpo", "sft", "shiq beta=0.1", "shiq beta=0.3"]
    panel = methods["shiq beta=0.3"].panels[0]
    line = next(x for x in panel.lines if "rl, greedy: mean reward" in x.label)
    key = ("rl", "greedy", "shiq beta=0.3", "reward")
    assert line.texts[1].startswith(f"{block.cells[key].estimate.mean:.1f} ± ")
    assert line.texts[3] == f"{block.to_reference[key].adjusted:.3f}"
    costs = {line.label: line.texts for line in methods["dpo"].panels[1].lines}
    assert costs["bfcl"][:2] == ("6", "1"), "six seeds done, one diverged"
    setting = {s.title.split(" ")[0]: s for s in sections(comparison, "setting")}
    assert [line.label for line in setting["shiq"].panels[0].lines] == ["reference", "beta=0.1", "beta=0.3"]
    assert any("Not in the means: " in c for c in setting["sft"].captions)


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
    how = "best against the others (exact sign-flip over paired seeds; Holm over all pairs of methods)"
    assert any(how in c and said in c for c in block.captions)
    many = [_bare(r.spec.algo, s, s / 100 + (r.spec.algo == "shiq")) for r in records[::6] for s in range(21)]
    assert any("(sign-flip (100,000 random patterns) over paired seeds; Holm" in c for c in _one(many).captions)
    assert any(c.startswith("Bold") and "exact" not in c for c in _one(many).captions)


def test_differences_to_the_reference_are_tested_over_seeds_and_prompts() -> None:
    block = _one(_several())
    key = ("rl", "sampled", "shiq", "reward")
    # One evaluation of the reference for all seeds: its own luck is an error of every difference.
    crossed = crossed_t(_differences(_several()[:6], "sampled"))
    assert crossed.mean is not None and crossed.stderr is not None and crossed.freedom is not None
    p = 2 * stats.t(crossed.freedom).sf(abs(crossed.mean / crossed.stderr))
    assert block.to_reference[key].p == pytest.approx(p)
    assert any("difference to the reference (t over seeds and prompts; Holm over methods)" in c for c in block.captions)
    # Two methods have several seeds; sft has one, which no test can be made of.
    others = [block.to_reference[("rl", "sampled", m, "reward")] for m in ("dpo", "shiq")]
    assert [t.adjusted for t in others] == holm([t.p for t in others])
    assert block.to_reference[("rl", "sampled", "sft", "reward")].p is None
    least = detectable(block.differences[key].estimate)
    assert least is not None and f"mean reward {least:.2g} (rl, sampled)" in "\n".join(
        _one([r for r in _several() if r.spec.algo == "shiq"]).captions
    )


def test_a_lead_that_one_seed_contradicts_is_not_bold_at_six() -> None:
    """The t interval excludes 0, and the exact test of six seeds does not: p is 4 / 64 with one that is against it."""
    leads = [0.5, 0.5, 0.5, 0.5, 0.5, -0.02]
    assert (mean_ci_t(leads).low or 0) > 0 and (sign_flip_p(leads) or 0) > 0.05
    records = [_bare("dpo", s, 0.2) for s in range(6)] + [_bare("shiq", s, 0.2 + x) for s, x in enumerate(leads)]
    assert not _one(records).best


def test_print_table_to_a_file(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "table.tex"
    console = Console(file=io.StringIO())
    print_table([record(prompts=SMALL)], METRICS, format="latex", out=out, console=console)
    assert out.read_text(encoding="utf-8") == latex(compare([record(prompts=SMALL)], METRICS))
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="did you mean 'method'"):
        print_table([record(prompts=SMALL)], by="methd", out=out)


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
    said = next(c for c in block.captions if c.startswith("Not the same everywhere: samples is "))
    assert "2 for dpo, 4 for sft algo.samples=8, 4 for sft algo.samples=16, 4 for shiq" in said
    titles = {s.title for s in sections(compare(records, METRICS), "method")}
    assert titles == {"dpo", "sft algo.samples=8", "sft algo.samples=16", "shiq"}
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
        "Bold kept from who is ahead, but lost seeds (failed, diverged, unfinished or without a number): shiq in 1 row."
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
