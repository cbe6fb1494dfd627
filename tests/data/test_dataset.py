"""Offline data as a folder: written whole, read back to the bit, refused where they cannot serve, and shown."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from shiq_bench.api.trajectory import Trajectory
from shiq_bench.cli.app import app
from shiq_bench.data import dataset, schema, show
from shiq_bench.data.dataset import check_dataset, read_dataset, read_manifest, tokenizer_hash, write_dataset
from shiq_bench.data.schema import CARD, DATA, HASH, MANIFEST
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import RunRecord
from shiq_bench.runs.build_dataset import build_dataset
from shiq_bench.runs.execute import execute
from shiq_bench.runs.settings import resolve, resolve_data
from shiq_bench.runs.validation import check_demands
from shiq_bench.tasks.tree import Tree
from shiq_bench.training.starting_policy import resolve_model

ROOT = Path(__file__).parents[2]
SHARED: dict[str, Any] = {"model": "tiny", "engine": "hf", "contexts": 3, "max_tokens": 3}
DRAWN = {**SHARED, "samples": 2, "data_seed": 5}
LEARNED = {**SHARED, "steps": 4, "eval_samples": 3}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIQ_BENCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def build(out: Path, **settings: Any) -> dict[str, Any]:
    spec, task = resolve_data("tree", {**DRAWN, **settings}, schema.BUILD)
    return build_dataset(spec, task, out, lambda *_: None)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the token tree: its enumerated completions, and two samples a prompt."""
    out = tmp_path_factory.mktemp("data") / "tree"
    build(out)
    return out


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """One to be spoilt."""
    done = subprocess.run(["cp", "-r", str(tree), str(tmp_path / "copy")], check=False)
    assert done.returncode == 0
    return tmp_path / "copy"


def run(results: Path, algo: str = "shiq", **settings: Any) -> RunRecord:
    resolved = resolve(algo, "tree", {**LEARNED, "results": str(results), **settings})
    return execute(resolved, resume=False, fresh=False, report=lambda *_: None)


def forge(folder: Path, table: pa.Table) -> None:
    """Other rows, with a manifest that vouches for them."""
    pq.write_table(table, folder / DATA)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"] = hashlib.sha256((folder / DATA).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def altered(folder: Path, name: str, values: list[Any], kind: Any = None) -> pa.Table:
    table = pq.read_table(folder / DATA)
    n = table.column_names.index(name)
    return table.set_column(n, name, pa.array(values, kind or table.column(n).type))


# --- a tokenizer of bytes, and data made by hand


def bytes_tokenizer() -> Any:
    """One token a byte, so that every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


BYTES = bytes_tokenizer()
MADE: dict[str, Any] = {
    "task": "made", "task_options": {}, "split": "rl", "model": "made", "samples": 1, "gold": False, "data_seed": 0,
    "weights_hash": "w" * 64, "max_length": 4096, "max_tokens": 64, "command": "shiq-bench data build --out made",
}  # fmt: skip


def said(*parts: tuple[str, bool], rewards: dict[int, float] | None = None, **more: Any) -> Trajectory:
    """A dialogue of texts, each the policy's or not; rewards by position."""
    ids: list[int] = []
    mask: list[bool] = []
    for text, action in parts:
        found = BYTES(text)["input_ids"]
        ids += found
        mask += [action] * len(found)
    paid = tuple((rewards or {}).get(i, 0.0) for i in range(len(ids)))
    return Trajectory("p", tuple(ids), tuple(mask), paid, **more)


def shown(folder: Path, **options: Any) -> str:
    out = io.StringIO()
    show.show(folder, Console(file=out, width=80, color_system=None), **options)
    return out.getvalue()


def show_made(tmp_path: Path, *trajectories: Trajectory, **options: Any) -> str:
    write_dataset(tmp_path / "made", trajectories, BYTES, MADE)
    return shown(tmp_path / "made", **options)


# --- writing and reading


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
    done = CliRunner().invoke(app, command[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "tree" / DATA).read_bytes() == (tree / DATA).read_bytes()
    assert "198 trajectories of 3 prompts (192 enumerated, 6 reference)" in done.stdout
    assert "shiq-bench data show tree" in done.stdout and "--data tree" in done.stdout


def test_the_command_that_is_printed_trains_from_it(tmp_path: Path) -> None:
    """With the plugin, model, limits and options of the task that the data were drawn with."""

    def typed(*words: str) -> str:
        command = [sys.executable, "-m", "shiq_bench.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

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


# --- training from it


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
    printed = CliRunner().invoke(app, [*words, *(f"--set={k}={v}" for k, v in LEARNED.items())])
    assert printed.exit_code == 0 and "samples: 2" in printed.stdout
    (tmp_path / "run.yaml").write_text(printed.stdout)
    again = CliRunner().invoke(app, ["run", "--config", str(tmp_path / "run.yaml"), "--dry-run"])
    assert again.exit_code == 0 and again.stdout == printed.stdout, again.exception


def test_what_differs_from_the_data_is_told(tree: Path, tmp_path: Path) -> None:
    record = run(tmp_path, data=str(tree), reward_scale=2, steps=1)
    assert "the data were made with other options of the task: reward_scale=1.0" in record.deviations
    manifest = json.loads((tree / MANIFEST).read_text())
    manifest["weights_hash"] = "another"
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", str(tree), str(other)], check=True)
    (other / MANIFEST).write_text(json.dumps(manifest))
    record = run(tmp_path / "results", data=str(other), steps=1)
    assert "the data were sampled from another policy than the reference" in record.deviations


# --- refusals


def refused(tmp_path: Path, message: str, algo: str = "shiq", **settings: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "results", algo, **settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "results").exists()


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
        done = CliRunner().invoke(app, ["data", "build", *arguments])
        assert isinstance(done.exception, UserError) and re.search(message, str(done.exception)), arguments
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
    done = CliRunner().invoke(app, command.replace("NAME", "a" * 300).split())
    assert isinstance(done.exception, UserError)
    assert re.search("^cannot (read|make) a{300}.*: File name too long", str(done.exception))
    assert "\n" not in str(done.exception)


def test_the_longest_name_there_can_be_is_a_folder(tmp_path: Path) -> None:
    build(tmp_path / ("a" * 255))
    assert [len(p.name) for p in tmp_path.iterdir()] == [255]


def test_flags_of_a_run_build_data_too(tmp_path: Path) -> None:
    """Each means the task's option, and a task without it says so."""
    for flag, name in (("--categories", "categories"), ("--tool-format", "tool_format")):
        done = CliRunner().invoke(app, ["data", "build", "--task", "tree", "--out", "x", flag, "y"])
        assert isinstance(done.exception, UserError) and f"no setting is called 'task.{name}'" in str(done.exception)
    for flag, message in (
        ("--categories", "did you mean 'live'"),
        ("--tool-format", "task.tool_format=lvie: expected one of auto"),
        ("--reward", "task.reward=lvie: expected one of turn"),
    ):
        done = CliRunner().invoke(app, ["data", "build", "--task", "bfcl", "--out", str(tmp_path / "x"), flag, "lvie"])
        assert isinstance(done.exception, UserError) and message in str(done.exception), done.exception


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


# --- showing


def test_a_dialogue_is_shown_as_the_loss_sees_it(tmp_path: Path) -> None:
    made = said(("ask ", False), ("do one", True), (" seen ", False), ("end", True), rewards={5: 1.0, 17: -0.25})
    text = show_made(tmp_path, replace(made, truncated=True))
    assert "ask »do⟨+1⟩ one« seen »en⟨-0.25⟩d«" in text
    assert "row 0 · prompt p · reference · return 0.75 · truncated · 9 action tokens of 19" in text
    assert "task made, model made, 1 trajectories of 1 prompts, 1 truncated" in text
    assert re.search(r"^0\.75 +1$", text, re.M)


def test_a_split_character_is_shown_once(tmp_path: Path) -> None:
    """Four bytes of one, rewarded after the second, and two bytes of another cut off at the end."""
    made = said(("a", False), ("😀b", True), rewards={2: 1.0})
    lost = BYTES.convert_tokens_to_ids([pre_tokenizers.ByteLevel(False).pre_tokenize_str("é")[0][0][0]])
    made = replace(
        made, token_ids=(*made.token_ids, *lost), action_mask=(*made.action_mask, True), rewards=(*made.rewards, 0.5)
    )
    assert "a»⟨+1⟩😀b\ufffd⟨+0.5⟩«" in show_made(tmp_path, made)


def test_text_of_a_model_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;title\x07[red]x[/red]\r\x7f\x9b1m\u202eabc\u200b :smile: » ⟨+9⟩\tend"
    made = replace(said(("q\x1b[1m", False), (evil, True)), prompt_id="p\x1b[31m", source="s\x1b\n[b]")
    text = show_made(tmp_path, made)
    assert not [c for c in text if c != "\n" and (c < " " or "\x7f" <= c < "\xa0" or c in "\u202e\u200b")]
    assert (
        "»␛[2J␛]0;title␇[red]x[/red]␍⟨U+007F⟩⟨U+009B⟩1m⟨U+202E⟩abc⟨U+200B⟩ :smile: ⟨U+00BB⟩ ⟨U+27E8⟩+9⟨U+27E9⟩␉end«"
        in text
    )
    assert "prompt p␛[31m · s␛␊[b] · return 0" in text


def test_colour_comes_on_top_of_the_marks(tmp_path: Path) -> None:
    write_dataset(tmp_path / "made", [said(("ask ", False), ("do", True), rewards={5: 1.0})], BYTES, MADE)
    out = io.StringIO()
    show.show(tmp_path / "made", Console(file=out, force_terminal=True, color_system="standard"))
    assert "\x1b[2mask \x1b[0m" in out.getvalue() and "\x1b[1;32mdo\x1b[0m" in out.getvalue()
    plain = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert "ask »do⟨+1⟩«" in plain


def test_long_observations_are_shortened_on_request_only(tmp_path: Path) -> None:
    long = "".join(chr(97 + i % 26) for i in range(600))
    made = said((long, False), (long, True))
    short = show_made(tmp_path, made)
    assert f"{long[:60]}⟨… 480 tokens …⟩{long[-60:]}»{long}«" in short
    assert f"{long}»{long}«" in shown(tmp_path / "made", full=True)


def test_words_keep_their_spaces(tree: Path) -> None:
    row = pq.read_table(tree / DATA).to_pylist()[0]
    text = shown(tree, count=1).rstrip().split("\n")[-1]
    assert re.sub(r"[»«]|⟨[^⟩]*⟩", "", text) == row["text"] and "»" in text


def test_dialogues_are_chosen(tree: Path) -> None:
    def heads(**options: Any) -> list[str]:
        return [line for line in shown(tree, **options).split("\n") if line.startswith("── row")]

    assert [h.split(" · ")[0] for h in heads()] == ["── row 0", "── row 1", "── row 2"]
    assert len(heads(source="reference", count=100)) == 6
    assert all("prompt 2 " in h for h in heads(prompt="2", count=5)) and len(heads(prompt="2", count=5)) == 5
    assert heads(seed=1) == heads(seed=1) != heads(seed=2) and len(heads(seed=1)) == 3
    assert heads(count=0) == []
    for options, message in (
        ({"prompt": "7"}, "no prompt '7': try --prompt"),
        ({"source": "refrence"}, "try --source 'reference'"),
    ):
        with pytest.raises(UserError, match=message):
            shown(tree, **options)


def test_damage_is_found_before_anything_is_shown(copy: Path) -> None:
    whole = bytearray((copy / DATA).read_bytes())
    whole[len(whole) // 2] ^= 1
    (copy / DATA).write_bytes(whole)
    with pytest.raises(UserError, match="is damaged"):
        shown(copy)


def test_showing_loads_no_model_library(tree: Path) -> None:
    script = (
        "import sys\nfrom shiq_bench.cli import app\n"
        "app(['data', 'show', sys.argv[1], '-n', '1'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tree)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "── row 0" in done.stdout and done.stdout.rstrip().endswith("[]") and "\x1b" not in done.stdout
