"""Tuning: equal budgets, validation data that are not reported, and the candidate that did best there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import Evaluation, Metric, RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.sweep.grid import Job
from shiq_bench.sweep.tuning import VALIDATION, Tuning, headline, validation

VARIED = {"beta": ["0.1", "0.3", "1"], "learning_rate": ["0.1", "0.01", "0.001"]}


def test_every_method_gets_as_many_trials_and_always_the_same() -> None:
    tuning = Tuning(VARIED, 4, [], [], [], {})
    found = {algo: tuning.candidates(algo, "bandit") for algo in ("shiq", "dpo", "dro")}
    assert all(len({tuple(c.items()) for c in candidates}) == 4 for candidates in found.values())
    assert found["shiq"] == found["dpo"] == found["dro"]
    assert len(Tuning(VARIED, 100, [], [], [], {}).candidates("shiq", "bandit")) == 9


def test_what_a_method_does_not_have_is_not_tuned() -> None:
    found = Tuning(VARIED, 9, [], [], [], {}).candidates("sft", "bandit")
    assert found == [{"learning_rate": v} for v in VARIED["learning_rate"]]


def test_a_setting_that_nobody_has() -> None:
    with pytest.raises(UserError, match="did you mean 'beta'"):
        list(Tuning({"betta": ["1"]}, 2, ["shiq"], ["bandit"], [0], {}).trials())


def test_tables_are_validated_on_instances_behind_the_reported_ones() -> None:
    jobs = list(Tuning({"beta": ["0.1", "1"]}, 2, ["shiq"], ["bandit"], [0, 1, 2], {}).trials())
    assert [(j.values["seed"], j.values["seeds"], j.values["beta"]) for j in jobs] == [(3, 3, "0.1"), (3, 3, "1")]


def test_language_models_are_validated_on_prompts_that_nothing_else_uses() -> None:
    values = {"model": "tiny", "eval_splits": "heldout"}
    jobs = list(Tuning({"beta": ["0.1"]}, 2, ["shiq"], ["bfcl"], [5, 6], values).trials())
    assert [(j.resolved().spec.eval_splits, j.resolved().spec.seed) for j in jobs] == [(VALIDATION, 5)]
    assert VALIDATION not in RunSpec("shiq", "bfcl").splits


def record(job: Job, mean: float | None, status: str = "done") -> RunRecord:
    metrics = {"regret": {"mean": mean, "n": 1, "stderr": None}}
    found = [Evaluation("trained", "instances", "exact", 10, metrics, [])]
    return RunRecord(job.run_id, status, RunSpec("shiq", "bandit", model="table"), evaluations=found)  # type: ignore[arg-type]


def test_the_best_on_validation_is_chosen_and_everything_is_kept(tmp_path: Path) -> None:
    tuning = Tuning({"beta": ["0.1", "0.3", "1", "3"]}, 4, ["shiq"], ["bandit"], [0], {})
    jobs = list(tuning.trials())
    # Regret: lower is better; the second best comes first, the failed one would be the best.
    for job, (mean, status) in zip(jobs, [(0.3, "done"), (0.2, "done"), (0.9, "done"), (0.1, "failed")], strict=True):
        run_store.save(record(job, mean, status), tmp_path)
    assert tuning.chosen(jobs, tmp_path) == {("shiq", "bandit"): {"beta": "0.3"}}
    (kept,) = (tmp_path / ".runs").glob("tuned-*.json")
    report = json.loads(kept.read_text())
    assert [(e["settings"]["beta"], e["score"], e["metric"]) for e in report] == [
        ("0.1", 0.3, "regret"), ("0.3", 0.2, "regret"), ("1", 0.9, "regret"), ("3", None, "regret"),
    ]  # fmt: skip


def test_no_trial_that_ended(tmp_path: Path) -> None:
    tuning = Tuning({"beta": ["0.1"]}, 1, ["shiq"], ["bandit"], [0], {})
    jobs = list(tuning.trials())
    assert tuning.chosen(jobs, tmp_path) == {}


def test_a_candidate_that_does_not_fit_is_a_job_with_a_problem() -> None:
    jobs = list(Tuning({"contexts": ["8", "-1"]}, 2, ["shiq"], ["bandit"], [0], {}).trials())
    assert [bool(job.problem) for job in jobs] == [False, True] and "contexts=-1" in jobs[1].name


def test_who_diverged_somewhere_is_not_chosen_for_where_it_did_not(tmp_path: Path) -> None:
    tuning = Tuning({"beta": ["0.1", "0.3"]}, 2, ["shiq"], ["bandit"], [0], {})
    jobs = list(tuning.trials())
    steady, wild = record(jobs[0], 0.3), record(jobs[1], 0.01)
    lost = [{"prompt_id": "instance 1", "diverged": 1.0}, {"prompt_id": "instance 2", "diverged": 0.0, "regret": 0.01}]
    run_store.save(steady, tmp_path)
    run_store.save(replace(wild, evaluations=[replace(wild.evaluations[0], examples=lost)]), tmp_path)
    assert tuning.chosen(jobs, tmp_path) == {("shiq", "bandit"): {"beta": "0.1"}}


def test_what_is_chosen_by() -> None:
    side, main = Metric("length", "neither", "length"), Metric("success", "higher", "success", headline=True)
    assert headline([side, Metric("cost", "lower", "cost"), main]) == main
    assert headline([side, Metric("cost", "lower", "cost")]).name == "cost"
    assert headline([]).name == "reward"


def test_the_last_evaluation_of_sampled_answers_counts() -> None:
    metric = Metric("reward", "higher", "reward")

    def evaluation(policy: str, mode: str, step: int, mean: float) -> Evaluation:
        return Evaluation(policy, VALIDATION, mode, step, {"reward": {"mean": mean, "n": 1, "stderr": None}}, [])

    found = [
        evaluation("trained", "sampled", 5, 1.0), evaluation("trained", "sampled", 10, 2.0),
        evaluation("trained", "greedy", 10, 3.0), evaluation("reference", "sampled", 20, 4.0),
    ]  # fmt: skip
    assert validation(RunRecord("r", "done", RunSpec("shiq", "tree"), evaluations=found), metric) == 2.0
    assert validation(RunRecord("r", "done", RunSpec("shiq", "tree")), metric) is None
