"""The one-state problems behind fixed points, each solved to machine precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit, logsumexp, wrightomega

from shiq_bench.tabular.world import log_softmax


def preference_margins(returns: np.ndarray, mu: np.ndarray, gamma: float) -> np.ndarray:
    """v that minimises sum_{i != j} mu_i mu_j sigma(R_i - R_j) softplus(gamma - v_i + v_j), mu-mean zero. ``[M]``

    Newton's method with every row divided by its mu, so that rare completions are found as exactly
    as the rest.
    """
    label = expit(returns[:, None] - returns)  # what the diagonal adds is constant in v

    def parts(v: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        margin = v[:, None] - v - gamma
        pull = label * expit(-margin)
        loss = float(mu @ (label * np.logaddexp(0, -margin)) @ mu)
        return ((pull.T - pull) @ mu), loss, pull * expit(margin)

    v = returns - mu @ returns
    gradient, loss, curve = parts(v)
    for _ in range(100):
        weights = (curve + curve.T) * mu
        newton = np.diag(weights.sum(-1)) - weights + mu  # "+ mu" holds the mean, which the loss leaves free
        step = np.linalg.solve(newton, -gradient)
        size = 1.0
        while (new := parts(v + size * step))[1] > loss + 1e-13 * abs(loss):
            size /= 2
        v = v + size * step
        gradient, loss, curve = new
        if size == 1 and np.abs(step).max() <= 1e-13 * (1 + np.abs(v).max()):
            break
    return v


def normalised_by_shift(u: np.ndarray, length: np.ndarray) -> np.ndarray:
    """length (u + x), with x such that its exponentials sum to one. ``[M]``"""
    low, high = (-np.log(len(u)) / length - u).min(), (-u).min()  # all at most 1/M; one at least 1
    x = root(lambda x: float(logsumexp(length * (u + x))), low, high, 1e-14)
    return length * (u + x)


def shrunk_policy(log_rho: np.ndarray, q: np.ndarray, kappa: float) -> np.ndarray:
    """ln of kappa rho / (kappa + V - q), with V such that every row sums to one. ``[n, A]``

    Solved for z = kappa + V - max q by Newton's method, which rises to the root from below: the sum
    is convex and falling in z, and no term may exceed 1.
    """
    gap = q.max(-1, keepdims=True) - q
    mass = kappa * np.exp(log_rho)
    z = (mass - gap).max(-1, keepdims=True)
    for _ in range(100):
        terms = mass / (z + gap)
        step = (terms.sum(-1, keepdims=True) - 1) / (terms / (z + gap)).sum(-1, keepdims=True)
        z = z + step
        if (np.abs(step) <= 1e-15 * z).all():
            break
    return log_softmax(log_rho - np.log(z + gap))


def conservative_q(y: np.ndarray, mu: np.ndarray, cql: float) -> np.ndarray:
    """Q that minimises sum mu ((y - Q)^2 - cql (Q - lse Q)), for mu above 0. ``[A]``

    Stationary where 2 mu (Q - y) + cql (exp(Q - L) - mu) = 0 with L = lse Q. For a given L that is
    Q = y + cql / 2 - omega(ln(cql / (2 mu)) + y + cql / 2 - L), omega + ln omega being the argument;
    and exp(Q - L) sums to one where sum mu omega = cql / 2, which falls as L rises.
    """
    if cql == 0:
        return y
    high = y + cql / 2
    scale = np.log(cql / (2 * mu)) + high

    def excess(lse: float) -> float:
        return float(mu @ wrightomega(scale - lse)) - cql / 2

    above = float(logsumexp(high))
    width = 1.0
    while excess(above - width) <= 0:
        width *= 2
    lse = root(excess, above - width, above, 1e-14)
    return high - wrightomega(scale - lse)


def expectile_of(values: np.ndarray, mu: np.ndarray, expectile: float) -> float:
    """v with sum mu |expectile - 1(values < v)| (values - v) = 0."""

    def excess(v: float) -> float:
        return float((mu * np.where(values < v, 1 - expectile, expectile) * (values - v)).sum())

    low, high = float(values.min()), float(values.max())
    return low if low == high else root(excess, low, high, 1e-15)


def root(excess: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where ``excess``, of different signs at both ends, is 0; to a tolerance, absolute and relative."""
    from scipy.optimize import brentq  # a fifth of a second, and most methods need no root

    return float(brentq(excess, low, high, xtol=tolerance, rtol=tolerance))
