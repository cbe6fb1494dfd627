"""Contrastive policy gradient (Flet-Berliac et al. 2024, arXiv 2406.19185)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import shiq_bench as sb


@sb.algorithm("copg")
@dataclass(frozen=True)
class CoPG(sb.Algorithm):
    """CoPG: ((R - beta w_y) - (R' - beta w_y'))^2 over pairs of one prompt's answers.

    w is the sum of log-ratios over a completion's action tokens. At pi* every answer of a prompt
    has the same R - beta w, whoever wrote the answers: the fixed point is pi* off-policy too. The
    square does not ask which of the two is preferred, so both orders of a pair count alike.
    """

    beta: float = 0.1

    needs = (sb.Reference(), sb.Rewards(), sb.Pairs(ties="keep"), sb.Support())

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Weighted squared differences of the regularised returns, summed over pairs."""
        returns = (batch.rewards * batch.mask).sum(-1)
        gain = returns - self.beta * sb.log_ratio(stats).sum(-1)
        error = gain[batch.pairs[:, 0]] - gain[batch.pairs[:, 1]]
        total = (error.square() * batch.pair_weight).sum()
        return sb.LossOutput(total, {"error": sb.masked_mean(error.abs(), batch.pair_weight)})

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        return exact.optimum(self.beta)
