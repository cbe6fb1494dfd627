"""Exact quantities, each held to its own definition by another way than it is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from shiq_bench.tabular.exact import (
    Exact,
    expected_length,
    expected_return,
    kl,
    missing_mass,
    objective,
    occupancy,
    soft_optimum,
)
from shiq_bench.tabular.task import TabularTask
from shiq_bench.tabular.world import World, log_softmax
from shiq_bench.tasks.bandit import Bandit
from shiq_bench.tasks.gridworld import Gridworld
from shiq_bench.tasks.tree import Tree
from tests.tabular.exact_cases import (
    BANDIT,
    FINAL,
    GRID,
    TREE,
    by_context,
    each_beta,
    enumerated,
    exact_of,
    random_policy,
)
from tests.tabular.test_world import chances, each_world, ragged_tree, world_of

# --- divergences and returns ---


@each_world
def test_expectations_agree_with_enumeration(world: World) -> None:
    every = world.completions()
    log_p, log_q = random_policy(world, 1), random_policy(world, 2)
    p, q = (chances(world, np.exp(x), every) / len(world.start) for x in (log_p, log_q))
    assert expected_return(world, log_p) == pytest.approx(p @ every.returns, rel=1e-12)
    assert expected_length(world, log_p) == pytest.approx(p @ every.mask.sum(-1), rel=1e-12)
    assert kl(world, log_p, log_q) == pytest.approx(p @ np.log(p / q), rel=1e-12)
    assert kl(world, log_p, log_p) == 0
    passes = [p @ ((every.states == s) & every.mask).any(-1) for s in range(world.size)]
    np.testing.assert_allclose(occupancy(world, log_p), passes, atol=1e-14)
    rho = chances(world, np.exp(log_softmax(world.reference)), every) / len(world.start)
    expected = p @ every.returns - 0.3 * (p @ np.log(p / rho))
    assert objective(world, log_p, 0.3) == pytest.approx(expected, rel=1e-12)


def test_expectations_agree_with_simulation_where_nothing_can_be_enumerated() -> None:
    world = Gridworld(reward="dense").world(0)
    log_p, log_q = random_policy(world, 1), random_policy(world, 2)
    n = 40_000
    paths = world.draw(np.exp(log_p), n, np.random.default_rng(0))
    gaps = np.where(paths.mask, (log_p - log_q)[paths.states, paths.actions], 0).sum(-1)
    for exact, drawn in (
        (expected_return(world, log_p), paths.returns),
        (expected_length(world, log_p), paths.mask.sum(-1)),
        (kl(world, log_p, log_q), gaps),
    ):
        error = drawn.std() / np.sqrt(len(drawn))
        assert abs(exact - drawn.mean()) < 4 * error
        assert error < 0.02 * abs(exact), "the test must see an error of a tenth"
    passed = np.bincount(paths.states[paths.mask], minlength=world.size) / len(paths.context)
    np.testing.assert_allclose(occupancy(world, log_p), passed, atol=0.01)


def test_kl_is_infinite_only_where_support_is_missing_and_reached() -> None:
    world = world_of([[1, 2, 3], [3, 3, 3], [3, 3, 3]])
    with np.errstate(all="raise", divide="ignore"):
        p = np.log([[0.5, 0.0, 0.5], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
        without = np.log([[0.25, 0.5, 0.25], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5]])
        unreached = np.log([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5], [0.0, 0.5, 0.5]])
        assert kl(world, p, without) == np.inf
        assert kl(world, p, unreached) == pytest.approx(np.log(2))


def test_missing_mass_is_what_the_behaviour_never_does() -> None:
    for task in (Tree(coverage=0.5), Gridworld(width=2, horizon=3, coverage=0.6), Bandit(arms=8, coverage=0.25)):
        world = task.world(0)
        every = world.completions()
        rho = chances(world, np.exp(log_softmax(world.reference)), every) / len(world.start)
        never = chances(world, world.behaviour, every) == 0
        assert missing_mass(world) == pytest.approx(rho[never].sum(), rel=1e-12)
        assert 0.1 < missing_mass(world) < 1
        covered = missing_mass(replace(task, coverage=1.0).world(0))
        assert 0 <= covered < 1e-14


# --- the optimum ---


@each_beta
@each_world
def test_soft_optimum_is_the_tilted_reference(world: World, beta: float) -> None:
    """pi*(y) is rho(y) exp(R / beta) over its sum, and v*(start) is beta ln of that sum."""
    every = world.completions()
    log_pi, value = soft_optimum(world, beta)
    rho = chances(world, np.exp(log_softmax(world.reference)), every)
    tilted = np.log(rho) + every.returns / beta
    ours = np.log(chances(world, np.exp(log_pi), every))
    for c, (scores, found) in enumerate(
        zip(by_context(world, tilted, every), by_context(world, ours, every), strict=True)
    ):
        np.testing.assert_allclose(found, scores - logsumexp(scores), atol=1e-9)
        assert value[world.start[c]] == pytest.approx(beta * logsumexp(scores), rel=1e-12)


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_soft_optimum_of_a_grid_is_where_policy_iteration_ends(reward: str) -> None:
    """Evaluate Q of the policy with its KL to come, improve to rho exp(Q / beta), state by state, until it stays."""
    world, beta = Gridworld(reward=reward).world(0), 0.1  # type: ignore[arg-type]
    log_rho = log_softmax(world.reference)
    log_pi = log_rho
    for _ in range(50):
        value = np.zeros(world.size + 1)
        q = np.empty_like(log_rho)
        for s in reversed(range(world.size)):
            q[s] = world.rewards[s] + value[world.next_state[s]]
            value[s] = np.exp(log_pi[s]) @ (q[s] - beta * (log_pi[s] - log_rho[s]))
        before, log_pi = log_pi, log_softmax(log_rho + q / beta)
        if np.abs(log_pi - before).max() < 1e-13:
            break
    optimum, v = soft_optimum(world, beta)
    np.testing.assert_allclose(log_pi, optimum, atol=1e-10)
    np.testing.assert_allclose(value[:-1], v, atol=1e-12)


@each_beta
@each_world
def test_regret_of_the_optimum_is_zero_and_of_anything_else_positive(world: World, beta: float) -> None:
    """And it is beta KL(pi || pi*), the identity that makes regret comparable with divergence."""
    log_pi, value = soft_optimum(world, beta)
    best = float(value[world.start].mean())
    assert objective(world, log_pi, beta) == pytest.approx(best, abs=1e-12)
    rng = np.random.default_rng(0)
    others = [log_softmax(log_pi + 0.1 * rng.standard_normal(log_pi.shape)) for _ in range(5)]
    for other in (*others, random_policy(world), log_softmax(world.reference)):
        regret = best - objective(world, other, beta)
        assert regret > 0
        assert regret == pytest.approx(beta * kl(world, other, log_pi), rel=1e-6)


# --- likelihood of the data ---


def merging() -> Exact:
    """Two contexts that both lead to state 2, written by hand: state 3 is never passed, and 4 is the end."""
    world = world_of([[2, 3], [2, 3], [4, 4], [4, 4]], start=[0, 1])
    paths = world.paths([0, 0, 1, 1], [[0, 0], [0, 1], [0, 0], [0, 1]])
    return Exact(world, paths, np.array([0.5, 0.5, 0.25, 0.75]))


def test_data_of_several_contexts_mix_where_they_meet() -> None:
    """In state 2 action 0 has weight 0.5 + 0.25 of 2, and after reweighting by (0, ln 1/2) in context 0
    and (ln 3, 0) in context 1, whose largest count as one: 0.5 + 0.25 of 0.5 + 0.25 + 0.25 + 0.75 / 3."""
    exact = merging()
    np.testing.assert_allclose(np.exp(exact.behaviour()[2]), [0.375, 0.625], rtol=1e-14)
    weights = np.log([1, 0.5, 3, 1])
    np.testing.assert_allclose(np.exp(exact.reweighted(weights)[2]), [0.75 / 1.25, 0.5 / 1.25], rtol=1e-14)
    moved = exact.reweighted(weights + np.array([7, 7, -900, -900]))
    np.testing.assert_allclose(moved, exact.reweighted(weights), rtol=1e-12)
    np.testing.assert_array_equal(exact.behaviour()[3], exact.log_reference[3])
    np.testing.assert_array_equal(np.exp(exact.behaviour()[0]), [1, 0])
    dropped = exact.reweighted(np.array([-np.inf, -np.inf, -np.inf, 0]))
    np.testing.assert_array_equal(dropped[0], exact.log_reference[0])
    np.testing.assert_array_equal(np.exp(dropped[2]), [0, 1])
    nothing = exact.reweighted(np.full(4, -np.inf))
    np.testing.assert_array_equal(nothing, exact.log_reference)


def test_weights_far_below_the_largest_still_count_where_they_are_alone() -> None:
    """Summed as exponentials they would be zero, and states that only they pass would look unvisited."""
    exact = enumerated(Tree(actions=2, depth=2, contexts=1, off_policy=0.2).world(0))
    log_weight = np.array([0, 0, -2000, -2000 + np.log(3)])
    found = exact.reweighted(log_weight)
    mu = exact.world.behaviour[2] * [1, 3]
    np.testing.assert_allclose(np.exp(found[2]), mu / mu.sum(), rtol=1e-10)
    assert found[0, 1] == pytest.approx(-2000, abs=10)


@pytest.mark.parametrize("task", [TREE, GRID, Gridworld(draws=30), Bandit(draws=100), Tree(coverage=0.5)])
def test_reweighted_maximises_the_likelihood_it_says(task: TabularTask) -> None:
    """Gradient of sum_i W_i ln pi(y_i) in the logits of every state, from plain loops over the episodes."""
    exact = exact_of(task)
    log_weight = exact.paths.returns / 0.3
    pi = np.exp(exact.reweighted(log_weight))
    np.testing.assert_allclose(pi.sum(-1), 1, rtol=1e-12)
    gradient = np.zeros_like(pi)
    total = np.zeros(len(pi))
    for i, c in enumerate(exact.paths.context):
        top = log_weight[exact.paths.context == c].max()
        w = exact.weight[i] * np.exp(log_weight[i] - top)
        for s, a, live in zip(exact.paths.states[i], exact.paths.actions[i], exact.paths.mask[i], strict=True):
            if live:
                gradient[s] -= w * pi[s]
                gradient[s, a] += w
                total[s] += w
    assert np.abs(gradient).max() < 1e-12
    np.testing.assert_array_equal(pi[total == 0], np.exp(exact.log_reference)[total == 0])
    np.testing.assert_array_equal(exact.visited, total > 0)


def test_behaviour_of_enumerated_data_is_what_produced_them() -> None:
    exact = exact_of(TREE)
    np.testing.assert_allclose(np.exp(exact.behaviour()), exact.world.behaviour, rtol=1e-12)
    partly = exact_of(replace(TREE, coverage=0.5))
    np.testing.assert_allclose(
        np.exp(partly.behaviour())[partly.visited], partly.world.behaviour[partly.visited], rtol=1e-12
    )
    assert not partly.visited.all()


# --- distributions over completions ---


@each_world
def test_a_policy_becomes_completions_and_comes_back(world: World) -> None:
    """Also where it is no tree, for the completions of a policy are conditioned by the state alone
    if there is a single context."""
    world = replace(world, start=world.start[:1])
    exact, log_pi = enumerated(world), random_policy(world)
    every = exact.completions
    back = exact.from_completions(np.log(chances(world, np.exp(log_pi), every)) + 3.0)
    passed = occupancy(world, log_pi) > 0
    np.testing.assert_allclose(back[passed], log_pi[passed], atol=1e-12)
    np.testing.assert_array_equal(back[~passed], exact.log_reference[~passed])


def test_completions_of_no_probability_leave_the_reference() -> None:
    exact = enumerated(Tree(actions=2, depth=2, contexts=1, off_policy=0.2).world(0))
    found = exact.from_completions(np.array([np.log(0.25), np.log(0.75), -np.inf, -np.inf]))
    np.testing.assert_allclose(np.exp(found[:2]), [[1, 0], [0.25, 0.75]])
    np.testing.assert_array_equal(found[2], exact.log_reference[2])


def completion_chances(exact: Exact, log_pi: np.ndarray) -> list[np.ndarray]:
    """Probabilities of the completions of each context."""
    every = exact.completions
    return by_context(exact.world, chances(exact.world, np.exp(log_pi), every), every)


def pairs_of(exact: Exact) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each context its completions' returns, lengths, and mu_i mu_j sigma(R_i - R_j), mu by plain counting."""
    every = exact.completions
    place = {(c, *a[m]): i for i, (c, a, m) in enumerate(zip(every.context, every.actions, every.mask, strict=True))}
    mu = np.zeros(len(place))
    for c, a, m, w in zip(exact.paths.context, exact.paths.actions, exact.paths.mask, exact.weight, strict=True):
        mu[place[(c, *a[m])]] += w
    out = []
    for c in range(len(exact.world.start)):
        rows = every.context == c
        r, w = every.returns[rows], mu[rows]
        pull = w[:, None] * w * expit(r[:, None] - r)
        np.fill_diagonal(pull, 0)
        out.append((r, every.mask[rows].sum(-1), pull))
    return out


COVERED = {
    "bandit": exact_of(BANDIT),
    "tree": exact_of(TREE),
    "final": exact_of(FINAL),
    "ragged": enumerated(ragged_tree()),
    "sampled": exact_of(Bandit(arms=3, contexts=2, draws=50, off_policy=0.1)),  # each arm several times
}
each_covered = pytest.mark.parametrize("exact", COVERED.values(), ids=COVERED)


@each_beta
@each_covered
def test_win_rate_minimises_the_quadratic(exact: Exact, beta: float) -> None:
    """Least squares over every ordered pair i != j: sqrt(weight) times (w_i - w_j - 1/(2 beta)), solved by lstsq."""
    log_pi = exact.win_rate(beta)
    assert log_pi is not None
    rho = completion_chances(exact, exact.log_reference)
    for (_, _, pull), reference, found in zip(pairs_of(exact), rho, completion_chances(exact, log_pi), strict=True):
        left, right = np.nonzero(pull)
        rows = np.arange(len(left))
        matrix = np.zeros((len(left), len(pull)))
        root = np.sqrt(pull[left, right])
        matrix[rows, left], matrix[rows, right] = root, -root
        w = np.linalg.lstsq(matrix, root / (2 * beta), rcond=None)[0]
        tilted = np.log(reference) + w
        np.testing.assert_allclose(np.log(found), tilted - logsumexp(tilted), atol=1e-7)


def simpo_loss(log_p: np.ndarray, length: np.ndarray, pull: np.ndarray, beta: float, gamma: float) -> np.ndarray:
    """Expected loss of log-probabilities ``[..., M]``, real or complex."""
    u = log_p / length
    margin = beta * (u[..., :, None] - u[..., None, :]) - gamma
    return (pull * np.log(1 + np.exp(-margin))).sum((-1, -2))


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.0), (2.0, 1.0), (0.5, 0.3), (10.0, 1.0)])
@each_covered
def test_length_normalised_is_a_minimum(exact: Exact, beta: float, gamma: float) -> None:
    """The loss of softmax logits: gradient by complex steps zero, relative to each completion's pull,
    random moves worse, and a general minimiser from elsewhere finds nothing lower."""
    log_pi = exact.length_normalised(beta, gamma)
    assert log_pi is not None
    rng = np.random.default_rng(0)
    for (_, length, pull), found in zip(pairs_of(exact), completion_chances(exact, log_pi), strict=True):
        assert found.sum() == pytest.approx(1, abs=1e-12)
        log_p, m = np.log(found), len(found)

        def loss(logits: np.ndarray, length: np.ndarray = length, pull: np.ndarray = pull) -> np.ndarray:
            top = logits.real.max(-1, keepdims=True)
            log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
            return simpo_loss(log_p, length, pull, beta, gamma) / pull.sum()

        gradient = loss(log_p + 1e-20j * np.eye(m)).imag / 1e-20
        scale = (pull + pull.T).sum(-1) / pull.sum()
        assert np.abs(gradient / scale).max() < 1e-10 * beta
        here = float(loss(log_p))
        for size in (0.01, 0.3, 3.0):
            assert (loss(log_p + size * rng.standard_normal((10, m))) > here).all()
        if m <= 30:
            other = minimize(loss, rng.standard_normal(m), method="BFGS", options={"gtol": 1e-9})
            assert other.fun > here - 1e-12 and other.fun == pytest.approx(here, rel=1e-5)


def test_length_normalised_of_two_arms() -> None:
    """With d = beta (ln pi_1 - ln pi_2), p sigma(gamma - d) = (1 - p) sigma(gamma + d); at gamma 0, d = R_1 - R_2."""
    exact = exact_of(Bandit(arms=2, contexts=1, enumerated=True, off_policy=0.0))
    gap = float(np.diff(exact.world.rewards[0])[0])
    for gamma in (0.0, 0.7):
        log_pi = exact.length_normalised(2.0, gamma)
        assert log_pi is not None
        d = 2.0 * float(np.diff(log_pi[0])[0])
        p = expit(gap)
        assert p * expit(gamma - d) == pytest.approx((1 - p) * expit(gamma + d), rel=1e-12)
        if gamma == 0:
            assert d == pytest.approx(gap, rel=1e-12)


def test_pairwise_optima_are_not_known_where_data_leave_them_free() -> None:
    """Merging states, actions never taken, completions that were not drawn, and more than can be enumerated."""
    tasks = (
        GRID,
        replace(TREE, coverage=0.5),
        Bandit(arms=4, contexts=2, coverage=0.5, draws=100),
        Tree(enumerated=False, draws=5),
        Tree(depth=6, enumerated=False),
    )
    for exact in map(exact_of, tasks):
        assert exact.win_rate(0.1) is None
        assert exact.length_normalised(2.0, 1.0) is None


# --- on policy ---


def grpo_field(world: World, log_pi: np.ndarray, beta: float) -> np.ndarray:
    """Expected update of the logits, by enumeration: over completions y of each context,
    sum_t (A(y) - beta (1 - exp(-w_t))) grad ln pi(a_t | s_t), times pi(y). ``[S, A]``"""
    every = world.completions()
    pi, log_rho = np.exp(log_pi), log_softmax(world.reference)
    p = chances(world, pi, every)
    out = np.zeros_like(pi)
    for c in range(len(world.start)):
        rows = np.flatnonzero(every.context == c)
        mean = p[rows] @ every.returns[rows]
        deviation = np.sqrt(p[rows] @ (every.returns[rows] - mean) ** 2)
        for i in rows:
            advantage = (every.returns[i] - mean) / deviation
            live = every.mask[i]
            for s, a in zip(every.states[i, live], every.actions[i, live], strict=True):
                pull = p[i] * (advantage - beta * (1 - np.exp(log_rho[s, a] - log_pi[s, a])))
                out[s] -= pull * pi[s]
                out[s, a] += pull
    return out


LEVEL = {
    "bandit": exact_of(BANDIT),
    "tree": exact_of(TREE),
    "final": exact_of(FINAL),
    # One context whose paths merge and are all two long.
    "merging": enumerated(world_of([[1, 2, 2], [3, 3, 3], [3, 3, 3]])),
}


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("exact", LEVEL.values(), ids=LEVEL)
def test_group_normalised_is_where_the_update_vanishes(exact: Exact, beta: float) -> None:
    log_pi = exact.group_normalised(beta)
    assert log_pi is not None
    np.testing.assert_allclose(np.exp(log_pi).sum(-1), 1, rtol=1e-12)
    field = grpo_field(exact.world, log_pi, beta)
    assert np.abs(field).max() < 1e-10
    # Rare states have small updates anyway: relative to how often they are passed it vanishes too.
    assert np.abs(field / occupancy(exact.world, log_pi)[:, None]).max() < 1e-8
    other = grpo_field(exact.world, log_softmax(log_pi + 0.01 * random_policy(exact.world)), beta)
    assert np.abs(other).max() > 1e-5 * min(1, beta), "the test must see a hundredth"


@pytest.mark.parametrize(
    "task", [Bandit(arms=4, contexts=2, off_policy=0.2, enumerated=True), Tree(actions=2, depth=2, off_policy=0.2)]
)
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_group_normalised_is_where_training_from_the_reference_ends(task: TabularTask, beta: float) -> None:
    exact = exact_of(task)
    log_pi = exact.log_reference
    for _ in range(4000):
        log_pi = log_softmax(log_pi + grpo_field(exact.world, log_pi, beta))
    expected = exact.group_normalised(beta)
    assert expected is not None
    assert kl(exact.world, expected, exact.log_reference) > 0.01
    assert kl(exact.world, expected, log_pi) < 1e-8


def test_group_normalised_stays_at_the_reference_without_differences() -> None:
    world = world_of([[1, 2], [3, 3], [3, 3]], [[0.2, 0.4], [0.3, 0.3], [0.1, 0.1]])
    exact = enumerated(world)
    np.testing.assert_array_equal(exact.group_normalised(0.1), exact.log_reference)
    strong = COVERED["tree"].group_normalised(1e6)
    np.testing.assert_allclose(strong, COVERED["tree"].log_reference, atol=1e-4)


def test_group_normalised_is_not_known_for_lengths_that_differ_or_shared_states() -> None:
    assert exact_of(GRID).group_normalised(0.1) is None
    assert COVERED["ragged"].group_normalised(0.1) is None
    assert merging().group_normalised(0.1) is None
