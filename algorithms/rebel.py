"""Regressing relative rewards (Gao et al. 2024, arXiv 2404.16767)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import shiq_bench as sb


@sb.algorithm("rebel")
@dataclass(frozen=True)
class REBEL(sb.Algorithm):
    """REBEL: (beta (w_y - w_y') - (R - R'))^2 over pairs of one prompt's answers.

    w is the sum of log-ratios over a completion's action tokens against the PREVIOUS iterate, and
    beta is 1 / eta of the paper. An iterate is a copy of the policy, taken after every ``refresh``
    updates. With ``refresh`` 0 there is a single iteration, from the starting policy, and it ends
    at pi*; with more, each tilts its predecessor by exp(R / beta) again, so that the policy moves
    away from the starting policy without end. The paper draws new data from each iterate
    (``collect=fresh``); on stored data only the reference moves, and the record says so.
    """

    beta: float = 0.1
    refresh: int = 100

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")
        if self.refresh < 0:
            raise ValueError(f"refresh is {self.refresh}; expected a number of updates, or 0 for never")

    @property
    def needs(self) -> tuple[sb.Need, ...]:
        return (sb.Reference(refresh=self.refresh), sb.Rewards(), sb.Pairs(ties="keep"), sb.Support())

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Weighted squared errors of the relative rewards, summed over pairs."""
        first, second = batch.pairs[:, 0], batch.pairs[:, 1]
        returns = (batch.rewards * batch.mask).sum(-1)
        w = sb.log_ratio(stats).sum(-1)
        error = self.beta * (w[first] - w[second]) - (returns[first] - returns[second])
        total = (error.square() * batch.pair_weight).sum()
        return sb.LossOutput(total, {"error": sb.masked_mean(error.abs(), batch.pair_weight)})

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """pi* of the one iteration; None where there are more, which only ever approach the greedy policy."""
        return exact.optimum(self.beta) if self.refresh == 0 else None
