"""Datasets that cannot serve, and what cannot be built: refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shiq_bench.data import dataset
from shiq_bench.data.dataset import check_dataset, read_dataset, tokenizer_hash
from shiq_bench.data.schema import DATA, HASH, MANIFEST
from shiq_bench.records.errors import UserError
from shiq_bench.runs.settings import resolve
from shiq_bench.runs.validation import check_demands
from shiq_bench.tasks.tree import Tree
from shiq_bench.training.starting_policy import resolve_model
from tests.command import shiq_bench
from tests.data.datasets import BYTES, LEARNED, altered, build, bytes_tokenizer, forge, refused, run


def test_no_dataset_is_refused(tree: Path, tmp_path: Path) -> None:
    refused(tmp_path, "is no folder.*data build", data=str(tmp_path / "absent"))
    refused(tmp_path, "holds no dataset.*data build", data=str(tmp_path))
    refused(tmp_path, "data_hash=abc names a dataset and none is given", data_hash="abc")
    refused(tmp_path, "data_hash=abc, and .* is [0-9a-f]{16}", data=str(tree), data_hash="abc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "schema 3 is newer than 2: upgrade"),
        ({"kind": "other"}, "no manifest of a dataset"),
        ({"task": "bandit"}, "holds data of task bandit; expected tree"),
        ({"samples": "two"}, "does not say samples"),
        ({"tokenizer_hash": "0"}, "tokenizer of tiny, and this model's is another.*--model MODEL"),
        ({"sha256": "0" * 64}, "is damaged"),
    ],
)
def test_a_manifest_of_other_data_is_refused(change: dict[str, Any], message: str, copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, **change}))
    refused(tmp_path, message, data=str(copy))


def test_a_manifest_or_file_that_cannot_be_read_is_refused(copy: Path, tmp_path: Path) -> None:
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text("{")
    refused(tmp_path, "cannot read .*dataset.json", data=str(copy))
    (copy / MANIFEST).write_text(text)
    whole = (copy / DATA).read_bytes()
    (copy / DATA).write_bytes(whole[:-1])
    refused(tmp_path, "is damaged", data=str(copy))
    (copy / DATA).unlink()
    refused(tmp_path, "cannot read .*data.parquet", data=str(copy))


def test_another_tokenizer_has_another_hash() -> None:
    more, other = bytes_tokenizer(), bytes_tokenizer()
    assert tokenizer_hash(more) == tokenizer_hash(BYTES)
    more.add_tokens(["<new>"])
    other.chat_template += " "
    assert len({tokenizer_hash(t) for t in (BYTES, more, other)}) == 3


def test_columns_are_checked(copy: Path, tmp_path: Path) -> None:
    table = pq.read_table(copy / DATA)
    forge(copy, table.drop_columns(["weight"]))
    refused(tmp_path, "no column 'weight'; expected one of type double", data=str(copy))
    forge(copy, table)
    rewards = table.column("rewards").to_pylist()
    forge(copy, altered(copy, "rewards", rewards, pa.list_(pa.float32())))
    refused(tmp_path, "'rewards' is of type list.*; expected list<double>", data=str(copy))
    forge(copy, table)
    forge(copy, altered(copy, "rewards", [[None, *rewards[0][1:]], *rewards[1:]]))
    refused(tmp_path, "'rewards' has 1 nulls", data=str(copy))
    forge(copy, table.slice(0, 0))
    refused(tmp_path, "no trajectories", data=str(copy))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("rewards", [0.0, 0.0, 0.5], "row 1 of data.parquet: .* differ in length"),
        ("rewards", [0.5, 0.0, 0.0, 0.0, 0.0], "row 1 .* no action"),
        ("rewards", [0.0, 0.0, float("nan"), 0.0, 0.0], "row 1 .* not finite"),
        ("weight", 0.0, "row 1 .* weight not positive"),
        ("action_mask", [False] * 5, "row 1 .*(no action|has no action)"),
        ("total_reward", 7.0, "row 1 .* not the sum"),
        ("prompt_id", "99", "row 1 .* prompt '99' is no prompt of this task"),
        ("token_ids", [0, 1, 2, 3, 4], "row 1 .* outside the vocabulary of 4"),
    ],
)
def test_a_row_that_cannot_be_is_named(column: str, value: Any, message: str, copy: Path, tmp_path: Path) -> None:
    values = pq.read_table(copy / DATA).column(column).to_pylist()
    values[1] = value
    forge(copy, altered(copy, column, values))
    refused(tmp_path, message, data=str(copy))


def test_held_out_prompts_are_refused(tree: Path) -> None:
    class Split(Tree):
        def prompts(self, split: str) -> list[str]:
            return ["0", "1"] if split == "rl" else ["2"]

    tokenizer = resolve_model(resolve("shiq", "tree", LEARNED).spec, Tree(contexts=3)).tokenizer()
    assert len(read_dataset(tree, Tree(contexts=3), tokenizer, 5)) == 198
    with pytest.raises(UserError, match="prompt '2' is held out"):
        read_dataset(tree, Split(contexts=3), tokenizer, 5)
    check_dataset(tree, Tree(contexts=3))
    with pytest.raises(UserError, match="prompt '2' is held out"):  # before any model is there
        check_dataset(tree, Split(contexts=3))
    resolved = resolve("shiq", "tree", {**LEARNED, "data": str(tree), "contexts": 2})
    with pytest.raises(UserError, match="prompt '2' is no prompt of this task"):  # so --dry-run tells it too
        check_demands(resolved)
    with pytest.raises(UserError, match="5 tokens, and max_length is 4: --set max_length=96"):
        read_dataset(tree, Tree(contexts=3), tokenizer, 4)
    with pytest.raises(UserError, match="has changed"):
        read_dataset(tree, Tree(contexts=3), tokenizer, 5, "0" * HASH)


def test_runs_that_would_not_use_it_are_refused(tree: Path, tmp_path: Path) -> None:
    refused(tmp_path, "a table computes its own data.*--model tiny", data=str(tree), model="table")
    refused(tmp_path, "fresh samples.*add --allow-off-policy", "reinforce", data=str(tree))
    refused(tmp_path, "fresh samples.*leave out --data$", data=str(tree), collect="fresh")
    record = run(tmp_path / "allowed", "reinforce", data=str(tree), allow_off_policy=True, steps=1)
    assert any("on-policy" in d for d in record.deviations)
    refused(tmp_path, r"\[0, 1\]", "qsft", data=str(tree), center_rewards=True)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("x")
    with pytest.raises(UserError, match="is not empty, and nothing is overwritten"):
        build(tmp_path / "kept")
    with pytest.raises(UserError, match="is no folder"):
        build(tmp_path / "kept" / "mine")
    with pytest.raises(UserError, match="cannot make"):
        build(tmp_path / "kept" / "mine" / "below")
    assert [p.name for p in tmp_path.rglob("*")] == ["kept", "mine"]
    (tmp_path / "empty").mkdir()
    build(tmp_path / "empty")
    assert (tmp_path / "empty" / DATA).is_file()


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --model tiny"):
        build(tmp_path / "out", model="table")
    for arguments, message in (
        (["--task", "tree"], "--out is missing"),
        (["--out", "x"], "--task is missing"),
        (["--task", "tre", "--out", "x"], "did you mean 'tree'"),
        (["--task", "tree", "--out", "x", "--set", "samplse=2"], "did you mean 'samples'"),
        (["--task", "tree", "--out", "x", "--set", "steps=2"], "no setting 'steps'"),
    ):
        done = shiq_bench("data", "build", *arguments)
        assert done.code == 2 and re.fullmatch(f"error: .*{message}.*\n", done.err), arguments
    assert not list(tmp_path.iterdir()) and not Path("x").exists()


@pytest.mark.parametrize(
    "command",
    [
        "data show NAME",
        "run --algo shiq --task tree --model tiny --data NAME --dry-run",
        "data build --task tree --model tiny --out NAME",
        "data build --task tree --model tiny --out NAME/below",
    ],
)
def test_a_name_too_long_is_one_line(command: str) -> None:
    done = shiq_bench(*command.replace("NAME", "a" * 300).split())
    assert done.code == 2
    assert re.fullmatch("error: cannot (read|make) a{300}.*: File name too long.*\n", done.err)


def test_the_longest_name_there_can_be_is_a_folder(tmp_path: Path) -> None:
    build(tmp_path / ("a" * 255))
    assert [len(p.name) for p in tmp_path.iterdir()] == [255]


def test_flags_of_a_task_build_data_too(tmp_path: Path) -> None:
    """Each is a setting of the task, and a task without it has no such flag."""
    for flag, value, message in (
        ("--categories", "lvie", "did you mean 'live'"),
        ("--tool-format", "lvie", "tool_format=lvie: expected one of auto"),
        ("--reward", "lvie", "reward=lvie: expected one of turn"),
    ):
        done = shiq_bench("data", "build", "--task", "bfcl", "--out", tmp_path / "x", flag, value)
        assert done.code == 2 and message in done.err
    for flag in ("--categories", "--tool-format", "--steps"):
        done = shiq_bench("data", "build", "--task", "tree", "--out", tmp_path / "x", flag, "y")
        assert done.code == 2 and done.err.startswith(f"error: No such option: {flag}")


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While drawing, and while writing."""

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tree, "finish", stop)
        build(tmp_path / "a" / "out", data_seed=77)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dataset, "card", stop)
        build(tmp_path / "out", data_seed=77)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot write .*No space left"):
        patch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        build(tmp_path / "out", data_seed=77)
    assert not list(tmp_path.iterdir())
    build(tmp_path / "out", data_seed=77)
