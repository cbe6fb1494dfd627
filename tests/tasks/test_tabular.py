"""Bandits, trees and grids: what their options mean, and what they supply as data and as a language."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shiq_bench.api.task import Codec
from shiq_bench.api.trajectory import Completion, Trajectory
from shiq_bench.records.errors import UserError
from shiq_bench.runs.settings import resolve
from shiq_bench.tabular.exact import kl, soft_optimum
from shiq_bench.tabular.task import LARGEST, TabularTask
from shiq_bench.tabular.world import World, log_softmax
from shiq_bench.tasks.bandit import Bandit
from shiq_bench.tasks.gridworld import Gridworld
from shiq_bench.tasks.tree import Tree

TASKS = {
    "bandit": Bandit(),
    "tree": Tree(),
    "final": Tree(reward="final"),
    "sparse": Gridworld(),
    "dense": Gridworld(reward="dense"),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def actions_of(trajectory: Trajectory) -> list[int]:
    return [i for i, a in zip(trajectory.token_ids, trajectory.action_mask, strict=True) if a]


def returns_of(world: World, n: int = 3000) -> np.ndarray:
    """Returns of random episodes, of the optimum's among them."""
    flat = np.full(world.reference.shape, 1 / world.actions)
    rng = np.random.default_rng(0)
    greedy = np.exp(soft_optimum(world, 1e-3)[0])
    return np.concatenate([world.draw(p, n, rng).returns for p in (flat, greedy)])


# --- instances ---


@each_task
def test_instances_are_numbered_and_differ(task: TabularTask) -> None:
    def same(a: World, b: World) -> dict[str, bool]:
        return {
            name: np.array_equal(getattr(a, name), getattr(b, name))
            for name in ("next_state", "rewards", "start", "reference", "behaviour")
        }

    assert all(same(task.world(5), replace(task, instance=3).world(2)).values())
    other = same(task.world(0), task.world(1))
    assert not other["reference"] and not other["behaviour"]
    assert not other["rewards"] or not other["start"]


@each_task
def test_options_of_the_data_leave_the_problem_alone(task: TabularTask) -> None:
    world = task.world(0)
    for options in ({"off_policy": 3.0}, {"coverage": 0.5}, {"enumerated": not task.enumerated}, {"draws": 7}):
        other = replace(task, **options).world(0)  # type: ignore[arg-type]
        for name in ("next_state", "rewards", "start", "reference"):
            np.testing.assert_array_equal(getattr(other, name), getattr(world, name))


@each_task
def test_off_policy_is_a_distance_from_the_reference(task: TabularTask) -> None:
    """It is KL(mu || rho) in nats an episode, whatever is explored; zero is the reference to the last bit."""
    for off_policy in (0.0, 0.5, 1.0, 2.0):
        for explore in (0.0, 0.2):
            world = replace(task, off_policy=off_policy, explore=explore).world(0)
            log_rho = log_softmax(world.reference)
            if off_policy == explore == 0:
                np.testing.assert_array_equal(world.behaviour, np.exp(log_rho))
            far = kl(world, np.log(world.behaviour), log_rho)
            assert far == pytest.approx(off_policy, rel=1e-9, abs=1e-14) or (off_policy == 0 and explore and far < 1)


def test_no_further_than_the_instance_allows() -> None:
    """Exploring keeps the behaviour near; what cannot be had is an error that says how far it goes."""
    with pytest.raises(UserError, match=r"off_policy is 9.0 nats, and instance 2 allows about \d") as caught:
        Bandit(explore=0.5, off_policy=9.0).world(2)
    assert "\n" not in str(caught.value)
    narrow = Bandit(coverage=0.05, off_policy=0.1).world(0)  # one arm of twenty is further than a tenth by itself
    assert kl(narrow, np.log(np.maximum(narrow.behaviour, 1e-300)), log_softmax(narrow.reference)) > 1


@pytest.mark.parametrize(
    ("task", "coverage", "kept"),
    [
        (Bandit(arms=20), 0.25, 5),
        (Bandit(arms=20), 0.22, 4),
        (Tree(), 0.25, 1),
        (Tree(), 0.5, 2),
        (Tree(), 0.01, 1),
        (Gridworld(), 0.6, 3),
    ],
)
def test_coverage_leaves_exactly_that_share_of_actions(task: TabularTask, coverage: float, kept: int) -> None:
    """The same number in every state, not always the same actions, in the proportions they had in the reference."""
    task = replace(task, off_policy=0.0)
    full, world = task.world(0), replace(task, coverage=coverage).world(0)
    taken = world.behaviour > 0
    assert (taken.sum(-1) == kept).all()
    assert len(np.unique(taken, axis=0)) > 1
    among = np.where(taken, full.behaviour, 0)
    np.testing.assert_allclose(world.behaviour, among / among.sum(-1, keepdims=True), rtol=1e-12)


def test_exploring_mixes_the_actions_that_are_kept() -> None:
    task = Tree(coverage=0.5, off_policy=0.0)
    none, some, all_ = (replace(task, explore=e).world(0).behaviour for e in (0.0, 0.25, 1.0))
    np.testing.assert_allclose(all_, np.where(none > 0, 0.5, 0))
    np.testing.assert_allclose(some, 0.75 * none + 0.25 * all_)


@each_task
def test_returns_lie_between_zero_and_the_scale(task: TabularTask) -> None:
    returns = returns_of(task.world(0))
    assert returns.min() >= 0 and returns.max() <= task.largest_return + 1e-12 == 1 + 1e-12
    assert returns.max() > 0.5 and returns.std() > 0.01
    scaled = replace(task, reward_scale=3.0)
    assert scaled.largest_return == 3
    np.testing.assert_allclose(scaled.world(0).rewards, 3 * task.world(0).rewards)


def test_a_tree_pays_the_same_at_every_token_or_at_the_last() -> None:
    token, final = (Tree(depth=4, reward=r).world(2) for r in ("token", "final"))  # type: ignore[arg-type]
    ours, theirs = token.completions(), final.completions()
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    np.testing.assert_allclose(ours.returns, theirs.returns, rtol=1e-12)
    assert not theirs.rewards[:, :-1].any() and (ours.rewards > 0).all()


def test_a_tree_is_every_sequence_of_its_depth() -> None:
    """One path for each, through states that no other prefix has."""
    world = Tree(actions=3, depth=3, contexts=2).world(0)
    every = world.completions()
    sequences = list(itertools.product(range(3), repeat=3))
    np.testing.assert_array_equal(every.actions, sequences * 2)
    owner: dict[int, tuple[int, ...]] = {}
    for c, states, actions in zip(every.context, every.states, every.actions, strict=True):
        for t, s in enumerate(states):
            prefix = (int(c), *map(int, actions[:t]))
            assert owner.setdefault(int(s), prefix) == prefix
    assert len(set(owner.values())) == len(owner) == world.size


def test_a_bandit_ends_at_once() -> None:
    world = Bandit(arms=5, contexts=3).world(0)
    assert (world.next_state == world.size).all() and world.size == 3
    assert world.count == 15


@pytest.mark.parametrize("reward", ["sparse", "dense"])
@pytest.mark.parametrize("seed", range(3))
def test_a_grid_moves_as_its_docstring_says(reward: str, seed: int) -> None:
    """Walked again with coordinates: walls stop, the goal ends, dense rewards are nearness over the horizon."""
    width, horizon = 4, 6
    world = Gridworld(width=width, horizon=horizon, contexts=15, reward=reward).world(seed)  # type: ignore[arg-type]
    ends = np.flatnonzero((world.next_state == world.size).all(-1) & (np.arange(world.size) < width**2))
    assert not len(ends), "before the last step only moves onto the goal end"
    corners = {(r, c) for r in (0, width - 1) for c in (0, width - 1)}
    moves = [(-1, 0), (0, 1), (1, 0), (0, -1), (0, 0)]

    def move(cell: tuple[int, int], action: int) -> tuple[int, int]:
        row, column = (min(max(x + d, 0), width - 1) for x, d in zip(cell, moves[action], strict=True))
        return row, column

    first_row = world.next_state[: width**2]
    goal = next(
        g
        for g in corners
        if all(
            (move(divmod(s, width), a) == g) == (first_row[s, a] == world.size)
            for s in range(width**2)
            for a in range(5)
        )
    )
    starts = [divmod(int(s), width) for s in world.start]
    assert len(set(starts)) == 15 and goal not in starts and max(world.start) < width**2
    rng = np.random.default_rng(seed)
    arrived = 0
    for _ in range(300):
        context = int(rng.integers(15))
        actions = rng.integers(5, size=horizon).tolist()
        cell, paid, steps = starts[context], 0.0, 0
        for t, action in enumerate(actions):
            cell, steps = move(cell, action), t + 1
            distance = abs(cell[0] - goal[0]) + abs(cell[1] - goal[1])
            near = 1 - distance / (2 * (width - 1))
            if cell == goal:
                paid += 1 if reward == "sparse" else (horizon - t) / horizon
                arrived += 1
                break
            paid += 0 if reward == "sparse" else near / horizon
        states, rewards = world.walk(context, actions)
        assert len(states) == steps
        assert sum(rewards) == pytest.approx(paid, abs=1e-12)
    assert arrived > 5


# --- data ---


@each_task
def test_sampled_data_are_the_behaviours(task: TabularTask) -> None:
    task = replace(task, enumerated=False, draws=30)
    world, data = task.world(1), task.data(1)
    assert data == task.data(1)
    assert Counter(t.prompt_id for t in data) == {str(c): 30 for c in range(len(world.start))}
    for t in data:
        actions = actions_of(t)
        states, rewards = world.walk(int(t.prompt_id), actions)
        assert len(states) == len(actions) and world.next_state[states[-1], actions[-1]] == world.size
        assert t.rewards == (0.0, 0.0, *rewards)
        assert t.sampler_logp == (0.0, 0.0, *np.log(world.behaviour)[states, actions])
        assert (t.source, t.weight, t.truncated) == ("behaviour", 1 / 30, False)


@pytest.mark.parametrize("task", [Bandit(enumerated=True), Tree(), Tree(coverage=0.5, reward="final")])
def test_enumerated_data_are_every_completion_with_its_probability(task: TabularTask) -> None:
    world, data = task.world(0), task.data(0)
    every = world.completions()
    expected = {
        (str(c), tuple(a)): world.behaviour[s, a].prod()
        for c, s, a in zip(every.context, every.states, every.actions.tolist(), strict=True)
    }
    found = {(t.prompt_id, tuple(actions_of(t))): t.weight for t in data}
    assert len(found) == len(data)
    assert found == pytest.approx({k: p for k, p in expected.items() if p > 0})
    totals = [sum(t.weight for t in data if t.prompt_id == str(c)) for c in range(len(world.start))]
    np.testing.assert_allclose(totals, 1, rtol=1e-12)


def test_enumerated_data_of_a_grid_cover_its_transitions() -> None:
    task = Gridworld(enumerated=True)
    world, data = task.world(0), task.data(0)
    passed = np.zeros(world.next_state.shape, dtype=bool)
    for t in data:
        actions = actions_of(t)
        passed[world.walk(int(t.prompt_id), actions)[0], actions] = True
    reached = {int(s) for s in world.start} | {int(s) for s in world.next_state[passed]} - {world.size}
    np.testing.assert_array_equal(passed.all(-1), [s in reached for s in range(world.size)])
    np.testing.assert_array_equal(passed.any(-1), passed.all(-1))
    for c in range(2):
        assert sum(t.weight for t in data if t.prompt_id == str(c)) == pytest.approx(1)


@pytest.mark.parametrize(
    "task",
    [Tree(actions=2, contexts=2), Tree(actions=4, contexts=12), Bandit(contexts=380), Gridworld(contexts=20, width=5)],
)
def test_every_context_has_its_own_prompt(task: TabularTask) -> None:
    """Two different tokens of the world; all contexts that are allowed have one."""
    world = task.world(0)
    prompts = {t.token_ids[:2] for t in task.data(0)}
    assert len(prompts) == len(world.start)
    assert all(a != b and min(a, b) >= 0 and max(a, b) < world.actions for a, b in prompts)


def test_defaults_make_tables_unless_a_model_is_asked_for() -> None:
    task = Tree(kl_strength=0.3)
    table, tiny = task.defaults_for(None), task.defaults_for("tiny")
    assert table["model"] == "table" and "model" not in tiny
    assert table == task.defaults_for("table")
    assert table["algorithm.beta"] == tiny["algorithm.beta"] == 0.3
    assert (
        table["labels"] == "bradley_terry" and replace(task, enumerated=False).defaults_for(None)["labels"] == "sampled"
    )


# --- as a language ---


def say(*tokens: int) -> Completion:
    return Completion(tokens, tuple(-0.1 * (i + 1) for i in range(len(tokens))), "length")


class NoCodec:
    """A world needs none: it speaks in tokens."""

    end_ids = ()


def test_an_answer_is_cut_where_its_episode_ends() -> None:
    task = Tree(actions=4, depth=3)
    (episode,) = task.episodes(["1"], NoCodec(), 100)  # type: ignore[arg-type]
    assert episode.max_new_tokens == 3
    task.step([episode], [say(2, 0, 3, 1, 1)])
    assert episode.done
    ((trajectory, score),) = task.finish([episode], "someone")
    world = task.world(0)
    rewards = world.walk(1, [2, 0, 3])[1]
    assert actions_of(trajectory) == [2, 0, 3]
    assert trajectory.rewards == (0.0, 0.0, *rewards)
    assert trajectory.sampler_logp == pytest.approx((0, 0, -0.1, -0.2, -0.3))
    assert score.total == pytest.approx(sum(rewards)) and score.metrics["length"] == 3


def test_an_answer_that_a_limit_cut_is_gone_on_with() -> None:
    task = Gridworld(width=3, horizon=5)
    (episode,) = task.episodes(["0"], NoCodec(), 100)  # type: ignore[arg-type]
    world = task.world(0)
    stay = 4
    for said in (2, 2):
        task.step([episode], [say(*[stay] * said)])
        assert not episode.done
    assert episode.max_new_tokens == 1
    with pytest.raises(UserError, match="stops after 4 tokens"):
        task.finish([episode], "someone")
    task.step([episode], [say(stay, stay)])
    assert episode.done
    ((trajectory, _),) = task.finish([episode], "someone")
    assert actions_of(trajectory) == [stay] * 5
    assert trajectory.total_reward == pytest.approx(sum(world.walk(0, [stay] * 5)[1]))


@each_task
def test_prompts_and_vocabulary_are_the_worlds(task: TabularTask) -> None:
    world = task.world(0)
    assert len(task.tiny().words) == world.actions
    for split in ("start", "rl", "heldout"):
        assert task.prompts(split) == [str(c) for c in range(len(world.start))]
    codec: Codec = NoCodec()  # type: ignore[assignment]
    spec = resolve("sft", "tree", {}).spec
    data = task.trajectories("rl", codec, spec)
    assert data == task.data(0) and not task.trajectories("heldout", codec, spec)
    episodes = task.episodes(task.prompts("rl"), codec, 100)
    prompts = {t.prompt_id: t.token_ids[:2] for t in data}
    assert {e.prompt_id: tuple(e.transcript.token_ids) for e in episodes} == prompts
    assert max(len(actions_of(t)) for t in data) <= episodes[0].max_new_tokens  # type: ignore[operator]


# --- bad input ---


@pytest.mark.parametrize(
    ("cls", "options", "match"),
    [
        (Tree, {"coverage": 0.0}, "coverage is 0"),
        (Tree, {"coverage": 1.5}, "coverage"),
        (Bandit, {"coverage": float("nan")}, "coverage"),
        (Bandit, {"off_policy": -1.0}, "off_policy"),
        (Bandit, {"off_policy": float("nan")}, "off_policy"),
        (Bandit, {"off_policy": float("inf")}, "off_policy"),
        (Bandit, {"explore": -0.1}, "explore"),
        (Bandit, {"explore": 1.1}, "explore"),
        (Bandit, {"explore": float("nan")}, "explore"),
        (Gridworld, {"kl_strength": 0.0}, "kl_strength"),
        (Gridworld, {"reward_scale": -1.0}, "reward_scale"),
        (Gridworld, {"reward_scale": float("inf")}, "reward_scale"),
        (Tree, {"draws": 0}, "draws is 0"),
        (Tree, {"instance": -1}, "instance -1"),
        (Tree, {"actions": 1}, "actions=1"),
        (Tree, {"depth": 0}, "depth=0"),
        (Tree, {"depth": 10**9}, "depth 1 to 20"),
        (Tree, {"depth": 15}, f"at most {LARGEST}"),
        (Tree, {"contexts": 13}, "contexts=13"),
        (Tree, {"contexts": 0}, "contexts=0"),
        (Bandit, {"arms": 1, "contexts": 1}, "arms=1"),
        (Bandit, {"arms": 2, "contexts": 3}, "contexts=3"),
        (Bandit, {"arms": LARGEST}, "make it smaller"),
        (Gridworld, {"width": 1}, "width=1"),
        (Gridworld, {"width": 10**6}, "make it smaller"),
        (Gridworld, {"horizon": 51}, "horizon=51"),
        (Gridworld, {"contexts": 16}, "fewer contexts than cells"),
        (Gridworld, {"contexts": 21, "width": 5}, "at most 20"),
    ],
)
def test_bad_options_are_errors_of_one_line(cls: type[TabularTask], options: Mapping[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        cls(**options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_too_many_completions_to_enumerate_are_an_error_of_one_line() -> None:
    with pytest.raises(UserError, match="too many to enumerate") as caught:
        Tree(depth=6).data(0)
    assert "\n" not in str(caught.value)
