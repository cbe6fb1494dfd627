"""Exact quantities of a world, in float64 and without torch: optima, fixed points, returns, divergences.

Everything here is computed another way than training computes it (dynamic programming, closed
forms, brute force over completions), so that agreement means something.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit, logsumexp

from shiq_bench.tabular import solvers
from shiq_bench.tabular.world import ENUMERABLE, Paths, World, log_softmax


def occupancy(world: World, log_pi: np.ndarray) -> np.ndarray:
    """Chance that an episode passes each state, contexts being equally likely. ``[S]``"""
    reach = np.zeros(world.size + 1)
    np.add.at(reach, world.start, 1 / len(world.start))
    for rows in world.layers:
        np.add.at(reach, world.next_state[rows], reach[rows, None] * np.exp(log_pi[rows]))
    return reach[:-1]


def expected_return(world: World, log_pi: np.ndarray) -> float:
    """E_pi[R]."""
    return float((occupancy(world, log_pi)[:, None] * np.exp(log_pi) * world.rewards).sum())


def kl(world: World, log_p: np.ndarray, log_q: np.ndarray) -> float:
    """KL(p || q) over completions in nats, mean over contexts; infinite where q lacks support of p."""
    p = np.exp(log_p)
    reach = occupancy(world, log_p)
    with np.errstate(invalid="ignore"):  # what is never done or never reached counts nothing, infinite or not
        rows = np.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
        return float(np.where(reach > 0, reach * rows, 0.0).sum())


def expected_length(world: World, log_pi: np.ndarray) -> float:
    """Expected number of actions of an episode."""
    return float(occupancy(world, log_pi).sum())


def soft_optimum(world: World, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """pi* of E[R] - beta KL(pi || rho), by soft dynamic programming backwards.

    Returns:
        ln pi* ``[S, A]`` and v* ``[S]``, with v*(s) = beta ln sum_a rho(a|s) exp(q*(s, a) / beta).
    """
    log_rho = log_softmax(world.reference)
    value = np.zeros(world.size + 1)
    log_pi = np.empty_like(log_rho)
    for rows in reversed(world.layers):
        scores = log_rho[rows] + (world.rewards[rows] + value[world.next_state[rows]]) / beta
        top = scores.max(-1)
        total = top + np.log(np.exp(scores - top[:, None]).sum(-1))
        value[rows] = beta * total
        log_pi[rows] = scores - total[:, None]
    return log_pi, value[:-1]


def objective(world: World, log_pi: np.ndarray, beta: float) -> float:
    """J(pi) = E_pi[R] - beta KL(pi || rho), mean over contexts."""
    return expected_return(world, log_pi) - beta * kl(world, log_pi, log_softmax(world.reference))


def missing_mass(world: World) -> float:
    """Chance that an episode of the reference does something the behaviour never does."""
    log_rho = log_softmax(world.reference)
    with np.errstate(divide="ignore"):
        inside = np.where(world.behaviour > 0, log_rho, -np.inf)
    stays = np.ones(world.size + 1)
    for rows in reversed(world.layers):
        stays[rows] = (np.exp(inside[rows]) * stays[world.next_state[rows]]).sum(-1)
    return max(0.0, float(1 - stays[world.start].mean()))


@dataclass(frozen=True)
class Exact:
    """A world and the data drawn from it: what fixed points are computed from.

    Policies go in and out as natural logs of probabilities, ``[S, A]``. Where nothing else is said,
    a state that the data never pass holds the reference: training starts there and never moves it.

    Attributes:
        paths: the training episodes.
        weight: their weights, summing to 1 in each context. ``[N]``
    """

    world: World
    paths: Paths
    weight: np.ndarray

    @cached_property
    def log_reference(self) -> np.ndarray:
        """ln rho. ``[S, A]``"""
        return log_softmax(self.world.reference)

    @cached_property
    def completions(self) -> Paths:
        """Every completion of every context; see :meth:`World.completions`."""
        return self.world.completions()

    @cached_property
    def visited(self) -> np.ndarray:
        """States that the data pass. ``[S]`` bool"""
        out = np.zeros(self.world.size, dtype=bool)
        out[self.paths.states[self.paths.mask & (self.weight > 0)[:, None]]] = True
        return out

    def optimum(self, beta: float) -> np.ndarray:
        """ln pi* of the regularised objective. ``[S, A]``"""
        return soft_optimum(self.world, beta)[0]

    # --- likelihood of the data ---

    def behaviour(self) -> np.ndarray:
        """ln mu^, how often the data take each action in each state. ``[S, A]``"""
        return self.reweighted(np.zeros(len(self.weight)))

    def reweighted(self, log_weight: np.ndarray) -> np.ndarray:
        """The policy of maximum likelihood on the data with every weight times exp(``log_weight``).

        In each state it is the weight of the episodes that take an action over the weight of those
        that pass. The largest ``log_weight`` of a context counts as 0, as a baseline per prompt
        makes it: within a context that changes nothing, and where contexts meet in a state it
        decides how they mix.

        Args:
            log_weight: nats, -inf to drop an episode. ``[N]``

        Returns:
            ln pi, -inf for actions never taken; the reference in states that no kept episode
            passes. ``[S, A]``
        """
        kept = np.where(self.weight > 0, log_weight, -np.inf)
        top = np.full(len(self.world.start), -np.inf)
        np.maximum.at(top, self.paths.context, kept)
        keep = kept > -np.inf
        out = np.full(len(kept), -np.inf)
        out[keep] = np.log(self.weight[keep]) + kept[keep] - top[self.paths.context[keep]]
        return self._conditional(self.paths, out)

    def _conditional(self, paths: Paths, log_weight: np.ndarray) -> np.ndarray:
        """ln of the weight of paths through (s, a) over the weight of those through s. ``[S, A]``"""
        passed = np.full(self.log_reference.shape, -np.inf)
        weights = np.broadcast_to(log_weight[:, None], paths.mask.shape)
        np.logaddexp.at(passed, (paths.states[paths.mask], paths.actions[paths.mask]), weights[paths.mask])
        total = logsumexp(passed, axis=-1, keepdims=True)
        return np.subtract(passed, total, where=total > -np.inf, out=self.log_reference.copy())

    # --- distributions over completions ---

    def from_completions(self, log_p: np.ndarray) -> np.ndarray:
        """The policy of a distribution over :attr:`completions`: probabilities summed up the tree.

        In a world that is no tree it is the policy that does the same as often, in every state.

        Args:
            log_p: nats, not necessarily normalised within a context. ``[M]``

        Returns:
            ln pi; the reference in states of no probability. ``[S, A]``
        """
        return self._conditional(self.completions, log_p)

    @cached_property
    def _covered(self) -> np.ndarray | None:
        """Weight of every completion in the data, normalised within its context. ``[M]``

        None where the world is no tree, or some completion is not in the data: a loss on pairs then
        says nothing about the probability of what is missing, and its minimisers are many.
        """
        if not self.world.is_tree or self.world.count > min(len(self.weight), ENUMERABLE):
            return None
        mass = np.zeros(self.log_reference.size)
        np.add.at(mass, self._last(self.paths), self.weight)
        mu = mass[self._last(self.completions)]
        total = np.bincount(self.completions.context, mu)[self.completions.context]
        return mu / total if (mu > 0).all() else None

    def _last(self, paths: Paths) -> np.ndarray:
        """The last state and action as one number, which in a tree is another one for every completion. ``[N]``"""
        row, t = np.arange(len(paths.mask)), paths.mask.sum(-1) - 1
        return paths.states[row, t] * self.world.actions + paths.actions[row, t]

    def win_rate(self, beta: float) -> np.ndarray | None:
        """IPO's fixed point (Azar et al. 2023, arXiv 2310.12036), given expected Bradley-Terry labels.

        pi(y) is proportional to rho(y) exp(P(y beats mu) / beta), with P(y beats mu) =
        sum_y' mu(y') sigma(R(y) - R(y')) and mu the weights of the data. The loss over pairs i != j,
        sum mu_i mu_j p_ij (w_i - w_j - 1/(2 beta))^2, is stationary where

            sum_j mu_i mu_j ((w_i - w_j) - (2 p_ij - 1) / (2 beta)) = 0,

        that is, w_i = P_i / beta up to a constant. The term j = i is zero, so that leaving the
        diagonal out, as training does, changes nothing.

        Returns:
            ln pi ``[S, A]``, or None where the world is no tree or the data miss a completion.
        """
        mu = self._covered
        if mu is None:
            return None
        every = self.completions
        log_p = np.where(every.mask, self.log_reference[every.states, every.actions], 0.0).sum(-1)
        for c in range(len(self.world.start)):
            rows = np.flatnonzero(every.context == c)
            r = every.returns[rows]
            log_p[rows] += expit(r[:, None] - r) @ mu[rows] / beta
        return self.from_completions(log_p)

    def length_normalised(self, beta: float, gamma: float) -> np.ndarray | None:
        """SimPO's minimiser (Meng et al. 2024, arXiv 2405.14734), by brute force over completions.

        The expected loss over pairs i != j, mu_i mu_j sigma(R_i - R_j) times
        -ln sigma(beta (u_i - u_j) - gamma) with u = ln pi(y) / |y|, is convex in u and does not
        change when all of u moves by a constant. So u is found freely, by Newton's method, and the
        constant afterwards, from sum exp(|y| u) = 1: with lengths that differ it is no mere
        normalisation of exp(|y| u).

        Args:
            beta: scale of the margin.
            gamma: target margin, in units of beta u (not of u).

        Returns:
            ln pi ``[S, A]``, or None where the world is no tree or the data miss a completion.
        """
        mu = self._covered
        if mu is None:
            return None
        every = self.completions
        log_p = np.empty(len(mu))
        for c in range(len(self.world.start)):
            rows = np.flatnonzero(every.context == c)
            u = solvers.preference_margins(every.returns[rows], mu[rows], gamma) / beta
            log_p[rows] = solvers.normalised_by_shift(u, every.mask[rows].sum(-1))
        return self.from_completions(log_p)

    # --- on policy ---

    def group_normalised(self, beta: float) -> np.ndarray | None:
        """GRPO's fixed point on its own samples (Shao et al. 2024, arXiv 2402.03300), expectations exact.

        A completion's advantage is (R - m) / s, with m and s its context's mean and population
        standard deviation of returns under pi itself (none is added to s). With the samples held
        fixed, the gradient of the k3 term E_pi[e^-w - 1 + w] is pi - rho in every state, so that

            pi(a|s) (QA(s, a) - VA(s)) + beta (rho(a|s) - pi(a|s)) = 0,

        or pi = beta rho / (beta + VA - QA), VA such that it sums to one. QA is q(s, a) / s up to a
        constant of the state, q being the expected return to go. Thus pi depends on beta and s
        through kappa = beta s alone, and what is left is one equation a context,
        kappa = beta s(pi_kappa), with q and s by dynamic programming.

        There may be several solutions: this is the first that small steps towards the right-hand
        side run into, from pi = rho. A context whose returns are all equal stays at the reference.

        Returns:
            ln pi ``[S, A]``, or None where completions of a context differ in length (a mean over
            tokens then weighs them differently), or where contexts share states.
        """
        world = self.world
        nearest, farthest = np.zeros(world.size + 1), np.zeros(world.size + 1)
        for rows in reversed(world.layers):
            nearest[rows] = 1 + nearest[world.next_state[rows]].min(-1)
            farthest[rows] = 1 + farthest[world.next_state[rows]].max(-1)
        reach = np.zeros((len(world.start), world.size + 1), dtype=bool)
        reach[np.arange(len(world.start)), world.start] = True
        for s in range(world.size):
            reach[:, world.next_state[s]] |= reach[:, [s]]
        if (nearest != farthest)[world.start].any() or (reach[:, :-1].sum(0) > 1).any():
            return None
        out = self.log_reference.copy()
        for c, first in enumerate(world.start):
            layers = [rows[reach[c, rows]] for rows in world.layers]

            def excess(log_kappa: float, first: int = int(first), layers: list[np.ndarray] = layers) -> float:
                """ln of beta s(pi_kappa) over kappa: it falls through zero where iteration settles."""
                return float(np.log(beta * self._shrink(np.exp(log_kappa), layers)[1][first]) - log_kappa)

            deviation = self._shrink(np.inf, layers)[1][first]
            if not deviation > 1e-12 * np.abs(world.rewards).max():
                continue
            here = float(np.log(beta * deviation))
            step = 0.05 * np.sign(excess(here))
            while step and np.sign(excess(here + step)) == np.sign(step):
                here += step
            if step:
                here = solvers.root(excess, here, here + step, 1e-15)
            table = self._shrink(np.exp(here), layers)[0]
            for rows in layers:
                out[rows] = table[rows]
        return out

    def _shrink(self, kappa: float, layers: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """pi = kappa rho / (kappa + V - q) in some states, q and V being its own; rho where kappa is infinite.

        Returns:
            ln pi ``[S, A]``, and the standard deviation of the return to go under it. ``[S]``
        """
        mean, variance = np.zeros(self.world.size + 1), np.zeros(self.world.size + 1)
        out = self.log_reference.copy()
        for rows in reversed(layers):
            following = self.world.next_state[rows]
            q = self.world.rewards[rows] + mean[following]
            if np.isfinite(kappa):
                out[rows] = solvers.shrunk_policy(out[rows], q, kappa)
            pi = np.exp(out[rows])
            mean[rows] = (pi * q).sum(-1)
            variance[rows] = (pi * (variance[following] + (q - mean[rows, None]) ** 2)).sum(-1)
        return out, np.sqrt(variance[:-1])

    # --- value learning from the data ---

    def behaviour_backup(self, gamma: float, floor: float) -> np.ndarray:
        """Q-SFT's fixed point (Hong et al. 2024, arXiv 2411.05193), backwards through the states of the data.

        With mu the data's policy and the clip that the implementation adds to the paper,

            y(s, a) = clip(r + gamma max p(a'|s') / mu(a'|s'), 0, 1), y = clip(r, 0, 1) at the end,
            p(a|s) = mu(a|s) y(s, a) + sum_{a' != a} mu(a'|s) (1 - y(s, a')) / (|A| - 1),

        the maximum being over actions with mu(a'|s') of ``floor`` or more, and 0 where there is none.

        Returns:
            Probabilities p, the reference's in states that the data never pass. ``[S, A]``
        """
        world, log_mu = self.world, self.behaviour()
        mu = np.exp(log_mu)
        # On the logs, as training compares: rounding decides where a frequency is the floor exactly.
        proposed = (log_mu >= np.log(floor)) if floor > 0 else (mu > 0)
        p = np.exp(self.log_reference)
        best = np.zeros(world.size + 1)
        for layer in reversed(world.layers):
            rows = layer[self.visited[layer]]
            y = (world.rewards[rows] + gamma * best[world.next_state[rows]]).clip(0, 1)
            missed = mu[rows] * (1 - y)
            p[rows] = mu[rows] * y + (missed.sum(-1, keepdims=True) - missed) / (world.actions - 1)
            ratio = np.divide(p[rows], mu[rows], where=proposed[rows], out=np.zeros_like(y))
            best[rows] = ratio.max(-1)
        return p

    def expectile_backup(self, gamma: float, expectile: float, cql: float) -> np.ndarray:
        """ILQL's fixed point (Snell et al. 2022, arXiv 2206.11871), backwards through the states of the data.

        With mu the data's policy, y(s, a) = r + gamma V(s') and V(end) = 0, Q(s, .) minimises

            sum_a mu(a|s) ((y(s, a) - Q(s, a))^2 - cql (Q(s, a) - lse Q(s, .)))

        and V(s) is the ``expectile`` of Q(s, a) under mu(.|s).

        Returns:
            Q in units of reward ``[S, A]``; zeros, its initial value, in states that the data never
            pass. For actions they never take, 0 where ``cql`` is 0, else -inf: the minimum is at
            infinity.
        """
        world, mu = self.world, np.exp(self.behaviour())
        q = np.zeros(mu.shape)
        value = np.zeros(world.size + 1)
        for layer in reversed(world.layers):
            for s in layer[self.visited[layer]]:
                taken = mu[s] > 0
                y = world.rewards[s, taken] + gamma * value[world.next_state[s, taken]]
                q[s, ~taken] = -np.inf if cql > 0 else 0.0
                q[s, taken] = solvers.conservative_q(y, mu[s, taken], cql)
                value[s] = solvers.expectile_of(q[s, taken], mu[s, taken], expectile)
        return q
