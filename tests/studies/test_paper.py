"""Everything that can be printed of a folder: each file leads to its runs, and the same records give the same bytes."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.runs.execute import execute
from shiq_bench.studies.paper import INDEX, MANIFEST, paper
from shiq_bench.studies.schema import load
from shiq_bench.studies.study import expand
from tests.command import shiq_bench

STUDY = (
    "{title: Small, kind: curves, metric: regret, focus: ShiQ, task: bandit, methods: {ShiQ: {algo: shiq}, "
    "RWR: {algo: rwr}}, settings: {arms: 3, contexts: 2, off_policy: 0, steps: 5, seeds: 2}}"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the study's two runs, and a study's file."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "small.yaml").write_text(STUDY)
    (cell, _) = expand(load(folder / "small.yaml"), folder)
    execute(cell.resolved, resume=False, fresh=False, report=lambda *_: None)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_file_is_in_the_manifest_with_its_runs(results: Path, tmp_path: Path) -> None:
    made, problems = paper([results], tmp_path, [str(results / "small.yaml")])
    assert not problems
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (run_id,) = manifest["runs"]
    assert set(contents(tmp_path)) == {*manifest["files"], MANIFEST, INDEX} and len(made) == len(manifest["files"])
    for name, entry in manifest["files"].items():
        assert entry == {"sha256": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(), "runs": [run_id]}
    tables = {f"tables/bandit.{suffix}" for suffix in ("md", "html", "tex", "csv")}
    assert {*tables, "studies/small.pdf"} <= set(manifest["files"])
    index = (tmp_path / INDEX).read_text()
    study = results / "small.yaml"
    assert f"drawn by `shiq-bench study {study} --results {results}`" in index
    assert f"Written by `shiq-bench table --paper --results {results} --study {study}`" in index


def test_what_a_study_lacks_is_said_in_it(results: Path, tmp_path: Path) -> None:
    paper([results], tmp_path, [str(results / "small.yaml")])
    assert "Not there: RWR on bandit: it was not run." in (tmp_path / "studies" / "small.md").read_text()


@pytest.mark.proof
def test_the_same_records_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        paper([results], tmp_path / name, [str(results / "small.yaml")])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_how_long_a_run_took_changes_no_file(results: Path, tmp_path: Path) -> None:
    """On another machine the same run takes its own time, and is the same run."""
    (record,) = run_store.load_all(results)[0]
    run_store.save(replace(record, timings={"training": 1e4}, peak_memory_mb=1.0), tmp_path / "slow")
    shutil.copy(results / "small.yaml", tmp_path / "slow")
    paper([results], tmp_path / "a", [str(results / "small.yaml")])
    paper([tmp_path / "slow"], tmp_path / "b", [str(tmp_path / "slow" / "small.yaml")])
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {k: v for k, v in a.items() if k != INDEX} == {k: v for k, v in b.items() if k != INDEX}


def test_numbers_are_those_of_the_record(results: Path, tmp_path: Path) -> None:
    paper([results], tmp_path)
    (record,) = run_store.load_all(results)[0]
    rows = list(csv.DictReader((tmp_path / "tables" / "bandit.csv").open()))
    (shown,) = [r for r in rows if r["policy"] == "shiq" and r["metric"] == "regret" and r["kind"] == "value"]
    mean = record.evaluations[-1].metrics["regret"]["mean"]
    assert float(shown["mean"]) == pytest.approx(mean, rel=1e-9) and shown["run_ids"] == record.run_id


def test_a_study_of_mixed_code_is_refused_unless_told(results: Path, tmp_path: Path) -> None:
    (record,) = run_store.load_all(results)[0]
    run_store.save(replace(record, source_hash="other"), tmp_path / "r")
    (tmp_path / "small.yaml").write_text(STUDY)
    second = expand(load(tmp_path / "small.yaml"), tmp_path / "r")[1]
    execute(second.resolved, resume=False, fresh=False, report=lambda *_: None)
    with pytest.raises(UserError, match="different versions of the source"):
        paper([tmp_path / "r"], tmp_path / "out", [str(tmp_path / "small.yaml")])
    assert not (tmp_path / "out" / MANIFEST).exists()
    paper([tmp_path / "r"], tmp_path / "out", [str(tmp_path / "small.yaml")], allow_mixed=True)
    assert "MIXED SOURCES" in (tmp_path / "out" / "studies" / "small.md").read_text()


def test_a_run_that_failed_is_not_said_to_be_missing(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "r")
    second = expand(load(results / "small.yaml"), tmp_path / "r")[1].resolved.spec
    (record,) = run_store.load_all(results)[0]
    failed = replace(record, run_id=second.run_id, spec=second, status="failed", error="out of memory", evaluations=())
    run_store.save(failed, tmp_path / "r")
    paper([tmp_path / "r"], tmp_path, [str(results / "small.yaml")])
    assert "Not there: RWR on bandit: failed: out of memory." in (tmp_path / "studies" / "small.md").read_text()


def test_a_refusal_leaves_the_folder_as_it_was(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "r")
    paper([tmp_path / "r"], tmp_path / "out")
    before = contents(tmp_path / "out")
    (record,) = run_store.load_all(results)[0]
    spec = replace(record.spec, task="zzz")
    for source, seed in (("one", 0), ("two", 1)):
        other = replace(spec, seed=seed)
        run_store.save(replace(record, spec=other, run_id=other.run_id, source_hash=source), tmp_path / "r")
    with pytest.raises(UserError, match="zzz"):
        paper([tmp_path / "r"], tmp_path / "out")
    assert contents(tmp_path / "out") == before


@pytest.mark.proof
def test_what_no_record_backs_any_more_is_deleted(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "r")
    (record,) = run_store.load_all(results)[0]
    other = replace(record.spec, task="zzz")
    run_store.save(replace(record, spec=other, run_id=other.run_id), tmp_path / "r")
    out = tmp_path / "out"
    paper([tmp_path / "r"], out)
    assert (out / "tables" / "zzz.csv").exists()
    (out / "tables" / "mine.csv").write_text("not of the manifest")
    (out / "tables" / "zzz.tex").write_text("changed by hand")
    record_file = tmp_path / "r" / other.run_id / "record.json"
    record_file.write_text(record_file.read_text()[:99])
    paper([tmp_path / "r"], out)
    assert (out / "tables" / "zzz.csv").exists(), "a record that cannot be read may be mended"
    shutil.rmtree(tmp_path / "r" / other.run_id)
    paper([tmp_path / "r"], out)
    listed = json.loads((out / MANIFEST).read_text())["files"]
    assert set(contents(out)) == {*listed, MANIFEST, INDEX, "tables/mine.csv", "tables/zzz.tex"}


def test_a_manifest_cannot_have_other_files_deleted(results: Path, tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    listed = {name: {} for name in ("../keep", "keep", "tables/..", "/tmp/keep")}
    (out / "keep").write_text("")
    (out / MANIFEST).write_text(json.dumps({"kind": "paper", "files": listed}))
    paper([results], out)
    assert (tmp_path / "keep").exists() and (out / "keep").exists() and (out / "tables" / "bandit.md").exists()


def test_as_it_is_typed(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "r")
    (tmp_path / "r" / "cut").mkdir()
    (tmp_path / "r" / "cut" / "record.json").write_text('{"schema_version": 1, "run')
    words = ["table", "--results", str(tmp_path / "r")]
    done = shiq_bench(*words, "--paper", "--study", results / "small.yaml")
    assert done.code == 1 and "skipped" in done.err and "cut/record.json" in done.err
    assert (tmp_path / "r" / MANIFEST).exists() and "files in" in done.out
    assert "--study is for --paper" in shiq_bench(*words, "--study", "small.yaml").err
    assert "leave out --format" in shiq_bench(*words, "--paper", "--format", "md").err
    assert "leave out the run ids" in shiq_bench(*words, "--paper", "some-run").err
    assert "no study at nowhere.yaml" in shiq_bench(*words, "--paper", "--study", "nowhere.yaml").err
