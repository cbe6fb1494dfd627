"""``shiq-bench reward``: a model fitted and judged, a file scored, and one line for what cannot be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.rewards.model import RewardModel
from tests.command import Finished, shiq_bench
from tests.rewards.conftest import llama, llama_tokenizer, qwen, says
from tests.rewards.test_fit import causal

PLUGIN = '''
"""A task that has pairs and nothing else."""
from dataclasses import dataclass
from pathlib import Path
import json
from shiq_bench import Preference, Task, task

class Nothing(Task):
    def episodes(self, prompt_ids, codec, max_length): return []
    def step(self, episodes, completions): pass
    def finish(self, episodes, source): return []
    def prompts(self, split): return []

@task("pairs")
@dataclass(frozen=True)
class Pairs(Nothing):
    dataset: str = ""
    heldout: int = 20
    def preferences(self, split):
        rows = [json.loads(line) for line in Path(self.dataset).read_text().splitlines()]
        rows = rows[:self.heldout] if split == "heldout" else rows[self.heldout:]
        return [Preference(str(n), ({"role": "user", "content": r["prompt"]},), r["chosen"], r["rejected"])
                for n, r in enumerate(rows)]

@task("no-pairs")
@dataclass(frozen=True)
class NoPairs(Nothing):
    pass
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / "home"))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    rows = [{"prompt": f"one {n}", "chosen": f"four {n % 7}", "rejected": f"three {n % 7} two"} for n in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def command(line: str) -> Finished:
    return shiq_bench("reward", *line.split())


TRAIN = "train --task pairs --plugin plugin.py --data pairs.jsonl --base base --out rm"


def test_train_then_score(here: Path) -> None:
    causal(here / "base", llama_tokenizer())
    printed = command(f"{TRAIN} --epochs 8 --learning-rate 0.003 --batch 8 --max-length 64 --seed 3")
    assert printed.code == 0
    for said in ("held-out pairs", "20", "always the longer answer", "0.0%", "expected calibration error", "40 pairs"):
        assert said in printed.out
    assert printed.err.splitlines() == ["fitting the reward model ...", "scoring with the reward model ..."]
    report = json.loads((here / "rm" / "report.json").read_text())
    assert report["heldout"]["accuracy"]["mean"] > 0.9 and report["heldout"]["accuracy"]["n"] == 20
    assert report["heldout"]["longer"]["mean"] == 0
    assert report["fit"] == {"pairs": 40, "equal": 0, "cut": 0, "steps": 40}
    assert report["task_options"] == {"dataset": "pairs.jsonl", "heldout": 20}
    assert report["settings"]["seed"] == 3 and report["settings"]["max_length"] == 64
    assert report["fingerprint"] == RewardModel("rm").fingerprint

    lines = [{"prompt": "one 3", "answer": f"{word} 3", "id": word} for word in ("four", "three")]
    (here / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    printed_command = next(li for li in printed.out.splitlines() if li.startswith("score with it: "))
    line = printed_command.removeprefix("score with it: shiq-bench reward ").replace("IN", "in").replace("OUT", "out")
    assert command(line).code == 0
    better, worse = map(json.loads, (here / "out.jsonl").read_text().splitlines())
    assert better["score"] > worse["score"]
    assert list(better) == ["prompt", "answer", "id", "score"] and better["id"] == "four"


def test_bad_lines_are_named_and_the_others_scored(here: Path) -> None:
    qwen(here / "rm")
    good: list[Any] = [{"messages": says("one", "two")}, {"prompt": "one", "answer": "two", "kept": [1]}]
    bad = {
        "{": "is no JSON",
        "[]": "is no JSON object",
        '{"prompt": "one"}': 'expected {"messages"',
        '{"messages": [{"role": "user"}]}': 'expected {"messages"',
        '{"messages": [{"role": "user", "content": "one"}]}': "must end with a message of the assistant",
        '{"messages": []}': "must end with a message of the assistant",
        '{"prompt": "\\ud800", "answer": ""}': "no Unicode",
        '{"prompt": "\udcff", "answer": ""}': "no Unicode",
    }
    text = "\n".join([json.dumps(good[0]), *bad, "", json.dumps(good[1])])
    (here / "in.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    done = command("score --model rm in.jsonl --out new/out.jsonl")
    assert done.code == 1
    said = [line for line in done.err.splitlines() if line.startswith("in.jsonl")]
    for number, (line, message) in enumerate(zip(said, bad.values(), strict=True), 2):
        assert line.startswith(f"in.jsonl: line {number}: ") and message in line
    first, second = map(json.loads, (here / "new" / "out.jsonl").read_text().splitlines())
    assert first == {**good[0], "score": first["score"]} and second == {**good[1], "score": first["score"]}
    assert [first["score"]] == RewardModel("rm").score([says("one", "two")])


def test_what_cannot_be_done_is_one_line(here: Path) -> None:
    causal(here / "base", llama_tokenizer())
    llama(here / "rm-base", llama_tokenizer())
    (here / "taken").mkdir()
    (here / "taken" / "file").touch()
    (here / "in.jsonl").write_text("{\n")
    before = sorted(here.iterdir())
    for line, message in {
        TRAIN.replace("--out rm", "--out taken"): "taken is not empty, and nothing is overwritten",
        TRAIN.replace("--base base", "--base ./bas"): "no model folder at ./bas: did you mean base?",
        TRAIN.replace("--base base", "--base tiny"): "task 'pairs' has no embedded model",
        TRAIN.replace("--task pairs", "--task no-pairs"): "task no-pairs reads no file of pairs: leave out --data",
        f"{TRAIN} --set heldout=0": "task pairs has no preference pairs in split heldout",
        f"{TRAIN} --set held=2": "data of pairs has no setting 'held': did you mean 'heldout'?",
        f"{TRAIN} --batch 0": "Invalid value for '--batch'",
        "train --task no-pairs --plugin plugin.py --base base --out rm": "no-pairs has no preference pairs in split",
        "score --model base in.jsonl --out o.jsonl": "is a LlamaForCausalLM with 2 labels",
        "score --model rm-base in.jsonl --out in.jsonl": "--out in.jsonl is the file of answers",
        "score --model rm-base in.jsonl --out o.jsonl": "in.jsonl holds no answer that can be scored",
        "score --model rm-base absent.jsonl --out o.jsonl": "cannot read absent.jsonl",
    }.items():
        done = command(line)
        assert done.code == 2, line
        errors = [said for said in done.err.splitlines() if said.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], (line, errors)
    assert {p for p in here.iterdir() if p.name not in ("home", "__pycache__")} == set(before)
