"""Studies: what a file may say, what is run and what is not run again, and one from end to end."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from shiq_bench.api.registry import algorithms
from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.runs.resolved import Resolved
from shiq_bench.studies import study as studies
from shiq_bench.studies.schema import Study, find, load, shipped
from shiq_bench.studies.study import (
    PlannedTrial,
    expand,
    look_up,
    overridden,
    print_studies,
    run_studies,
    study_jobs,
)
from shiq_bench.sweep.worker import Resources
from tests.command import shiq_bench

TINY: dict[str, Any] = {
    "title": "A tiny study",
    "kind": "curves",
    "metric": "regret",
    "focus": "ShiQ",
    "task": "bandit",
    "settings": {"arms": 4, "contexts": 2, "seeds": 2, "steps": 20, "draws": 8},
    "methods": {"ShiQ": {"algo": "shiq"}, "RWR": {"algo": "rwr"}},
}


#: What makes of it a study of language models.
LANGUAGE: dict[str, Any] = {
    "kind": "front",
    "metric": "reward",
    "task": "tree",
    "vary": {"beta": [0.05, 0.5]},
    "replicate": [0, 1],
    "methods": {"ShiQ": {"algo": "shiq"}, "DPO": {"algo": "dpo"}},
    "settings": {
        "model": "tiny", "engine": "hf", "steps": 3, "contexts": 3, "max_tokens": 3, "eval_samples": 2,
        "eval_splits": "heldout", "learning_rate": 3e-3,
    },
}  # fmt: skip


def written(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    data = {k: v for k, v in {**TINY, **changes}.items() if v is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return path


def go(path: Path | str, results: Path, given: dict[str, str] | None = None, **options: Any) -> tuple[int, str]:
    """Failures, and everything that was said; in this process unless told otherwise."""
    out = Console(file=io.StringIO(), width=200)
    chosen = {"executor": "inline", **options}
    failed = run_studies(str(path), given or {}, results, results / "studies", out, out, **chosen)
    return failed, out.file.getvalue()  # type: ignore[attr-defined]


def planned(path: Path, results: Path) -> str:
    """What is said of a study that is not run."""
    out = Console(file=io.StringIO(), width=200)
    print_studies(str(path), {}, results, out)
    return out.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn in tests of their own, and here where a test asks for ``drawn``."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(studies.figures, "draw", lambda sheet: {"png": b"", "pdf": b""})


@pytest.fixture
def drawn() -> None:
    """Draw for real."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ids of what is executed from here on."""
    import shiq_bench.runs.execute

    real, ids = shiq_bench.runs.execute.execute, []

    def execute(resolved: Resolved, **options: Any) -> Any:
        ids.append(resolved.spec.algo)
        return real(resolved, **options)

    monkeypatch.setattr(shiq_bench.runs.execute, "execute", execute)
    yield ids


def breaking(monkeypatch: pytest.MonkeyPatch, algo: str, error: BaseException) -> Callable[[], None]:
    """One algorithm's runs raise; returns what mends them."""
    import shiq_bench.runs.execute

    real = shiq_bench.runs.execute.execute

    def execute(resolved: Resolved, **options: Any) -> Any:
        if resolved.spec.algo == algo:
            raise error
        return real(resolved, **options)

    monkeypatch.setattr(shiq_bench.runs.execute, "execute", execute)
    return lambda: monkeypatch.setattr(shiq_bench.runs.execute, "execute", real)


# --- what is shipped ---


@pytest.mark.parametrize("name", shipped())
def test_every_cell_of_a_shipped_study_resolves(name: str, tmp_path: Path) -> None:
    study = load(shipped()[name])
    cells = expand(study, tmp_path)
    values, seeds = len(next(iter(study.vary.values()), [0])), len(study.replicate) or 1
    assert len(cells) == len(study.panels) * len(study.methods) * values * seeds
    ids = [c.resolved.spec.run_id for c in cells if not c.left_out]
    assert len(set(ids)) == len(ids), "two cells are the same run"
    assert study.asks, "what does it answer?"
    if study.kind in ("curves", "against"):
        assert study.focus, "who is compared?"
        assert all(c.resolved.spec.seeds >= 10 for c in cells)


@pytest.mark.parametrize("name", [n for n in shipped() if not n.startswith("ultrafeedback")])
def test_a_study_s_cells(name: str, tmp_path: Path) -> None:
    """A sweep of a study is its cells: none is lost, and each is the run that the study would do."""
    jobs, cells = study_jobs(name, {}, tmp_path), expand(load(shipped()[name]), tmp_path)
    assert [j.name for j in jobs] == [c.name for c in cells]
    for job, cell in zip(jobs, cells, strict=True):
        assert bool(job.problem) == bool(cell.left_out)
        if not job.problem:
            assert job.resolved().spec == cell.resolved.spec


def test_the_proof_holds_every_algorithm_to_every_task() -> None:
    study = load(shipped()["proof"])
    assert {m.algo for m in study.methods.values()} == set(algorithms.names())
    assert {p.task for p in study.panels.values()} == {"bandit", "tree", "gridworld"}
    cells = expand(study, Path("results"))
    assert all(c.resolved.spec.seeds == 10 for c in cells)
    enumerated = [c for c in cells if c.resolved.spec.task_options["enumerated"]]
    assert len(enumerated) == len(cells) / 2
    assert all(c.bound == 1e-6 for c in enumerated if "gridworld" not in c.panel)


def test_studies_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert [p.stem for p in find("proof")] == ["proof"]
    language = {"bfcl-reward", "ultrafeedback", "ultrafeedback-front"}
    assert {p.stem for p in find("all")} == set(shipped()) - language, "hours, where a table takes seconds"
    path = written(tmp_path)
    assert find(str(path)) == [path]
    with pytest.raises(UserError, match="no study is called 'prof': did you mean 'proof'"):
        find("prof")
    with pytest.raises(UserError, match="no study at"):
        find("nowhere.yaml")


def test_an_installed_copy_has_them() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "studies/*.yaml" in project["tool"]["setuptools"]["package-data"]["shiq_bench"]


# --- cells ---


def by_name(cells: list[PlannedTrial]) -> dict[str, PlannedTrial]:
    return {c.name: c for c in cells}


def test_cells_are_the_product_and_the_nearer_setting_wins(tmp_path: Path) -> None:
    path = written(
        tmp_path, kind="against", task=None, vary={"off_policy": [0, 1.5]},
        panels={"small": {"task": "bandit"}, "tall": {"task": "tree", "arms": None, "steps": 7}},
        settings={"seeds": 2, "steps": 5, "off_policy": 3},
        methods={"ShiQ": {"algo": "shiq", "run.steps": 9}, "RWR": {"algo": "rwr"}},
    )  # fmt: skip
    text = path.read_text().replace("arms: null, ", "").replace("    arms: null\n", "")
    path.write_text(text)
    cells = by_name(expand(load(path), tmp_path))
    assert list(cells) == [
        f"{m} on {p} at {x}" for p in ("small", "tall") for m in ("ShiQ", "RWR") for x in ("0", "1.5")
    ]
    steps = {name: c.resolved.spec.steps for name, c in cells.items() if c.x == 0}
    assert steps == {"ShiQ on small at 0": 9, "RWR on small at 0": 5, "ShiQ on tall at 0": 9, "RWR on tall at 0": 7}
    assert {c.resolved.spec.task_options["off_policy"] for c in cells.values()} == {0, 1.5}


def test_rules_leave_out_and_excuse(tmp_path: Path) -> None:
    path = written(
        tmp_path, kind="table", focus=None, task=None,
        panels={"a": {"task": "bandit", "bound": "1e-6"}, "b": {"task": "bandit", "draws": 9}},
        methods={"ShiQ": {"algo": "shiq"}, "CoPG": {"algo": "copg"}, "GRPO": {"algo": "grpo"}},
        adjust=[{"needs": "OnPolicy", "settings": {"steps": 77}}, {"panels": ["b"], "settings": {"run.steps": 88}}],
        leave_out=[{"needs": "Pairs", "panels": ["b"], "reason": "too many."}],
        no_bound=[{"methods": ["GRPO"], "reason": "sampled"}],
    )  # fmt: skip
    cells = by_name(expand(load(path), tmp_path))
    assert {n for n, c in cells.items() if c.left_out} == {"CoPG on b"} and cells["CoPG on b"].left_out == "too many"
    assert [c.resolved.spec.steps for c in cells.values()] == [20, 20, 77, 88, 88, 88]
    assert {n: c.bound for n, c in cells.items() if c.bound} == {"ShiQ on a": 1e-6, "CoPG on a": 1e-6}


def test_every_algorithm_adds_those_that_no_label_names(tmp_path: Path) -> None:
    study = load(written(tmp_path, every_algorithm=True))
    assert list(study.methods)[:2] == ["ShiQ", "RWR"]
    assert set(study.methods) == {"ShiQ", "RWR", *algorithms.names()} - {"shiq", "rwr"}


BAD = {
    "an unknown key": ({"metrics": "regret"}, "a study has no key 'metrics': did you mean 'metric'"),
    "a missing key": ({"title": None}, "a study needs the key 'title'"),
    "another kind": ({"kind": "bars"}, "kind: expected 'curves', 'against', 'table'"),
    "no panel": ({"task": None}, "needs either the key 'task' or the key 'panels'"),
    "methods of text": ({"methods": ["ShiQ"]}, "methods: expected a mapping"),
    "no algo": ({"methods": {"ShiQ": {}}}, "methods.ShiQ needs the key 'algo'"),
    "a focus that is none": ({"focus": "Shiq"}, "focus: there is no 'Shiq': did you mean 'ShiQ'"),
    "nothing varies": ({"kind": "against"}, "vary, a mapping such as"),
    "something varies": ({"vary": {"off_policy": [1]}}, "vary, a mapping such as"),
    "values of text": (
        {"kind": "against", "vary": {"off_policy": ["far"]}},
        "vary.off_policy.0: expected a number, and this is 'far'",
    ),
    "a view of nobody": ({"views": {"all": {"methods": ["DPO"]}}}, "views.all.methods: there is no 'DPO'"),
    "a need that is none": (
        {"leave_out": [{"needs": "Pair", "reason": "x"}]},
        "leave_out.0.needs: there is no 'Pair': did you mean 'Pairs'",
    ),
    "a rule for all": ({"leave_out": [{"reason": "x"}]}, "leave_out.0: name panels, methods or needs"),
    "a rule without why": ({"leave_out": [{"needs": "Pairs"}]}, "leave_out.0 needs the key 'reason'"),
    "an adjustment of nothing": ({"adjust": [{"needs": "Pairs"}]}, "adjust.0 needs the key 'settings'"),
    "a threshold of 0": ({"reach": {"regret": 0}}, "reach.regret: expected a number above 0, and this is 0"),
    "half a contrast": ({"contrast": [["bandit"]]}, "contrast.0: expected pairs of panels"),
    "an unknown algorithm": ({"methods": {"ShiQ": {"algo": "shik"}}}, "ShiQ on bandit: no algorithm is called 'shik'"),
    "an unknown setting": ({"settings": {"step": 3}}, "ShiQ on bandit: shiq on bandit has no setting 'step'"),
    "an unknown metric": ({"metric": "regrets"}, "bandit has no metric 'regrets': did you mean 'regret'"),
    "a metric of no direction": ({"metric": "kl_reference"}, "kl_reference has no better and no worse"),
    "models without seeds": (
        {"kind": "table", "task": "tree", "metric": "reward", "settings": {"model": "tiny"}},
        "ShiQ on tree: model tiny has one run a seed: add the seeds, such as 'replicate: [0, 1, 2]'",
    ),
    "seeds of tables": ({"kind": "table", "replicate": [0, 1]}, "set seeds, and leave out replicate"),
    "no seed": ({"kind": "table", "replicate": []}, "replicate: expected values that differ, and at least one"),
    "one seed twice": ({"kind": "table", "replicate": [1, 1]}, "replicate: expected values that differ"),
    "a bound for models": (
        {"kind": "table", "replicate": [0], "task": None, "panels": {"a": {"task": "tree", "bound": 1}}},
        "bound is for tables: leave it out",
    ),
    "curves of models": ({"replicate": [0]}, "kind: curves shows tables alone; with replicate expected table"),
    "a split of tables": ({"split": "rl"}, "split is for language models: add replicate"),
    "an axis of no x": ({"x_scale": "log"}, "x_scale is for kind: against"),
    "views of a table of models": ({"kind": "table", "replicate": [0], "views": {}}, "views is for pictures"),
    "an unknown key of a view": (
        {"views": {"all": {"method": ["ShiQ"]}}},
        "views.all has no key 'method': did you mean",
    ),
    "a slip for a key that is needed": ({"title": None, "titel": "x"}, "no key 'titel': did you mean 'title'"),
    "a whole view": (
        {"task": None, "panels": {"a": {"task": "bandit"}, "b": {"task": "bandit", "arms": 3}}, "views": {"both": {}}},
        "views.both: a pair of axes shows one panel",
    ),
    "a list of one": ({"notes": "all of it"}, "notes: expected a list, and this is 'all of it'"),
    "no methods": ({"methods": {}}, "methods: expected at least one"),
    "nobody to compare with": ({"kind": "across", "focus": None}, "kind: across needs the key 'focus'"),
    "views across tasks": ({"kind": "across", "views": {}}, "views is for other kinds"),
    "a front of one value": ({"kind": "front"}, "vary, a mapping such as"),
    "a split that is not evaluated": ({**LANGUAGE, "split": "start"}, "split is start, and heldout is evaluated"),
    "sampled, without samples": (
        {**LANGUAGE, "settings": {"model": "tiny", "eval_samples": 0}},
        "mode is sampled, and eval_samples is 0",
    ),
    "KL of greedy answers": ({**LANGUAGE, "mode": "greedy"}, "kl is measured on sampled answers alone"),
    "regret of models": ({**LANGUAGE, "metric": "regret"}, "tree has no metric 'regret'"),
}


@pytest.mark.parametrize(("changes", "line"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        go(written(tmp_path, **changes), tmp_path)
    assert line in str(caught.value) and "\n" not in str(caught.value) and "tiny" in str(caught.value)


def test_no_yaml_and_no_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("title: [")
    (tmp_path / "b.yaml").write_text("- 1")
    (tmp_path / "c.yaml").write_text("name: another")
    with pytest.raises(UserError, match=r"a.yaml: .*no YAML"):
        load(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"b.yaml: a study: expected a mapping"):
        load(tmp_path / "b.yaml")
    with pytest.raises(UserError, match=r"c.yaml: a study has no key 'name': it is called as its file is"):
        load(tmp_path / "c.yaml")


def test_a_label_may_be_a_number(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("title: t\ntask: bandit\nkind: curves\nmetric: regret\nmethods: {1: {algo: shiq}, 2: {algo: dpo}}")
    assert [*load(path).methods] == ["1", "2"]
    path.write_text(path.read_text() + "\n3: x")
    with pytest.raises(UserError, match="a study has no key '3'"):
        load(path)


def test_the_list_of_studies_imports_no_method() -> None:
    code = (
        "import sys; from rich.console import Console; from shiq_bench.studies.study import print_list\n"
        "print_list(Console()); print([m for m in sys.modules if m.startswith('shiq_bench.algorithms.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ablation" in done.stdout and done.stdout.endswith("[]\n")


# --- running ---


def test_finished_cells_never_run_again(tmp_path: Path, ran: list[str], drawn: None) -> None:
    path = written(tmp_path)
    failed, text = go(path, tmp_path / "results")
    assert failed == 0 and ran == ["shiq", "rwr"]
    assert "[1/2] ShiQ on bandit: done" in text and "[2/2] RWR on bandit: done" in text
    files = {p.name: p.read_bytes() for p in (tmp_path / "results" / "studies").iterdir()}
    assert set(files) == {"tiny.png", "tiny.pdf", "tiny.md", "tiny.csv", "theory.md"}
    assert go(path, tmp_path / "results")[0] == 0
    assert ran == ["shiq", "rwr"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "results" / "studies").iterdir()} == files
    # A second study runs only what it does not share with the first.
    more = written(tmp_path, "more", methods={**TINY["methods"], "SFT": {"algo": "sft"}})
    go(more, tmp_path / "results")
    assert ran == ["shiq", "rwr", "sft"]


def test_a_failing_cell_is_a_line_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, results = written(tmp_path), tmp_path / "results"
    mend = breaking(monkeypatch, "shiq", UserError("it has\nexploded"))
    failed, text = go(path, results)
    assert failed == 1 and "failed: ShiQ on bandit: it has exploded" in text
    page = (results / "studies" / "tiny.md").read_text()
    assert "Not there: ShiQ on bandit: it has exploded." in page and "nothing is compared" in page
    mend()
    failed, text = go(path, results)
    assert failed == 0 and "[1/1] ShiQ on bandit: done" in text
    assert "Not there" not in (results / "studies" / "tiny.md").read_text()


def test_an_interruption_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[str]
) -> None:
    path, results = written(tmp_path), tmp_path / "results"
    mend = breaking(monkeypatch, "rwr", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        go(path, results)
    mend()
    go(path, results)
    assert ran == ["shiq", "rwr"]


def restamp(results: Path, algo: str, source: str) -> None:
    (path,) = results.glob(f"{algo}-*/record.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "source_hash": source}))


def test_runs_of_other_code_are_not_mixed_unasked(tmp_path: Path, ran: list[str]) -> None:
    path, results = written(tmp_path), tmp_path / "results"
    go(path, results)
    restamp(results, "rwr", "0ther")
    with pytest.raises(UserError, match="tiny: 1 of its finished runs were made by other code: add --fresh"):
        go(path, results)
    _, text = go(path, results, allow_mixed=True)
    assert "MIXED SOURCES" in text and len(ran) == 2
    restamp(results, "shiq", "0ther")  # all by the same code, whichever: no mixture
    go(path, results)
    assert len(ran) == 2
    go(path, results, fresh=True)
    assert ran[2:] == ["shiq", "rwr"]
    go(path, results)
    assert len(ran) == 4


def test_several_studies_are_one_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> None:
    """What they share is run once, and each is drawn."""
    one = written(tmp_path, "one")
    two = written(tmp_path, "two", methods={"the same": {"algo": "shiq"}, "SFT": {"algo": "sft"}}, focus=None)
    monkeypatch.setattr(studies, "find", lambda name: [one, two])
    failed, text = go("all", tmp_path / "results")
    assert failed == 0 and ran == ["shiq", "rwr", "sft"]
    assert "1 more are equal to one of these 3" in text and "[3/3] two: SFT on bandit: done" in text
    for name in ("one", "two"):
        assert "Not there" not in (tmp_path / "results" / "studies" / f"{name}.md").read_text()


def test_what_does_not_fit_is_a_line_and_counts_as_failed(tmp_path: Path, ran: list[str]) -> None:
    """Alone, and beside what fits."""
    bad = {"ILQL": {"algo": "ilql", "collect": "fresh", "samples": 4}}
    for methods, executed in ((bad, []), ({**TINY["methods"], **bad}, ["shiq", "rwr"])):
        failed, text = go(written(tmp_path, methods=methods, focus=None), tmp_path / "results")
        assert failed == 1 and ran == executed
        assert "Not there: ILQL on bandit: ilql needs a model of stored data" in " ".join(text.split())


@pytest.mark.parametrize(
    ("changes", "options", "chosen"),
    [
        ({}, {}, ("inline", 0)),
        ({}, {"workers": 2}, ("local", 2)),
        ({}, {"executor": "ray"}, ("ray", 0)),
        ({"every_algorithm": True}, {}, ("local", 0)),
        ({**LANGUAGE, "replicate": [0]}, {}, ("local", 0)),
    ],
)
def test_few_runs_of_tables_start_no_other_process(
    changes: dict[str, Any], options: dict[str, Any], chosen: tuple[str, int],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = []

    def make(name: str, resources: Resources, folder: Path) -> None:
        asked.append((name, resources.workers))
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "make_executor", make)
    with pytest.raises(KeyboardInterrupt):
        go(written(tmp_path, **changes), tmp_path / "results", **{"executor": "", **options})
    assert asked == [chosen]


def test_what_other_code_left_unfinished_is_in_nobodys_way(tmp_path: Path, ran: list[str]) -> None:
    path, results = written(tmp_path), tmp_path / "results"
    go(path, results)
    restamp(results, "rwr", "0ther")
    (file,) = results.glob("rwr-*/record.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "started"}))
    assert go(path, results)[0] == 0
    assert ran == ["shiq", "rwr", "rwr"]


def test_a_dry_run_runs_nothing(tmp_path: Path, ran: list[str]) -> None:
    path, results = written(tmp_path), tmp_path / "results"
    text = planned(path, results)
    assert "2 runs: 2 missing" in text and "ShiQ on bandit  (missing)" in text
    assert not ran and not results.exists()


def test_a_record_holds_what_a_study_reads(tmp_path: Path) -> None:
    """Speed and fixed points, from real records: the shared fixed point of ablations, and who was first."""
    path = written(
        tmp_path, metric="kl_optimum", reach={"kl_optimum": 0.01},
        settings={**TINY["settings"], "enumerated": True, "steps": 300, "kl_strength": 0.5},
        methods={"ShiQ": {"algo": "shiq"}, "unshifted": {"algo": "shiq", "shift": False}},
    )  # fmt: skip
    _, text = go(path, tmp_path / "results")
    assert "updates until KL(pi* || pi) falls to 0.01" in text and "2 of 2" in text
    cells = look_up(expand(load(path), tmp_path / "results"))
    assert [c.state for c in cells] == ["done", "done"]
    assert all(c.record is not None and not c.record.training and c.record.curve for c in cells)


# --- language models ---


@pytest.mark.proof
def test_a_front_of_language_models_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[str]
) -> None:
    """Eight runs, one of them lost at first: told, counted, and made up for; nothing is run twice."""
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / "home"))
    path, results = written(tmp_path, **LANGUAGE), tmp_path / "results"
    text = planned(path, results)
    assert "8 runs: 8 missing" in text and "DPO on tree at 0.05, seed 1  (missing, at most" in text
    mend = breaking(monkeypatch, "dpo", UserError("it has exploded"))
    failed, text = go(path, results)
    assert failed == 4 and "Not there: 4 of 4 runs of DPO on tree, the first of them because: it has exploded." in text
    mend()
    assert go(path, results)[0] == 0
    assert ran == ["shiq"] * 4 + ["dpo"] * 4
    files = {p.name: p.read_bytes() for p in (results / "studies").iterdir()}
    assert set(files) == {"tiny.png", "tiny.pdf", "tiny.md", "tiny.csv"}, "the index is of tables"
    rows = list(csv.DictReader(io.StringIO(files["tiny.csv"].decode())))
    assert [(r["method"], r["metric"], r["x"], r["n"]) for r in rows] == [
        (m, metric, x, "2") for m in ("ShiQ", "DPO") for metric in ("reward", "kl") for x in ("0.05", "0.5")
    ]
    # Each number is the mean of what the records of its two runs say of sampled answers on the held-out split.
    for row in rows:
        found = [run_store.load(results / run).evaluations for run in row["run_id"].split()]
        (a,), (b,) = ([e for e in r if (e.policy, e.split, e.mode) == ("trained", "heldout", "sampled")] for r in found)
        seeds = [e.metrics[row["metric"]]["mean"] for e in (a, b)]
        assert None not in seeds and float(row["mean"]) == pytest.approx(sum(filter(None, seeds)) / 2)
    page = files["tiny.md"].decode()
    assert "n = 2 seeds" in page and "too few to call a winner" in page and "| (reference) |  | 0 |" in page
    assert go(path, results)[0] == 0
    # A table of the same settings needs no run of its own.
    settings = {**LANGUAGE["settings"], "beta": 0.5}
    table = written(tmp_path, "table", **{**LANGUAGE, "kind": "table", "vary": None, "settings": settings})
    failed, text = go(table, results, given={"steps": "3"})
    assert failed == 0 and len(ran) == 8
    assert "mean reward at the end" in text and "Set by hand: steps=3." in text
    assert {p.name: p.read_bytes() for p in (results / "studies").iterdir() if p.stem == "tiny"} == files


def test_what_is_set_by_hand_wins_over_the_file_alone(tmp_path: Path) -> None:
    methods = {"ShiQ": {"algo": "shiq"}, "slow": {"algo": "shiq", "steps": 9}}
    study = load(written(tmp_path, **{**LANGUAGE, "methods": methods}))
    cells = expand(overridden(study, {"run.steps": "5", "model": "some/folder"}), tmp_path)
    assert {(c.method, c.resolved.spec.steps) for c in cells} == {("ShiQ", 5), ("slow", 9)}
    assert {c.resolved.spec.model for c in cells} == {"some/folder"}
    assert [(c.x, c.seed) for c in cells[:4]] == [(0.05, 0), (0.05, 1), (0.5, 0), (0.5, 1)]
    assert all((c.resolved.spec.seed, c.resolved.spec.algo_options["beta"]) == (c.seed, c.x) for c in cells)
    with pytest.raises(UserError, match=r"--set reward: study bfcl-reward gives it to every panel"):
        overridden(load(find("bfcl-reward")[0]), {"reward": "final"})
    with pytest.raises(UserError, match=r"--set algorithm.beta: study tiny varies it"):
        overridden(study, {"algorithm.beta": "1"})
    with pytest.raises(UserError, match="--set seed: study tiny says which by replicate"):
        overridden(study, {"seed": "1"})
    with pytest.raises(UserError, match="has no setting 'stepz'"):
        expand(overridden(study, {"stepz": "1"}), tmp_path)


# --- the command ---


def test_the_command_runs_draws_and_answers(tmp_path: Path, drawn: None) -> None:
    path = written(tmp_path)
    done = shiq_bench("study", path, "--results", tmp_path / "results", "--out", tmp_path / "drawn")
    assert done.code == 0, done.err
    assert "A tiny study" in done.out and "[2/2]" in done.err
    assert (tmp_path / "drawn" / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "drawn" / "tiny.pdf").read_bytes().startswith(b"%PDF")


def test_workers_know_the_plugins_of_the_command(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from shiq_bench import algorithm\nfrom shiq_bench.algorithms.sft import SFT\n\n\n"
        "@algorithm('mine')\nclass Mine(SFT):\n    pass\n"
    )
    path = written(tmp_path, methods={"mine": {"algo": "mine"}}, focus=None)
    done = shiq_bench("study", path, "--plugin", plugin, "--workers", "1", "--results", tmp_path / "results")
    assert done.code == 0 and "[1/1] mine on bandit: done" in done.err, done.err


def test_the_command_suggests_and_lists() -> None:
    wrong = shiq_bench("study", "prof")
    assert wrong.code == 2 and "did you mean 'proof'" in wrong.err
    assert len(wrong.err.strip().splitlines()) == 1
    listing = shiq_bench("study")
    assert listing.code == 0
    lines = {line.split()[0]: line for line in listing.out.splitlines()}
    assert list(lines) == list(shipped())
    apart = {name for name, line in lines.items() if line.endswith("(language models: not part of all)")}
    assert apart == set(shipped()) - {p.stem for p in find("all")}


def test_the_command_sets_what_a_file_says(tmp_path: Path) -> None:
    """Text with an equals sign in it included; a dry run says which runs they would be."""
    path = written(tmp_path, **LANGUAGE)
    done = shiq_bench("study", path, "--dry-run", "--model", "a=b", "--set", "steps=4", "--results", tmp_path / "none")
    assert done.code == 0, done.err
    asked = expand(overridden(load(path), {"model": "a=b", "steps": 4}), tmp_path)
    ids = [c.resolved.spec.run_id for c in asked]
    assert [line.split()[0] for line in done.out.splitlines()[1 : 1 + len(ids)]] == ids
    assert not set(ids) & {c.resolved.spec.run_id for c in expand(load(path), tmp_path)}


def test_a_study_is_plain_data() -> None:
    assert isinstance(load(next(iter(shipped().values()))), Study)
