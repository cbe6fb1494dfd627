"""Win rates at equal length."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import expit as expit

from shiq_bench.stats.intervals import Estimate, check_level, t_interval


def length_controlled(
    wins: Sequence[float], gaps: Sequence[float], clusters: Sequence[Hashable], level: float = 0.95
) -> Estimate:
    r"""Win rate at equal length, by logistic regression on the gap in length (Dubois et al. 2024, arXiv:2404.04475).

    .. math:: P(win) = \sigma(\theta + \phi \tanh(g / s_g)), \quad \text{reported: } \sigma(\theta)

    The length term alone is controlled for, not who asked what. A weak normal prior on :math:`\phi` (standard
    deviation 3) keeps it finite where length decides everything; the error of :math:`\theta` is the sandwich,
    clustered by prompt, brought to shares by the delta method. Where all are won, or all lost, there
    is none; where every answer is longer, or every one shorter, nothing is known of equal length,
    and the rate is None.

    Args:
        wins: 1, 0, or one half for a tie. ``[E]``
        gaps: length minus the other's, in any unit. ``[E]``
        clusters: the prompt of each. ``[E]``
    """
    check_level(level)
    y, g = np.asarray(wins, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    units = len(set(clusters))
    if not y.size or g.min() > 0 or g.max() < 0:
        return Estimate(None, None, None, None, int(y.size), units)
    spread = g.std()
    x = np.stack([np.ones_like(g), np.tanh(g / spread) if spread else np.zeros_like(g)], axis=1)  # [E, 2]
    # One pseudo-observation each way, an eighth of an episode, keeps theta finite where every one is won.
    prior = np.diag([0.0, 1 / 9])
    beta = np.zeros(2)
    for _ in range(100):
        p = expit(x @ beta)
        score = x.T @ (y - p) - prior @ beta - np.array([(expit(beta[0]) - 0.5) / 4, 0.0])
        info = (x * (p * (1 - p))[:, None]).T @ x + prior
        info[0, 0] += expit(beta[0]) * (1 - expit(beta[0])) / 4
        step = np.linalg.solve(info, score)
        beta = beta + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-12:
            break
    rate = float(expit(beta[0]))
    if units < 2 or y.min() == y.max() != 0.5:
        return Estimate(rate, None, None, None, int(y.size), units)
    residual = x * (y - expit(x @ beta))[:, None]
    order = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((units, 2))
    np.add.at(sums, [order[c] for c in clusters], residual)
    bread = np.linalg.inv(info)
    variance = (bread @ (sums.T @ sums) @ bread)[0, 0] * units / (units - 1)
    return t_interval(rate, float(rate * (1 - rate) * np.sqrt(max(0.0, variance))), int(y.size), units, level)
