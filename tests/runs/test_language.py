"""What methods need of the engine, through the whole job on a language model: supplied, resumed, or refused."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shiq_bench.api.registry import algorithms
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import RunRecord
from shiq_bench.records.run_store import RECORD, load
from shiq_bench.runs.execute import execute
from shiq_bench.runs.resolved import Resolved
from shiq_bench.runs.settings import resolve
from shiq_bench.training.policy import Policy

SETTINGS: dict[str, Any] = {
    "model": "tiny", "engine": "hf", "steps": 8, "eval_samples": 3, "save_every": 1, "contexts": 3, "max_tokens": 3,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for all, which methods share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIQ_BENCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def settle(algo: str, results: Path, **settings: Any) -> Resolved:
    return resolve(algo, "tree", {**SETTINGS, "results": str(results), **settings})


def play(resolved: Resolved, resume: bool = False, interrupt_at: int | None = None) -> RunRecord:
    """One run; with ``interrupt_at``, a signal comes in that training step."""

    def report(what: str, done: int, total: int) -> None:
        if what == "training" and done == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    return execute(resolved, resume=resume, fresh=False, report=report)


def comparable(record: RunRecord) -> dict[str, Any]:
    bare = replace(record, timings={}, peak_memory_mb=None, spec=replace(record.spec, results=""))
    return bare.to_json()


#: Between them they ask for all that an engine can supply; the others are proof.
QUICK = ("shiq", "sft", "reinforce", "rebel", "ilql")


@pytest.mark.parametrize(
    "algo", [pytest.param(a, marks=() if a in QUICK else pytest.mark.proof) for a in algorithms.names()]
)
def test_every_method_runs_and_resumes_to_the_bit(algo: str, tmp_path: Path) -> None:
    """Interrupted in its third step and resumed, a run ends in the record of one that was left alone."""
    settings = {"refresh": 3} if "refresh" in resolve(algo, "tree", SETTINGS).spec.algo_options else {}
    whole = play(settle(algo, tmp_path / "whole", **settings))
    assert whole.status == "done" and len(whole.training) == SETTINGS["steps"]
    assert max(whole.gaps.values()) < 1e-5, "what is sampled is what is scored, however the method acts"
    assert whole.training[0].get("abs_w", 0.0) < 1e-6 and whole.training[1].get("abs_w", 1.0) > 0

    cut = settle(algo, tmp_path / "cut", **settings)
    with pytest.raises(KeyboardInterrupt):
        play(cut, interrupt_at=2)
    assert load(tmp_path / "cut" / cut.spec.run_id / RECORD).status == "started"
    assert comparable(play(cut, resume=True)) == comparable(whole)


def test_an_interrupt_that_a_library_swallows_still_stops_what_comes_next(tmp_path: Path) -> None:
    """Python drops an exception raised in a destructor or in some callbacks: a study would go on with its next run."""
    resolved = settle("sft", tmp_path)

    def report(what: str, done: int, total: int) -> None:
        if what.startswith("evaluating the trained policy") and done == 0:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        execute(resolved, resume=False, fresh=False, report=report)
    assert load(tmp_path / resolved.spec.run_id / RECORD).status == "done", "what was finished is kept"


def test_what_a_method_acts_by_is_kept_with_the_policy(tmp_path: Path) -> None:
    record = play(settle("ilql", tmp_path))
    folder = tmp_path / record.run_id / "policy"
    found = {str(p.relative_to(folder)) for p in folder.rglob("*.safetensors")}
    assert found == {"model.safetensors", "heads/heads.safetensors", "behaviour/model.safetensors"}


def test_methods_share_a_behaviour_model(tmp_path: Path) -> None:
    cache = Path(os.environ["SHIQ_BENCH_HOME"]) / "behaviour"
    play(settle("qsft", tmp_path))
    before = set(cache.iterdir())
    play(settle("ilql", tmp_path))
    assert set(cache.iterdir()) == before
    play(settle("ilql", tmp_path, learning_rate=1e-4))
    assert len(set(cache.iterdir())) == len(before) + 1


def test_vllm_gives_way_where_two_models_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for vllm, the record says who sampled; what does not need vllm is in the cache already."""
    from shiq_bench.runs import context as run

    make, engines = run.make_generator, []

    def counted(engine: Any, *a: Any, **k: Any) -> Any:
        engines.append(engine)
        return make("hf", *a, **k)

    monkeypatch.setattr(run, "make_generator", counted)
    record = play(settle("ilql", tmp_path, engine="vllm"))
    assert engines == ["vllm", "hf"]
    assert "sampled by transformers: acting mixes two models' logits" in record.deviations


def test_fresh_data_are_counted_and_their_prompts_recorded(tmp_path: Path) -> None:
    for algo, settings, each in (("reinforce", {}, 8), ("shiq", {"collect": "fresh", "samples": 3}, 3)):
        record = play(settle(algo, tmp_path, **settings))
        assert record.data == {"prompts": 3, "fresh_samples_a_prompt": each}
        asked = sum(h["prompts"] for h in record.training)
        assert record.consumed["samples_drawn"] == record.consumed["reward_calls"] == each * asked
        assert record.consumed["trajectories"] == each * asked


def test_the_sampler_is_compared_with_the_trainer_at_every_update(tmp_path: Path) -> None:
    """Of fresh samples alone; transformers computes as the trainer does, so weights are 1 and none is truncated."""
    plain = play(settle("rloo", tmp_path))
    assert all(0 <= h["sampler_kl"] < h["sampler_gap"] < 1e-5 for h in plain.training)
    weighed = play(settle("rloo", tmp_path, importance="sequence"))
    assert weighed.run_id != plain.run_id
    for h in weighed.training:
        assert h["importance_weight"] == pytest.approx(1, abs=1e-4) and h["importance_truncated"] == 0
    assert not any("sampler_gap" in h for h in play(settle("shiq", tmp_path)).training)
    assert all("sampler_gap" in h for h in play(settle("shiq", tmp_path, collect="fresh", samples=3)).training)


def test_an_on_policy_method_on_stored_data_is_marked(tmp_path: Path) -> None:
    record = play(settle("reinforce", tmp_path, collect="offline", allow_off_policy=True))
    assert any("on-policy" in d for d in record.deviations) and record.data["trajectories"] == 192


def test_unit_returns_are_divided_by_the_largest(tmp_path: Path) -> None:
    """A task that pays up to 2 says so, and the method that wants returns in [0, 1] gets them."""
    record = play(settle("qsft", tmp_path, reward_scale=2))
    assert "rewards divided by 2, the largest return" in record.deviations
    plain = play(settle("qsft", tmp_path))
    np.testing.assert_allclose(record.training[0]["loss"], plain.training[0]["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("algo", "settings", "message"),
    [
        ("reinforce", {"collect": "offline"}, "--allow-off-policy"),
        ("ilql", {"collect": "fresh", "samples": 2}, "collect=offline"),
        ("shiq", {"collect": "fresh"}, "samples=1"),
        ("dpo", {"collect": "fresh", "samples": 1}, "samples=2"),
        ("shiq", {"seeds": 3}, "--seed"),
        ("qsft", {"center_rewards": True}, "center-rewards"),
        ("shiq", {"importance": "token"}, "data are stored: leave importance out"),
        ("rloo", {"importance": "token", "allow_off_policy": True}, "data are stored: leave importance out"),
        ("shiq", {"importance": "token", "collect": "fresh", "samples": 2}, "shiq learns from the data of others too"),
        ("rloo", {"importance_cap": 3}, "set importance to token or sequence"),
        ("rloo", {"importance": "token", "importance_cap": 0.5}, "importance_cap is 0.5; expected 1 or more"),
        ("rloo", {"importance": "token", "model": "table"}, "a table samples from its own policy"),
    ],
)
def test_refused_before_anything_is_written(algo: str, settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        play(settle(algo, tmp_path / "results", **settings))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("algo", "settings", "message"),
    [
        ("dpo", {"enumerated": False, "draws": 1}, "pairs need two; raise samples"),
        ("kto", {"enumerated": False, "draws": 1}, "labels.* need two; raise samples"),
        ("kto", {"contexts": 1}, "two prompts"),
    ],
)
def test_data_that_do_not_serve_are_refused(algo: str, settings: Any, message: str, tmp_path: Path) -> None:
    resolved = settle(algo, tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        play(resolved)
    assert load(tmp_path / resolved.spec.run_id / RECORD).status == "failed"


def test_returns_outside_the_unit_interval_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = settle("qsft", tmp_path, reward_scale=3)
    monkeypatch.setattr(type(resolved.task), "largest_return", 1.0)
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        play(resolved)


def test_a_model_that_takes_no_trees_is_padded_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers in padded rows, under the same name of the run."""
    tree = play(settle("sft", tmp_path / "tree"))
    monkeypatch.setattr(Policy, "_takes_trees", lambda policy: False)
    padded = play(settle("sft", tmp_path / "padded"))
    assert "layout" not in tree.data.get("settled", {})
    assert padded.data["settled"]["layout"].startswith("padded, ")
    assert padded.run_id == tree.run_id
    assert [line["loss"] for line in padded.training] == pytest.approx(
        [line["loss"] for line in tree.training], rel=1e-3
    )
