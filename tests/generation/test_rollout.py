"""Episodes stepped together, by a generator and by demonstrations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from shiq_bench.api.task import Codec, Episode, Task, TextCodec
from shiq_bench.api.trajectory import Completion, Score, Trajectory, Transcript
from shiq_bench.generation.generator import Generator, Request
from shiq_bench.generation.rollout import replay, rollout

END = 0


class Digits(TextCodec):
    """A codec whose answers are strings of digits, one id each."""

    end_ids: tuple[int, ...] = (END,)
    tiny = True

    def prompt(self, messages: Sequence[Any], tools: Any = None) -> list[int]:
        return [10]

    def reply(self, messages: Sequence[Any], ended: bool, calls: Any = None) -> list[int]:
        return [11, 12] if ended else [END, 11, 12]

    def answer(self, text: str) -> list[int]:
        return [*map(int, text), END]

    def text(self, token_ids: Sequence[int]) -> str:
        return "".join(str(i) for i in token_ids if i != END)


@dataclass(frozen=True)
class Turns(Task):
    """As many turns as the prompt's name says."""

    stuck: bool = False
    gold: tuple[str | None, ...] = ("1", "22", "333")
    seen: list[list[str]] = field(default_factory=list, compare=False)

    def prompts(self, split: str) -> list[str]:
        return ["1", "2", "3"]

    def episodes(self, prompt_ids: Sequence[str], codec: Codec, max_length: int) -> list[Episode]:
        return [Turn(p, Transcript(codec.prompt([]))) for p in prompt_ids]

    def step(self, episodes: Sequence[Episode], completions: Sequence[Completion]) -> None:
        self.seen.append([e.prompt_id for e in episodes])
        if self.stuck:
            return
        for episode, completion in zip(episodes, completions, strict=True):
            assert isinstance(episode, Turn)
            episode.transcript.act(completion)
            episode.turn += 1
            if episode.turn == int(episode.prompt_id):
                episode.done = True
            else:
                episode.transcript.observe(Digits().reply([], completion.finish == "stop"))

    def finish(self, episodes: Sequence[Episode], source: str) -> list[tuple[Trajectory, Score]]:
        return [(e.transcript.trajectory(e.prompt_id, {}, source), Score(0.0)) for e in episodes]

    def demonstration(self, episode: Episode) -> str | None:
        assert isinstance(episode, Turn)
        return self.gold[episode.turn]


class Turn(Episode):
    turn = 0


class Echo(Generator):
    """Answers two ids made of the seed; remembers what it was asked."""

    name = "echo"
    max_length = 100

    def __init__(self) -> None:
        self.asked: list[list[Request]] = []

    def _generate(self, requests: list[Request], temperature: float, stop_ids: frozenset[int]) -> list[Completion]:
        self.asked.append(requests)
        assert stop_ids == {END}
        out = []
        for r in requests:
            ids = (1 + r.seed % 9, END)[: r.limit]
            out.append(Completion(ids, (-0.5,) * len(ids), "stop" if len(ids) == 2 else "length"))
        return out

    def load(self, folder: Any) -> None: ...

    def close(self) -> None: ...


def play(task: Turns, prompts: list[str], **changes: Any) -> tuple[list[Episode], Echo]:
    echo, episodes = Echo(), task.episodes(prompts, Digits(), 50)
    options = {"temperature": 1.0, "max_tokens": 5, "max_length": 50, "seed": 0, **changes}
    rollout(task, episodes, echo, Digits(), **options)
    return episodes, echo


def test_live_episodes_are_stepped_together_until_all_are_done() -> None:
    task, progress = Turns(), []
    episodes, echo = play(task, ["1", "3", "2"], on_progress=lambda done, total: progress.append((done, total)))
    assert task.seen == [["1", "3", "2"], ["3", "2"], ["3"]]
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert all(e.done and not e.transcript.truncated for e in episodes)
    # What is asked next is the transcript so far, ids and all.
    assert echo.asked[1][0].prompt == episodes[1].transcript.token_ids[: len(echo.asked[1][0].prompt)]
    last = episodes[1].transcript
    assert last.action_mask == [False, True, True, False, False, True, True, False, False, True, True]
    assert [p for p, a in zip(last.logps, last.action_mask, strict=True) if a] == [-0.5] * 6


def test_seeds_depend_on_place_and_step_and_nothing_else() -> None:
    _, three = play(Turns(), ["3", "3", "3"])
    seeds = [[r.seed for r in step] for step in three.asked]
    assert len({s for step in seeds for s in step}) == 9
    _, fewer = play(Turns(), ["1", "3", "1"])
    assert [fewer.asked[0][1].seed, fewer.asked[1][0].seed, fewer.asked[2][0].seed] == [step[1] for step in seeds]
    _, other = play(Turns(), ["3", "3", "3"], seed=1)
    assert not {s for step in seeds for s in step} & {r.seed for step in other.asked for r in step}


def test_room_is_the_least_of_three_limits() -> None:
    _, echo = play(Turns(), ["3"], max_tokens=5, max_length=9)
    assert [r.limit for step in echo.asked for r in step] == [5, 4]  # 1 id in, then 5
    task, codec = Turns(), Digits()
    episodes = task.episodes(["1"], codec, 50)
    episodes[0].max_new_tokens = 1
    echo = Echo()
    rollout(task, episodes, echo, codec, temperature=1.0, max_tokens=5, max_length=50, seed=0)
    assert echo.asked[0][0].limit == 1


def test_an_episode_without_room_is_cut() -> None:
    episodes, echo = play(Turns(), ["3", "1"], max_length=5)
    assert [len(step) for step in echo.asked] == [2]
    assert [(e.done, e.transcript.truncated) for e in episodes] == [(True, True), (True, False)]


def test_a_task_that_does_nothing_is_caught() -> None:
    with pytest.raises(RuntimeError, match="neither ended"):
        play(Turns(stuck=True), ["1"])


def test_replay_plays_demonstrations_through_the_task() -> None:
    task, codec = Turns(), Digits()
    episodes = task.episodes(["1", "2"], codec, 50)
    assert replay(task, episodes, codec) == episodes
    assert episodes[1].transcript.token_ids == [10, 1, END, 11, 12, 2, 2, END]
    assert episodes[1].transcript.action_mask == [False, True, True, False, False, True, True, True]
    assert set(episodes[1].transcript.logps) == {0.0}


def test_replay_sets_aside_what_is_not_demonstrated_to_its_end() -> None:
    for task, limit in ((Turns(gold=("1", None, None)), 1 << 62), (Turns(), 7)):
        episodes = task.episodes(["2", "1"], Digits(), 50)
        assert replay(task, episodes, Digits(), limit) == [episodes[1]]
        assert episodes[0].done and episodes[0].transcript.truncated
        assert episodes[0].transcript.token_ids == [10, 1, END, 11, 12]  # no half answers


def test_the_package_imports_no_engine() -> None:
    code = "import sys, shiq_bench.generation.rollout; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
