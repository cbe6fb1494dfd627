"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch.nn.functional import logsigmoid

import shiq_bench as sb


@sb.algorithm("dpo")
@dataclass(frozen=True)
class DPO(sb.Algorithm):
    """DPO: - ln sigma(beta (w_c - w_r)) over preference pairs (equation 7 of the paper).

    w is the sum of log-ratios over a completion's action tokens. The fixed point is pi* for
    expected Bradley-Terry labels; hard labels drive the margins without bound.
    """

    beta: float = 0.1

    needs = (sb.Reference(), sb.Pairs(ties="drop"), sb.Support())

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Weighted logistic loss summed over pairs."""
        w = sb.log_ratio(stats).sum(-1)
        margin = self.beta * (w[batch.pairs[:, 0]] - w[batch.pairs[:, 1]])
        weight = batch.pair_weight
        total = -(logsigmoid(margin) * weight).sum()
        metrics = {"margin": sb.masked_mean(margin, weight), "accuracy": sb.masked_mean(margin > 0, weight)}
        return sb.LossOutput(total, metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        return exact.optimum(self.beta)
