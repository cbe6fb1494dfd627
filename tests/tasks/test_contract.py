"""What every registered task must do; a new one is tested by being registered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.api.registry import tasks
from shiq_bench.api.task import Codec, Episode, Task
from shiq_bench.api.trajectory import Completion
from shiq_bench.models.tiny import Recorder
from shiq_bench.records.hashing import stable_hash
from shiq_bench.runs.settings import resolve
from shiq_bench.training.starting_policy import build_tiny, demonstrations
from tests.preferences import options

SPLITS = ("start", "rl", "heldout")


@pytest.fixture(scope="module", params=tasks.names())
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Task]]:
    task = tasks.get(request.param)(**options(request.param, tmp_path_factory.mktemp("data")))
    yield request.param, task
    task.close()


def nonsense(episodes: Sequence[Episode]) -> list[Completion]:
    """An answer that is no answer: three low ids and, where there is room, nothing more."""
    out = []
    for episode in episodes:
        ids = (1, 0, 1)[: episode.max_new_tokens or 3]
        out.append(Completion(ids, (-0.5,) * len(ids), "length"))
    return out


def play(task: Task, codec: Codec, prompts: Sequence[str], limit: int = 1 << 16) -> list[Episode]:
    episodes = task.episodes(prompts, codec, limit)
    for _ in range(500):
        live = [e for e in episodes if not e.done]
        if not live:
            return episodes
        task.step(live, nonsense(live))
    raise AssertionError("episodes that never end")


def test_declares_itself(made: tuple[str, Task]) -> None:
    name, task = made
    assert dataclasses.is_dataclass(task), "a task is a dataclass"
    assert task.metrics, "a task says in `metrics` what it measures"
    assert len({m.name for m in task.metrics}) == len(task.metrics)
    assert resolve("sft", name, {}).spec.task == name, "its defaults must make a valid run"


def test_splits_are_fixed_and_not_empty(made: tuple[str, Task], tmp_path: Path) -> None:
    name, task = made
    for split in SPLITS:
        prompts = task.prompts(split)
        assert prompts and prompts == tasks.get(name)(**options(name, tmp_path)).prompts(split)
        assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("source", ["someone"])
def test_scores_fit_trajectories(made: tuple[str, Task], source: str) -> None:
    """Even for nonsense: rewards on actions, their sum the total, every declared metric a finite number."""
    _, task = made
    prompts = [p for p in task.prompts("rl")[:2] for _ in range(2)]
    episodes = play(task, Recorder(), prompts)
    finished = task.finish(episodes, source)
    assert [t.prompt_id for t, _ in finished] == prompts
    for trajectory, score in finished:
        assert trajectory.source == source and any(trajectory.action_mask)
        assert trajectory.total_reward == pytest.approx(score.total)
        assert sum(score.turns) == pytest.approx(score.total)
        unsaid = {m.name for m in task.metrics if not m.exact and not m.optional} - set(score.metrics)
        assert not unsaid, f"finish scores without {unsaid}, which the task declares in `metrics`"
        assert {name.removesuffix("/n") for name in score.metrics} <= {m.name for m in task.metrics}
        assert all(v == v and abs(v) < 1e9 for v in score.metrics.values())
        stable_hash({"metrics": dict(score.metrics), "details": dict(score.details)})  # JSON, without NaN


def test_what_it_demonstrates_scores_at_least_as_well_as_nonsense(made: tuple[str, Task]) -> None:
    name, task = made
    codec, spec = Recorder(), resolve("sft", name, {}).spec
    shown: list[Any] = demonstrations(task, "rl", codec, 1 << 16) or task.trajectories("rl", codec, spec)
    assert shown, "a task has demonstrations or ready-made trajectories to learn from"
    worst = task.finish(play(task, codec, task.prompts("rl")[:4]), "nonsense")
    assert max(t.total_reward for t in shown) >= max(s.total for _, s in worst)


def test_the_embedded_model_is_named_and_cached(
    made: tuple[str, Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    name, task = made
    recipe = task.tiny()
    if recipe is None or recipe.steps:
        pytest.skip("no embedded model, or one that takes training; the main job builds it")
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path))
    first = build_tiny(name, task, lambda *_: None)
    assert first == build_tiny(name, task, lambda *_: None)
    assert list(first.glob("*.safetensors"))
