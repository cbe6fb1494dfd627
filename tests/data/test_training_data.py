"""Training from a dataset: as if the run had drawn the data itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import load_file

from shiq_bench.data.dataset import read_manifest
from shiq_bench.data.schema import DATA, HASH, MANIFEST
from shiq_bench.runs.settings import resolve
from tests.command import shiq_bench
from tests.data.datasets import LEARNED, forge, refused, run


def test_a_run_ends_as_if_it_had_drawn_the_data_itself(tree: Path, tmp_path: Path) -> None:
    own = run(tmp_path / "own", samples=2, data_seed=5)
    given = run(tmp_path / "given", data=str(tree))
    assert given.run_id != own.run_id and given.spec.data_hash == read_manifest(tree)["sha256"][:HASH]
    assert (given.spec.samples, given.spec.gold, given.spec.data_seed) == (2, True, 5), "as the data were drawn"
    for name in ("training", "evaluations", "gaps", "consumed", "deviations"):
        assert getattr(given, name) == getattr(own, name), name
    one, two = (load_file(Path(r.spec.results) / r.run_id / "policy" / "model.safetensors") for r in (own, given))
    assert one.keys() == two.keys() and all((one[k] == two[k]).all() for k in one)
    described = dict(given.data)
    origin = described.pop("dataset")
    assert described == own.data
    assert origin["sha256"] == read_manifest(tree)["sha256"] and origin["samples"] == 2 and "git_commit" in origin


def test_where_the_folder_lies_does_not_matter_and_what_it_holds_does(tree: Path, copy: Path) -> None:
    here, there = (resolve("shiq", "tree", {**LEARNED, "data": str(f)}).spec.run_id for f in (tree, copy))
    assert here == there
    alike = {"samples": "2", "run.gold": "true", "data_seed": 5}
    assert resolve("shiq", "tree", {**LEARNED, "data": str(tree), **alike}).spec.run_id == here, "as it was drawn"
    rows = pq.read_table(tree / DATA)
    forge(copy, rows.slice(1))
    assert resolve("shiq", "tree", {**LEARNED, "data": str(copy)}).spec.run_id != here


def test_the_printed_settings_can_be_given_again(tree: Path) -> None:
    first = resolve("shiq", "tree", {**LEARNED, "data": str(tree)}).spec
    again = {"data": first.data, "data_hash": first.data_hash}
    assert resolve("shiq", "tree", {**LEARNED, **again}).spec == first
    plain = resolve("shiq", "tree", {**LEARNED, "data": "", "data_hash": ""}).spec
    assert plain == resolve("shiq", "tree", LEARNED).spec


def test_settings_that_the_data_were_not_drawn_with_are_refused(tree: Path, tmp_path: Path) -> None:
    for name, value, message in (
        ("samples", 9, "samples=9, and .*tree was drawn with samples=2: leave samples out, or --set samples=2"),
        ("run.samples", "0", "samples=0, and .* drawn with samples=2"),
        ("gold", "no", "gold=false, and .*tree was drawn with gold=true: leave gold out, or --set gold=true"),
    ):
        given: dict[str, Any] = {"data": str(tree), name: value}
        refused(tmp_path, message, **given)


def test_a_printed_spec_of_a_dataset_can_be_given_as_yaml(tree: Path, tmp_path: Path) -> None:
    words = ["run", "--algo", "shiq", "--task", "tree", "--data", str(tree), "--dry-run"]
    printed = shiq_bench(*words, *(f"--set={k}={v}" for k, v in LEARNED.items()))
    assert printed.code == 0 and "samples: 2" in printed.out
    (tmp_path / "run.yaml").write_text(printed.out)
    assert shiq_bench("run", "--config", tmp_path / "run.yaml", "--dry-run") == printed


def test_what_differs_from_the_data_is_told(tree: Path, tmp_path: Path) -> None:
    record = run(tmp_path, data=str(tree), reward_scale=2, steps=1)
    assert "the data were made with other options of the task: reward_scale=1.0" in record.deviations
    manifest = json.loads((tree / MANIFEST).read_text())
    manifest["weights_hash"] = "another"
    other = shutil.copytree(tree, tmp_path / "other")
    (other / MANIFEST).write_text(json.dumps(manifest))
    record = run(tmp_path / "results", data=str(other), steps=1)
    assert "the data were sampled from another policy than the reference" in record.deviations
