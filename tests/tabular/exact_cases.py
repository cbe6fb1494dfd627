"""Small tasks whose quantities are exact, and their worlds with data."""

from __future__ import annotations

import numpy as np
import pytest

from shiq_bench.tabular.exact import (
    Exact,
)
from shiq_bench.tabular.task import TabularTask
from shiq_bench.tabular.world import Paths, World, log_softmax
from shiq_bench.tasks.bandit import Bandit
from shiq_bench.tasks.gridworld import Gridworld
from shiq_bench.tasks.tree import Tree
from tests.tabular.test_world import chances

BETAS = (0.03, 0.1, 1.0)
each_beta = pytest.mark.parametrize("beta", BETAS)

BANDIT = Bandit(arms=6, contexts=3, enumerated=True)
TREE = Tree(actions=3, depth=3)
FINAL = Tree(actions=3, depth=2, reward="final", reward_scale=2.0)
GRID = Gridworld(width=3, horizon=5, enumerated=True)


def exact_of(task: TabularTask, seed: int = 0) -> Exact:
    """A task's world with the data it supplies."""
    world, data = task.world(seed), task.data(seed)
    actions = [[i for i, a in zip(t.token_ids, t.action_mask, strict=True) if a] for t in data]
    paths = world.paths([int(t.prompt_id) for t in data], actions)
    np.testing.assert_allclose(paths.returns, [t.total_reward for t in data])
    return Exact(world, paths, np.array([t.weight for t in data]))


def enumerated(world: World, policy: np.ndarray | None = None) -> Exact:
    """A world with every completion, weighted by a policy (the behaviour)."""
    every = world.completions()
    return Exact(world, every, chances(world, world.behaviour if policy is None else policy, every))


def random_policy(world: World, seed: int = 0) -> np.ndarray:
    return log_softmax(2 * np.random.default_rng(seed).standard_normal(world.reference.shape))


def by_context(world: World, values: np.ndarray, every: Paths) -> list[np.ndarray]:
    return [values[every.context == c] for c in range(len(world.start))]
