"""Offline data as a folder: written whole, read back to the bit, described, and made again by its own command."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shiq_bench.data import schema
from shiq_bench.data.dataset import read_dataset, read_manifest, write_dataset
from shiq_bench.data.schema import CARD, DATA, MANIFEST
from shiq_bench.tasks.tree import Tree
from tests.command import shiq_bench
from tests.data.datasets import BYTES, MADE, build, said


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    rewards = {6: 0.1 + 0.2, 7: -1e-300, 8: -0.0, 9: 1 / 3}
    one = said(("hello ", False), ("wörld", True), rewards=rewards, sampler_logp=(0.0,) * 6 + (-1 / 7,) * 6, weight=0.1)
    two = replace(one, prompt_id="ü|\n", sampler_logp=None, truncated=True, source="gold")
    write_dataset(tmp_path / "made", [one, two, one], BYTES, MADE)

    class Made(Tree):
        def prompts(self, split: str) -> list[str]:
            return ["p", "ü|\n"]

    back = read_dataset(tmp_path / "made", Made(), BYTES, 4096)
    assert back == [one, two, one]
    assert [v.hex() for v in back[0].rewards] == [v.hex() for v in one.rewards], "to the bit, signs of zero included"
    rows = pq.read_table(tmp_path / "made" / DATA).to_pylist()
    assert rows[0]["text"] == "hello wörld" and rows[0]["total_reward"] == one.total_reward


def test_the_same_data_give_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    build(tmp_path / "tree")
    files = {p.relative_to(tree) for p in tree.rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path / "tree") for p in (tmp_path / "tree").rglob("*") if p.is_file()}
    assert {Path(DATA), Path(MANIFEST), Path(CARD), Path("tokenizer/tokenizer.json")} <= files
    for file in files:
        assert (tree / file).read_bytes() == (tmp_path / "tree" / file).read_bytes(), file
    assert build(tmp_path / "other", data_seed=6)["sha256"] != read_manifest(tree)["sha256"]


def test_manifest_and_card_count_what_is_there(tree: Path) -> None:
    rows = pq.read_table(tree / DATA).to_pylist()
    manifest, card = read_manifest(tree), (tree / CARD).read_text()
    by_source = Counter(r["source"] for r in rows)
    assert by_source == {"enumerated": 192, "reference": 6} == manifest["counts"]["by_source"]
    assert manifest["counts"]["action_tokens"] == sum(sum(r["action_mask"]) for r in rows)
    mean = sum(r["total_reward"] for r in rows if r["source"] == "reference") / 6
    assert manifest["counts"]["mean_return"]["reference"] == pytest.approx(mean)
    assert f"| reference | 6 | {mean:.4g} |" in card and "| enumerated | 192 |" in card
    histogram = card.split("## Returns")[1].split("## ")[0]
    bins = re.findall(r"^\| ([\d.]+) to ([\d.]+) \| (\d+) \| (\d+) \|$", histogram, re.M)
    assert len(bins) == 10
    for low, high, *counts in bins:
        for source, count in zip(("enumerated", "reference"), counts, strict=True):
            # Labels are rounded: no return of this seed lies so near an edge that it matters.
            inside = sum(r["source"] == source and float(low) <= r["total_reward"] <= float(high) for r in rows)
            assert abs(inside - int(count)) <= 1
    assert [sum(int(b[i]) for b in bins) for i in (2, 3)] == [192, 6]
    for name in schema.COLUMNS:
        assert f"| `{name}` |" in card


def test_few_returns_are_counted_one_by_one() -> None:
    found = schema.histogram([("a", 1.0), ("b", 0.0), ("a", 0.0), ("a", 1.0)])
    assert found == [("0", {"a": 1, "b": 1}), ("1", {"a": 2, "b": 0})]


def test_the_command_of_the_card_makes_it_again(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = shlex.split(read_manifest(tree)["command"])
    assert read_manifest(tree)["command"] in (tree / CARD).read_text()
    monkeypatch.chdir(tmp_path)
    done = shiq_bench(*command[1:])
    assert done.code == 0, done.err
    assert (tmp_path / "tree" / DATA).read_bytes() == (tree / DATA).read_bytes()
    assert "198 trajectories of 3 prompts (192 enumerated, 6 reference)" in done.out
    assert "shiq-bench data show tree" in done.out and "--data tree" in done.out


def test_the_command_that_is_printed_trains_from_it(tmp_path: Path) -> None:
    """With the plugin, model, limits and options of the task that the data were drawn with."""

    def typed(*words: str) -> str:
        done = shiq_bench(*words, cwd=tmp_path)
        assert done.code == 0, done.err
        return done.out

    (tmp_path / "my plugin.py").write_text(
        "from shiq_bench import task\nfrom shiq_bench.tasks.tree import Tree\n"
        "@task('grove')\nclass Grove(Tree):\n    pass\n"
    )
    command = ["data", "build", "--task", "grove", "--out", "some data", "--plugin", "my plugin.py", "--model", "tiny"]
    settings = ("engine=hf", "contexts=3", "samples=1", "max_tokens=3", "max_length=2048", "data_seed=3")
    printed = typed(*command, "--reward", "final", *(f"--set={s}" for s in settings)).split("train from it: ")[1]
    typed(*shlex.split(printed)[1:], "--steps", "2", "--set", "eval_samples=1")
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "results").glob("*/record.json"))
    spec = record["spec"]
    assert record["deviations"] == [] and spec["max_length"] == 2048 and spec["data_hash"]
    assert (spec["task_options"]["contexts"], spec["task_options"]["reward"]) == (3, "final")
    card = re.search(r"^shiq-bench run .*$", (tmp_path / "some data" / CARD).read_text(), re.M)
    assert card and card[0].replace("FOLDER", "'some data'") == printed.strip()


@pytest.mark.parametrize(
    ("licence", "key"), [("Apache-2.0, from its authors", "apache-2.0"), ("ask them", None), ("", None)]
)
def test_the_card_is_one_of_a_hub(licence: str, key: str | None, tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    trajectory = said(("a", False), ("b", True))
    write_dataset(tmp_path / "made", [trajectory], BYTES, {**MADE, "licence": licence, "notes": ["odd\nthing"]})
    card = DatasetCard((tmp_path / "made" / CARD).read_text())
    head = card.data.to_dict()
    assert head.get("license") == key and head["size_categories"] == ["n<1K"]
    assert head["configs"] == [{"config_name": "default", "data_files": "data.parquet"}]
    assert "- odd thing" in card.text and (licence or "states none") in card.text


def test_datasets_reads_it(tree: Path, tmp_path: Path) -> None:
    script = (
        "import sys, datasets\n"
        "a = datasets.load_dataset('parquet', data_files=sys.argv[1] + '/data.parquet', split='train')\n"
        "b = datasets.load_dataset(sys.argv[1], split='train')\n"
        "assert a[:] == b[:] and len(a) == 198, len(a)\n"
        "print(a[0]['text'], sum(a['total_reward']))"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script, str(tree)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tree / DATA).to_pylist()
    assert done.stdout.split("\n")[0] == f"{rows[0]['text']} {sum(r['total_reward'] for r in rows)}"
