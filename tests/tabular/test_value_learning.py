"""What value learning from stored data converges to: behaviour and expectile backups, held to their definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logsumexp

from shiq_bench.tabular.exact import (
    Exact,
)
from shiq_bench.tabular.world import log_softmax
from shiq_bench.tasks.gridworld import Gridworld
from shiq_bench.tasks.tree import Tree
from tests.tabular.exact_cases import BANDIT, FINAL, GRID, TREE, exact_of, random_policy
from tests.tabular.test_world import world_of

# --- value learning from the data ---

VALUE: dict[str, Callable[[], Exact]] = {
    "bandit": lambda: exact_of(BANDIT),
    "tree": lambda: exact_of(TREE),
    "final": lambda: exact_of(replace(FINAL, reward_scale=1.0)),
    "narrow": lambda: exact_of(replace(TREE, coverage=0.7, off_policy=2.0)),
    "grid": lambda: exact_of(GRID),
    "sampled": lambda: exact_of(Gridworld(reward="dense", draws=20)),
}
each_value = pytest.mark.parametrize("exact", [make() for make in VALUE.values()], ids=VALUE)


def counted(exact: Exact) -> np.ndarray:
    """How often the data take each action in each state they pass, zero elsewhere; by loops. ``[S, A]``"""
    weight = np.zeros(exact.log_reference.shape)
    for i, live in enumerate(exact.paths.mask):
        for s, a in zip(exact.paths.states[i, live], exact.paths.actions[i, live], strict=True):
            weight[s, a] += exact.weight[i]
    return weight / np.maximum(weight.sum(-1, keepdims=True), 1e-300)


@pytest.mark.parametrize(("gamma", "floor"), [(1.0, 0.01), (0.9, 0.21), (1.0, 0.47), (1.0, 0.0)])
@each_value
def test_behaviour_backup_is_where_its_operator_stays(exact: Exact, gamma: float, floor: float) -> None:
    """From a random table, the operator of the docstring once for each layer and once more, by loops.
    No floor is a frequency that so few draws can have."""
    world, mu = exact.world, counted(exact)
    p = np.exp(random_policy(world))
    for _ in range(len(world.layers) + 1):
        new = np.exp(exact.log_reference)
        for s in np.flatnonzero(mu.sum(-1)):
            y = np.zeros(world.actions)
            for a in np.flatnonzero(mu[s]):
                s2 = world.next_state[s, a]
                proposed = [b for b in range(world.actions) if s2 < world.size and mu[s2, b] >= max(floor, 1e-300)]
                ahead = max((p[s2, b] / mu[s2, b] for b in proposed), default=0.0)
                y[a] = min(1.0, max(0.0, world.rewards[s, a] + gamma * ahead))
            for a in range(world.actions):
                others = [mu[s, b] * (1 - y[b]) for b in range(world.actions) if b != a]
                new[s, a] = mu[s, a] * y[a] + sum(others) / (world.actions - 1)
        p, before = new, p
    np.testing.assert_array_equal(p, before)
    found = exact.behaviour_backup(gamma, floor)
    np.testing.assert_allclose(found, p, atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)


def test_behaviour_backup_minimises_its_cross_entropy() -> None:
    """One state, mu = (1/4, 3/4), y = r = (0.8, 0.4): p_1 = 0.2 + 0.75 * 0.6 = 0.65 with two actions."""
    world = world_of([[1, 1]], [[0.8, 0.4]])
    exact = Exact(world, world.paths([0, 0], [[0], [1]]), np.array([0.25, 0.75]))
    np.testing.assert_allclose(exact.behaviour_backup(1.0, 0.0), [[0.65, 0.35]], rtol=1e-14)

    def loss(x: float) -> float:
        log_p = log_softmax(np.array([x, 0.0]))
        y, mu = np.array([0.8, 0.4]), np.array([0.25, 0.75])
        return float(-(mu * (y * log_p + (1 - y) * log_p[::-1])).sum())

    assert expit(minimize_scalar(loss, tol=1e-10).x) == pytest.approx(0.65, abs=1e-6)


def supported_optimum(exact: Exact, gamma: float, floor: float) -> np.ndarray:
    """Optimal unregularised Q over actions that the data take with a chance of ``floor`` or more. ``[S, A]``"""
    world, mu = exact.world, counted(exact)
    q, value = np.zeros_like(mu), np.zeros(world.size + 1)
    for s in reversed(range(world.size)):
        q[s] = world.rewards[s] + gamma * value[world.next_state[s]]
        value[s] = max(q[s, mu[s] >= floor], default=0.0)
    return q


@pytest.mark.parametrize("seed", range(5))
def test_bounds_of_the_behaviour_backup_in_one_step(seed: int) -> None:
    """mu Q <= p <= mu Q + (1 - mu) / (|A| - 1), both sides, with Q = r."""
    for task in (replace(BANDIT, arms=4, off_policy=0.2), replace(BANDIT, arms=20, off_policy=2.0)):
        exact = exact_of(task, seed)
        mu, p, q = counted(exact), exact.behaviour_backup(1.0, 0.01), exact.world.rewards
        assert (p >= mu * q - 1e-14).all()
        assert (p <= mu * q + (1 - mu) / (exact.world.actions - 1) + 1e-14).all()


@pytest.mark.parametrize("seed", range(5))
def test_bounds_of_the_behaviour_backup_over_time(seed: int) -> None:
    """mu Q* <= p holds at every depth. The upper bound does not: at the last action it does, but p / mu exceeds Q*
    wherever mu is small, the maximum prefers the excess, and one action earlier the label is above Q*."""
    exact = exact_of(Tree(actions=4, depth=3), seed)
    floor = 0.01
    mu, p, q = counted(exact), exact.behaviour_backup(1.0, floor), supported_optimum(exact, 1.0, floor)
    assert (p >= mu * q - 1e-14).all()
    above = p > mu * q + (1 - mu) / (exact.world.actions - 1) + 1e-14
    assert not above[exact.world.layers[-1]].any()
    assert above[np.concatenate(exact.world.layers[:-1])].mean() > 0.1


@pytest.mark.parametrize(("gamma", "expectile", "cql"), [(1.0, 0.7, 0.0), (0.99, 0.9, 0.01), (0.5, 0.5, 1.0)])
@each_value
def test_expectile_backup_meets_its_conditions(exact: Exact, gamma: float, expectile: float, cql: float) -> None:
    """Gradients of both losses, with a V found by scipy from the Q that was returned."""
    world, mu = exact.world, counted(exact)
    q = exact.expectile_backup(gamma, expectile, cql)
    value = np.zeros(world.size + 1)
    for s in reversed(range(world.size)):
        taken = mu[s] > 0
        if not taken.any():
            np.testing.assert_array_equal(q[s], 0)
            continue
        np.testing.assert_array_equal(q[s, ~taken], -np.inf if cql else 0.0)
        have, weight = q[s, taken], mu[s, taken]
        y = world.rewards[s, taken] + gamma * value[world.next_state[s, taken]]
        share = np.exp(have - logsumexp(have))
        np.testing.assert_allclose(2 * (have - y) + cql * (share / weight - 1), 0, atol=1e-9)

        def slope(v: float, have: np.ndarray = have, weight: np.ndarray = weight) -> float:
            return float((weight * np.where(have < v, 1 - expectile, expectile) * (have - v)).sum())

        low, high = have.min(), have.max()
        for _ in range(100):  # bisection: the slope falls
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) > 0 else (low, middle)
        value[s] = low


def test_conservative_term_is_minimised() -> None:
    """A general minimiser of the whole loss in one state finds the same Q, also for a rare action."""
    world = world_of([[1, 1, 1]], [[0.2, 0.9, 0.5]])
    mu = np.array([0.001, 0.3, 0.699])
    exact = Exact(world, world.paths([0, 0, 0], [[0], [1], [2]]), mu)
    for cql in (0.01, 0.3, 5.0):

        def loss(q: np.ndarray, cql: float = cql) -> float:
            return float(mu @ ((world.rewards[0] - q) ** 2 - cql * (q - logsumexp(q))))

        found = exact.expectile_backup(1.0, 0.7, cql)[0]
        other = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-12})
        assert loss(found) <= other.fun + 1e-13
        np.testing.assert_allclose(found[1:], other.x[1:], atol=1e-4)


def test_expectile_backup_is_evaluation_at_one_half_and_nears_the_maximum_at_one() -> None:
    exact = exact_of(TREE)
    world, mu = exact.world, counted(exact)
    mean, best = np.zeros(world.size + 1), np.zeros(world.size + 1)
    for s in reversed(range(world.size)):
        mean[s] = mu[s] @ (world.rewards[s] + mean[world.next_state[s]])
        best[s] = (world.rewards[s] + best[world.next_state[s]]).max()
    for expectile, value, tolerance in ((0.5, mean, 1e-12), (1 - 1e-9, best, 1e-6)):
        q = exact.expectile_backup(1.0, expectile, 0.0)
        np.testing.assert_allclose(q, world.rewards + value[world.next_state], atol=tolerance)
