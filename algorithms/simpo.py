"""Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch.nn.functional import logsigmoid

import shiq_bench as sb


@sb.algorithm("simpo")
@dataclass(frozen=True)
class SimPO(sb.Algorithm):
    """SimPO: - ln sigma(beta (m_c - m_r) - gamma) over preference pairs, without a reference.

    m is the MEAN ln pi(a_t | s_t) over a completion's action tokens; gamma is the margin by which
    the preferred answer has to win. Nothing ties the policy to where it started.
    """

    beta: float = field(default=2.0, metadata={"advised": False})  # a scale of margins, not a KL strength
    gamma: float = 1.0

    needs = (sb.Pairs(ties="drop"),)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive scale")
        if not self.gamma >= 0:
            raise ValueError(f"gamma is {self.gamma}; expected a margin of 0 or more")

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Weighted logistic loss summed over pairs."""
        mean = (stats.policy.logp * batch.mask).sum(-1) / batch.mask.sum(-1).clamp(min=1)
        margin = self.beta * (mean[batch.pairs[:, 0]] - mean[batch.pairs[:, 1]])
        weight = batch.pair_weight
        total = -(logsigmoid(margin - self.gamma) * weight).sum()
        metrics = {"margin": sb.masked_mean(margin, weight), "accuracy": sb.masked_mean(margin > 0, weight)}
        return sb.LossOutput(total, metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """The minimiser of this very loss, where there is one."""
        return exact.length_normalised(self.beta, self.gamma)
