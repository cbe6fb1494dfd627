"""Finite worlds: their structure, their enumeration, and what is drawn from them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from shiq_bench.records.errors import UserError
from shiq_bench.tabular.world import ENUMERABLE, Paths, World, log_softmax
from shiq_bench.tasks.bandit import Bandit
from shiq_bench.tasks.gridworld import Gridworld
from shiq_bench.tasks.tree import Tree


def world_of(
    next_state: list[list[int]], rewards: list[list[float]] | None = None, start: list[int] | None = None, seed: int = 0
) -> World:
    """A world written by hand, with a random reference and the behaviour equal to it."""
    table = np.array(next_state)
    reference = np.random.default_rng(seed).standard_normal(table.shape)
    paid = np.random.default_rng(seed + 1).random(table.shape) if rewards is None else np.array(rewards, dtype=float)
    return World(table, paid, np.array(start or [0]), reference, np.exp(log_softmax(reference)))


def ragged_tree(seed: int = 0) -> World:
    """Two contexts; completions of one to three actions. States 0 and 1 start; 9 is the end."""
    return world_of(
        [[2, 9, 3], [9, 4, 5], [9, 9, 6], [7, 9, 8], [9, 9, 9], [9, 9, 9], [9, 9, 9], [9, 9, 9], [9, 9, 9]],
        start=[0, 1],
        seed=seed,
    )


def chances(world: World, policy: np.ndarray, paths: Paths) -> np.ndarray:
    """Probability of each path under a policy, action by action. ``[N]``"""
    out = []
    for states, actions, mask in zip(paths.states, paths.actions, paths.mask, strict=True):
        p = 1.0
        for s, a, live in zip(states, actions, mask, strict=True):
            p *= policy[s, a] if live else 1.0
        out.append(p)
    return np.array(out)


def keys(paths: Paths) -> list[tuple[int, ...]]:
    """Context and actions of each path."""
    rows = zip(paths.context, paths.actions, paths.mask, strict=True)
    return [(int(c), *map(int, a[m])) for c, a, m in rows]


SMALL_GRID = Gridworld(width=2, horizon=3).world(0)
TREE = Tree(actions=3, depth=3).world(1)
WORLDS = {
    "bandit": Bandit(arms=4, contexts=3).world(0),
    "tree": TREE,
    "grid": SMALL_GRID,
    "ragged": ragged_tree(),
}
each_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


# --- structure ---


def test_a_transition_that_leads_back_is_refused() -> None:
    with pytest.raises(ValueError, match="higher one"):
        world_of([[1, 2], [1, 2]])
    with pytest.raises(ValueError, match="higher one"):
        world_of([[1, 2], [0, 2]])


def test_a_behaviour_that_is_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        replace(TREE, behaviour=TREE.behaviour * 1.01)


@each_world
def test_layers_hold_every_state_once_and_transitions_lead_to_later_ones(world: World) -> None:
    np.testing.assert_array_equal(np.sort(np.concatenate(world.layers)), np.arange(world.size))
    depth = np.empty(world.size + 1)
    depth[-1] = np.inf
    for d, rows in enumerate(world.layers):
        depth[rows] = d
    assert (depth[world.next_state] > depth[:-1, None]).all()
    assert len(world.layers) == world.completions().mask.sum(-1).max()


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        (TREE, True),
        (WORLDS["bandit"], True),
        (WORLDS["ragged"], True),
        (SMALL_GRID, False),
        (Gridworld(horizon=1).world(0), True),
        (world_of([[1, 1], [2, 2]]), False),  # two actions to one state
        (world_of([[2, 2], [2, 2]], start=[0, 0]), False),  # two contexts, one start
        (world_of([[1, 2], [2, 2]], start=[0, 1]), False),  # one context starts where the other passes
    ],
)
def test_is_tree(world: World, expected: bool) -> None:
    assert world.is_tree is expected


# --- walking ---


def test_walking_stops_at_the_end() -> None:
    world = world_of([[1, 3], [2, 3], [3, 3]], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    assert world.walk(0, [0, 1, 1, 1]) == ([0, 1], [0.1, 0.4])
    assert world.walk(0, [0]) == ([0], [0.1])
    assert world.walk(0, []) == ([], [])


def test_paths_are_padded_on_the_right() -> None:
    world = world_of([[1, 3], [2, 3], [3, 3]], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    paths = world.paths([0, 0], [[1, 1, 1], [0, 0, 1]])
    np.testing.assert_array_equal(paths.states, [[0, 0, 0], [0, 1, 2]])
    np.testing.assert_array_equal(paths.actions, [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(paths.mask, [[True, False, False], [True, True, True]])
    np.testing.assert_allclose(paths.rewards, [[0.2, 0, 0], [0.1, 0.3, 0.6]])
    np.testing.assert_allclose(paths.returns, [0.2, 1.0])


# --- enumeration ---


@each_world
def test_completions_are_all_there_once_and_end(world: World) -> None:
    """Every sequence of as many actions as the longest path, cut where it ends, is one of them, and nothing else."""
    every = world.completions()
    longest = len(world.layers)
    expected = {
        (c, *sequence[: len(world.walk(c, sequence)[0])])
        for c in range(len(world.start))
        for sequence in itertools.product(range(world.actions), repeat=longest)
    }
    assert set(keys(every)) == expected
    assert len(every.context) == len(expected) == world.count
    assert (np.diff(every.context) >= 0).all()
    last = every.mask.sum(-1) - 1
    rows = np.arange(len(last))
    assert (world.next_state[every.states[rows, last], every.actions[rows, last]] == world.size).all()
    rho = np.exp(log_softmax(world.reference))
    np.testing.assert_allclose(chances(world, rho, every).sum(), len(world.start), rtol=1e-12)


def test_too_many_completions_are_an_error_of_one_line() -> None:
    world = Gridworld().world(0)
    assert world.count > ENUMERABLE
    with pytest.raises(UserError, match="enumerated=false") as caught:
        world.completions()
    assert "\n" not in str(caught.value)
    assert Tree(actions=2, depth=12, contexts=1).world(0).count == ENUMERABLE


# --- drawing ---


@each_world
def test_draws_are_distributed_as_the_policy_says(world: World) -> None:
    """Chi-square over completions, of a policy with an action it never takes."""
    rng = np.random.default_rng(5)
    policy = rng.dirichlet(np.ones(world.actions), size=world.size) * (np.arange(world.actions) != 1)
    policy /= policy.sum(-1, keepdims=True)
    n = 20_000
    paths = world.draw(policy, n, rng)
    np.testing.assert_array_equal(np.bincount(paths.context), n)
    assert not (paths.actions[paths.mask] == 1).any()
    again = world.paths(paths.context.tolist(), [a[m].tolist() for a, m in zip(paths.actions, paths.mask, strict=True)])
    for ours, theirs in ((paths.states, again.states), (paths.mask, again.mask), (paths.rewards, again.rewards)):
        np.testing.assert_array_equal(ours, theirs)
    every = world.completions()
    place = {key: i for i, key in enumerate(keys(every))}
    counts = np.bincount([place[k] for k in keys(paths)], minlength=len(place))
    expected = chances(world, policy, every) * n
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    # As many constraints as contexts: the counts of each sum to n.
    assert chisquare(observed, wanted, ddof=len(world.start) - 1).pvalue > 1e-3
    tilted = wanted * np.where(np.arange(len(wanted)) % 2, 1.1, 1.0)
    assert chisquare(observed, tilted / tilted.sum() * observed.sum()).pvalue < 1e-3, "the test must see a tenth"


@pytest.mark.parametrize(
    "world",
    [
        Tree(actions=4, depth=4, coverage=0.5).world(0),
        Gridworld().world(0),
        Gridworld(coverage=0.4).world(1),
        ragged_tree(),
    ],
)
def test_covering_passes_what_the_behaviour_allows_and_nothing_else(world: World) -> None:
    allowed = world.behaviour > 0
    reachable = np.zeros(world.size + 1, dtype=bool)
    reachable[world.start] = True
    for s in range(world.size):
        if reachable[s]:
            reachable[world.next_state[s, allowed[s]]] = True
    paths = world.covering(np.random.default_rng(0))
    passed = np.zeros_like(allowed)
    passed[paths.states[paths.mask], paths.actions[paths.mask]] = True
    np.testing.assert_array_equal(passed, allowed & reachable[:-1, None])
    last = paths.mask.sum(-1) - 1
    rows = np.arange(len(last))
    assert (world.next_state[paths.states[rows, last], paths.actions[rows, last]] == world.size).all()
    assert set(paths.context.tolist()) == set(range(len(world.start)))


# --- numbers ---


def test_log_softmax_is_exact_far_from_zero_and_keeps_what_is_impossible() -> None:
    logits = np.array([[1e4, 1e4 + np.log(3), -np.inf], [-1e4, -1e4, -1e4]])
    expected = [[np.log(0.25), np.log(0.75), -np.inf], [np.log(1 / 3)] * 3]
    np.testing.assert_allclose(log_softmax(logits), expected, atol=1e-11)
