"""Studies: what a file may say, what is run and what is not run again, and one from end to end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from shiq_bench import study as studies
from shiq_bench.api import algorithms
from shiq_bench.config import Resolved
from shiq_bench.records import UserError
from shiq_bench.study import Cell, Study, expand, find, load, look_up, main, shipped

TINY: dict[str, Any] = {
    "title": "A tiny study",
    "kind": "curves",
    "metric": "regret",
    "focus": "ShiQ",
    "task": "bandit",
    "settings": {"arms": 4, "contexts": 2, "seeds": 2, "steps": 20, "draws": 8},
    "methods": {"ShiQ": {"algo": "shiq"}, "RWR": {"algo": "rwr"}},
}


def written(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    data = {k: v for k, v in {**TINY, **changes}.items() if v is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return path


def go(path: Path, results: Path, **options: bool) -> tuple[int, str]:
    """Failures, and everything that was said."""
    out = Console(file=io.StringIO(), width=200)
    failed = main(str(path), results, results / "studies", out, out, **options)
    return failed, out.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn in tests of their own, and here where a test asks for ``drawn``."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(studies.pictures, "draw", lambda sheet, said: {"png": b"", "pdf": b""})


@pytest.fixture
def drawn() -> None:
    """Draw for real."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ids of what is executed from here on."""
    import shiq_bench.run

    real, ids = shiq_bench.run.execute, []

    def execute(resolved: Resolved, **options: Any) -> Any:
        ids.append(resolved.spec.algo)
        return real(resolved, **options)

    monkeypatch.setattr(shiq_bench.run, "execute", execute)
    yield ids


def breaking(monkeypatch: pytest.MonkeyPatch, algo: str, error: BaseException) -> Callable[[], None]:
    """One algorithm's runs raise; returns what mends them."""
    import shiq_bench.run

    real = shiq_bench.run.execute

    def execute(resolved: Resolved, **options: Any) -> Any:
        if resolved.spec.algo == algo:
            raise error
        return real(resolved, **options)

    monkeypatch.setattr(shiq_bench.run, "execute", execute)
    return lambda: monkeypatch.setattr(shiq_bench.run, "execute", real)


# --- what is shipped ---


@pytest.mark.parametrize("name", shipped())
def test_every_cell_of_a_shipped_study_resolves(name: str, tmp_path: Path) -> None:
    study = load(shipped()[name])
    cells = expand(study, tmp_path)
    assert len(cells) == len(study.panels) * len(study.methods) * (len(study.vary[1]) if study.vary else 1)
    ids = [c.resolved.spec.run_id for c in cells if not c.left_out]
    assert len(set(ids)) == len(ids), "two cells are the same run"
    assert study.asks, "what does it answer?"
    if study.kind != "table":
        assert study.focus, "who is compared?"
        assert all(c.resolved.spec.seeds >= 10 for c in cells)


def test_the_proof_holds_every_algorithm_to_every_task() -> None:
    study = load(shipped()["proof"])
    assert {m["algo"] for m in study.methods.values()} == set(algorithms.names())
    assert {p["task"] for p in study.panels.values()} == {"bandit", "tree", "gridworld"}
    cells = expand(study, Path("results"))
    assert all(c.resolved.spec.seeds == 10 for c in cells)
    enumerated = [c for c in cells if c.resolved.spec.task_options["enumerated"]]
    assert len(enumerated) == len(cells) / 2
    assert all(c.bound == 1e-6 for c in enumerated if "gridworld" not in c.panel)


def test_studies_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert [p.stem for p in find("proof")] == ["proof"]
    assert {p.stem for p in find("all")} == set(shipped())
    path = written(tmp_path)
    assert find(str(path)) == [path]
    with pytest.raises(UserError, match="no study is called 'prof': did you mean 'proof'"):
        find("prof")
    with pytest.raises(UserError, match="no study at"):
        find("nowhere.yaml")


def test_an_installed_copy_has_them() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["shiq_bench"] == ["studies/*.yaml"]


# --- cells ---


def by_name(cells: list[Cell]) -> dict[str, Cell]:
    return {c.shown.name: c for c in cells}


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
    "another kind": ({"kind": "bars"}, "kind=bars: expected one of curves, against, table"),
    "no panel": ({"task": None}, "needs either the key 'task' or the key 'panels'"),
    "methods of text": ({"methods": ["ShiQ"]}, "methods: expected a mapping"),
    "no algo": ({"methods": {"ShiQ": {}}}, "algo of ShiQ: expected text"),
    "a focus that is none": ({"focus": "Shiq"}, "focus is 'Shiq', which is no method: did you mean 'ShiQ'"),
    "nothing varies": ({"kind": "against"}, "vary, a mapping such as"),
    "something varies": ({"vary": {"off_policy": [1]}}, "vary, a mapping such as"),
    "values of text": ({"kind": "against", "vary": {"off_policy": ["far"]}}, "vary.off_policy=far: expected a number"),
    "a view of nobody": ({"views": {"all": {"methods": ["DPO"]}}}, "methods of view all: there is no 'DPO'"),
    "a need that is none": (
        {"leave_out": [{"needs": "Pair", "reason": "x"}]},
        "no need is called 'Pair': did you mean",
    ),
    "a rule for all": ({"leave_out": [{"reason": "x"}]}, "name panels, methods or needs"),
    "a rule without why": ({"leave_out": [{"needs": "Pairs"}]}, "leave_out needs the key 'reason'"),
    "an adjustment of nothing": ({"adjust": [{"needs": "Pairs"}]}, "adjust needs the key 'settings'"),
    "a threshold of 0": ({"reach": {"regret": 0}}, "reach.regret is 0; expected a number above 0"),
    "half a contrast": ({"contrast": [["bandit"]]}, "contrast: expected pairs of panels"),
    "an unknown algorithm": ({"methods": {"ShiQ": {"algo": "shik"}}}, "ShiQ on bandit: no algorithm is called 'shik'"),
    "an unknown setting": ({"settings": {"step": 3}}, "ShiQ on bandit: shiq on bandit has no setting 'step'"),
    "an unknown metric": ({"metric": "regrets"}, "bandit has no metric 'regrets': did you mean 'regret'"),
    "a metric of no direction": ({"metric": "kl_reference"}, "kl_reference has no better and no worse"),
    "no table": ({"task": "tree", "settings": {"model": "tiny"}}, "studies run on tables"),
}


@pytest.mark.parametrize(("changes", "line"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        go(written(tmp_path, **changes), tmp_path)
    assert line in str(caught.value) and "\n" not in str(caught.value) and "tiny" in str(caught.value)


def test_no_yaml_and_no_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("title: [")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(UserError, match=r"a.yaml: .*no YAML"):
        load(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"b.yaml: a study: expected a mapping"):
        load(tmp_path / "b.yaml")


# --- running ---


def test_finished_cells_never_run_again(tmp_path: Path, ran: list[str], drawn: None) -> None:
    path = written(tmp_path)
    failed, text = go(path, tmp_path / "results")
    assert failed == 0 and ran == ["shiq", "rwr"]
    assert "tiny [1/2] ShiQ on bandit" in text and "tiny [2/2] RWR on bandit" in text
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
    assert failed == 1 and "tiny: ShiQ on bandit: failed: it has exploded" in text
    page = (results / "studies" / "tiny.md").read_text()
    assert "Not there: ShiQ on bandit: it has exploded." in page and "nothing is compared" in page
    mend()
    failed, text = go(path, results)
    assert failed == 0 and "[1/1] ShiQ on bandit" in text
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
    _, text = go(path, results, dry_run=True)
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


# --- the command ---


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "shiq_bench.cli", "study", *arguments],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip


def test_the_command_runs_draws_and_answers(tmp_path: Path) -> None:
    path = written(tmp_path)
    done = command(str(path), "--results", str(tmp_path / "results"), "--out", str(tmp_path / "drawn"))
    assert done.returncode == 0, done.stderr
    assert "A tiny study" in done.stdout and "tiny [2/2]" in done.stderr
    assert (tmp_path / "drawn" / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "drawn" / "tiny.pdf").read_bytes().startswith(b"%PDF")


def test_the_command_suggests_and_lists() -> None:
    wrong = command("prof")
    assert wrong.returncode == 2 and "did you mean 'proof'" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
    listing = command()
    assert listing.returncode == 0
    assert [line.split()[0] for line in listing.stdout.splitlines()] == list(shipped())


def test_a_study_is_plain_data() -> None:
    assert isinstance(load(next(iter(shipped().values()))), Study)
    assert studies.about(40) == "40 s" and studies.about(200) == "3 min"
