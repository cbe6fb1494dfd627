"""Records: identity of a run, round trips, and what a trajectory refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.api.trajectory import Completion, Trajectory, Transcript
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import canonical_json, stable_hash
from shiq_bench.records.record import SCHEMA_VERSION, Evaluation, RunRecord
from shiq_bench.records.spec import RunSpec

FIELDS = {f.name: f for f in dataclasses.fields(RunSpec)}
OUTCOME = [n for n, f in FIELDS.items() if f.metadata.get("outcome", True)]
ELSEWHERE = [n for n in FIELDS if n not in OUTCOME]
SPEC = RunSpec(algo="shiq", task="bfcl", algo_options={"beta": 0.1}, task_options={"category": "multi_turn_base"})

# Fields whose values are words: another one each.
WORDS = {
    "labels": "bradley_terry", "pairs": "random", "collect": "fresh", "schedule": "linear", "precision": "fp32",
    "layout": "padded", "engine": "hf", "importance": "token",
}  # fmt: skip


def _another(name: str) -> Any:
    value = getattr(SPEC, name)
    if name in WORDS:
        return WORDS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.01
    return {**value, "another": 1} if isinstance(value, dict) else f"{value}x"


@pytest.mark.parametrize("name", OUTCOME)
def test_what_can_change_the_outcome_changes_the_identity(name: str) -> None:
    assert _another(name) != getattr(SPEC, name)
    assert dataclasses.replace(SPEC, **{name: _another(name)}).run_id != SPEC.run_id


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_cannot_does_not(name: str) -> None:
    assert _another(name) != getattr(SPEC, name)
    assert dataclasses.replace(SPEC, **{name: _another(name)}).run_id == SPEC.run_id


def test_fields_outside_the_identity_are_these() -> None:
    # A field belongs here only when it moves where or how fast a run happens, never its result.
    assert ELSEWHERE == [
        "data",
        "layout",
        "micro_groups",
        "tokens_per_pass",
        "save_every",
        "track",
        "gpu_memory",
        "results",
    ]


def test_golden_run_id() -> None:
    # This fails when a field is added, renamed or given another default, which makes every stored
    # run another run: intended or not, raise RUN_ID_VERSION where a field changed its meaning.
    assert SPEC.run_id == "shiq-bfcl-27cdb40a00bb"


def test_run_id_does_not_depend_on_the_order_of_options_or_the_process() -> None:
    one = RunSpec(algo="a", task="t", algo_options={"x": 1, "y": 2})
    two = RunSpec(algo="a", task="t", algo_options={"y": 2, "x": 1})
    assert one.run_id == two.run_id
    script = (
        "from shiq_bench.records.spec import RunSpec; "
        "print(RunSpec(algo='a', task='t', algo_options={'x': 1, 'y': 2}).run_id)"
    )
    root = Path(__file__).parents[2]
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == one.run_id


@pytest.mark.parametrize("written", ["heldout,rl", "rl,rl,heldout", " rl , heldout ,"])
def test_one_result_has_one_identity_however_its_splits_are_written(written: str) -> None:
    spec = dataclasses.replace(SPEC, eval_splits=written)
    assert spec == SPEC and spec.run_id == SPEC.run_id and spec.splits == ["rl", "heldout"]


def test_splits_are_in_a_fixed_order() -> None:
    spec = dataclasses.replace(SPEC, eval_splits="zoo,all,start,ant,rl")
    assert spec.splits == ["rl", "start", "all", "ant", "zoo"]
    assert dataclasses.replace(SPEC, eval_splits="rl").run_id != SPEC.run_id


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": -1}, "steps is -1; expected 0 or more"),
        ({"groups_per_step": 0}, "groups_per_step is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"eval_splits": " ,"}, "eval_splits names no split"),
        ({"max_tokens": 64, "max_length": 64}, "leaves no room"),
    ],
)
def test_a_spec_refuses_what_cannot_run(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        RunSpec(algo="shiq", task="bfcl", **options)


def _record() -> RunRecord:
    evaluation = Evaluation(
        "trained",
        "rl",
        "greedy",
        7,
        {"reward": {"mean": 0.5, "n": 2, "stderr": None}},
        ({"prompt_id": "a", "reward": 0.5},),
    )
    return RunRecord(
        run_id=SPEC.run_id,
        status="done",
        spec=SPEC,
        source_hash="abc",
        git_dirty=False,
        evaluations=(evaluation,),
        training=({"step": 1, "loss": 0.25},),
        consumed={"updates": 7},
        deviations=("none",),
        peak_memory_mb=12.5,
    )


def test_record_round_trip() -> None:
    made = _record()
    text = json.dumps(made.to_json())
    back = RunRecord.from_json(json.loads(text))
    assert back.spec == made.spec and back.run_id == back.spec.run_id
    assert canonical_json(back.to_json()) == canonical_json(made.to_json())
    assert back.schema_version == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, f"schema {SCHEMA_VERSION + 1} is newer"),
        ({"schema_version": "1"}, "no schema_version"),
        ({"status": "finished"}, "status is 'finished'"),
        ({"surprise": 1}, "surprise"),
        ({"spec": {"algo": "shiq"}}, "task"),
        ({"evaluations": [{"policy": "trained"}]}, "not a run record"),
        ({"evaluations": None}, "not a run record"),
    ],
)
def test_a_record_of_another_shape_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        RunRecord.from_json({**_record().to_json(), **change})


def test_records_are_frozen() -> None:
    for thing in (SPEC, _record(), Completion((1,), (0.0,), "stop")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, dataclasses.fields(thing)[0].name, None)


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, (2, 3)], "a": "é"}) == '{"a":"\\u00e9","b":[1,[2,3]]}'
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rewards": (0.0, 1.0)}, "differ in length"),
        ({"sampler_logp": (0.0,)}, "another length"),
        ({"rewards": (1.0, 0.0, 0.0)}, "no action"),
        ({"action_mask": (True, False, True), "rewards": (0.0, 0.0, 0.0)}, "first token"),
    ],
)
def test_a_trajectory_refuses_what_cannot_be(change: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {
        "prompt_id": "p",
        "token_ids": (1, 2, 3),
        "action_mask": (False, True, True),
        "rewards": (0.0, 0.0, 1.0),
    }
    assert Trajectory(**good).total_reward == 1.0
    with pytest.raises(ValueError, match=says):
        Trajectory(**{**good, **change})


def test_a_transcript_keeps_tokens_as_they_were_sampled() -> None:
    transcript = Transcript([1, 2])
    assert transcript.last_action == -1
    transcript.act(Completion((3, 4), (-0.5, -0.25), "stop"))
    transcript.observe([5, 6])
    transcript.act(Completion((7,), (-1.0,), "length"))
    transcript.observe([8])
    assert transcript.last_action == 6
    transcript.truncated = True
    made = transcript.trajectory("p", {3: 0.5, 6: 1.0}, "reference", weight=0.5)
    assert made.token_ids == (1, 2, 3, 4, 5, 6, 7, 8)
    assert made.action_mask == (False, False, True, True, False, False, True, False)
    assert made.sampler_logp == (0, 0, -0.5, -0.25, 0, 0, -1.0, 0)
    assert made.rewards == (0, 0, 0, 0.5, 0, 0, 1.0, 0)
    assert (made.truncated, made.weight, made.total_reward) == (True, 0.5, 1.5)
