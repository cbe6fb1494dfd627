"""A codec without a model, scripted dialogues, and the official code run by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.api.task import TextCodec
from shiq_bench.api.trajectory import Completion, Score, ToolCall, Trajectory
from shiq_bench.tasks.bfcl import Bfcl, fetch
from shiq_bench.tasks.bfcl.dialogue import Dialogue

END = 0x110000  # one past the last character
LONG = 10**7


class CharCodec(TextCodec):
    """One character a token."""

    end_ids: tuple[int, ...] = (END,)
    tiny = True

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        said = [f"<tools>{json.dumps(tools)}\n"] if tools else []
        return [ord(char) for text in [*said, *(f"<{m['role']}>{m['content']}\n" for m in messages)] for char in text]

    def reply(
        self, messages: Sequence[Mapping[str, Any]], ended: bool, calls: Sequence[ToolCall] | None = None
    ) -> list[int]:
        return ([] if ended else [END]) + self.prompt(messages)

    def answer(self, text: str) -> list[int]:
        return [*map(ord, text), END]

    def text(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in token_ids if i != END)

    def completion(self, said: str | Sequence[int]) -> Completion:
        ids = tuple(self.answer(said) if isinstance(said, str) else said)
        return Completion(ids, (0.0,) * len(ids), "stop")


def observed(dialogue: Dialogue, since: int) -> str:
    """What the policy was shown from a position of the transcript on."""
    t = dialogue.transcript
    return "".join(chr(i) for i, a in list(zip(t.token_ids, t.action_mask, strict=True))[since:] if not a and i != END)


def play(task: Bfcl, scripts: Sequence[tuple[str, Sequence[Sequence[str]]]]) -> list[tuple[Trajectory, Score]]:
    """Play (prompt id, answers by turn) side by side; a turn whose answers are used up is closed by an empty one."""
    codec = CharCodec()
    dialogues = task.episodes([prompt_id for prompt_id, _ in scripts], codec, LONG)
    waiting = {id(d): [list(turn) for turn in turns] for d, (_, turns) in zip(dialogues, scripts, strict=True)}
    while live := [d for d in dialogues if not d.done]:
        answers = []
        for d in live:
            assert isinstance(d, Dialogue)
            left = waiting[id(d)][d.turn] if d.turn < len(waiting[id(d)]) else []
            answers.append(codec.completion(left.pop(0) if left else ""))
        task.step(live, answers)
    return task.finish(dialogues, "test")


def gold_script(task: Bfcl, prompt_id: str) -> list[list[str]]:
    """One answer a turn: the ground truth."""
    entry = task.entries[prompt_id]
    calls = [entry.gold_calls(turn) for turn in range(len(entry.turns))]
    return [[f"[{', '.join(call.text for call in turn)}]"] for turn in calls]


#: Decodes and judges as the official runner does, with nothing of this project: the decoder's own functions are taken
#: out of their module, whose imports need vendors' packages.
OFFICIAL = """
import ast, json, sys
root = sys.argv[1]
sys.path.insert(0, root)
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import is_empty_execute_response
names = {"default_decode_execute_prompting", "ast_parse", "resolve_ast_call", "resolve_ast_by_type",
         "parse_nested_value", "decoded_output_to_execution_list"}
tree = ast.parse(open(root + "/bfcl_eval/model_handler/utils.py").read())
tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
exec(compile(tree, "utils", "exec"))
def decode(text):
    try:
        return default_decode_execute_prompting(text)
    except Exception:
        return None
job = json.load(sys.stdin)
verdicts = []
for number, (entry, turns) in enumerate(job["dialogues"]):
    decoded = [[calls for calls in map(decode, turn) if calls and not is_empty_execute_response(calls)]
               for turn in turns]
    gold = entry["ground_truth"]
    category = entry["id"].rsplit("_", 1)[0]
    verdicts.append(len(decoded) == len(gold)
                    and multi_turn_checker(decoded, gold, entry, category, f"m{number}")["valid"])
json.dump({"decoded": [decode(text) for text in job["texts"]], "verdicts": verdicts}, sys.stdout)
"""


def run_official(root: Path, texts: Sequence[str] = (), dialogues: Sequence[Any] = ()) -> dict[str, Any]:
    """Official call strings of ``texts`` (None: undecodable) and verdicts on ``dialogues`` (entry, texts by turn)."""
    job = json.dumps({"texts": texts, "dialogues": dialogues})
    command = [sys.executable, "-W", "ignore", "-c", OFFICIAL, str(root)]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="session")
def bfcl_root() -> Path:
    """Folder of the official package; fetched on first use."""
    return fetch.locate()


@pytest.fixture(scope="module")
def bfcl() -> Iterator[Bfcl]:
    """The task with its defaults, on two workers."""
    task = Bfcl(workers=2)
    yield task
    task.close()
