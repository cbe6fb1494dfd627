"""Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import shiq_bench as sb


@sb.algorithm("ipo")
@dataclass(frozen=True)
class IPO(sb.Algorithm):
    """IPO: (w_c - w_r - 1 / (2 beta))^2 over preference pairs.

    w is the sum of log-ratios over a completion's action tokens, and beta is the paper's tau. With
    both members of a pair drawn from mu, the fixed point is pi ∝ rho exp(P(y beats mu) / beta):
    preferences stay finite even where they are certain. A tie counts half in each order.
    """

    beta: float = 0.1

    needs = (sb.Reference(), sb.Pairs(ties="keep"), sb.Support())

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Weighted squared distance of the margins to 1 / (2 beta), summed over pairs."""
        w = sb.log_ratio(stats).sum(-1)
        margin = w[batch.pairs[:, 0]] - w[batch.pairs[:, 1]]
        total = ((margin - 0.5 / self.beta).square() * batch.pair_weight).sum()
        return sb.LossOutput(total, {"margin": sb.masked_mean(margin, batch.pair_weight)})

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """The reference, tilted by how often an answer beats one of the data."""
        return exact.win_rate(self.beta)
