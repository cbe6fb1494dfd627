"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import shiq_bench as sb


@sb.algorithm("rloo")
@dataclass(frozen=True)
class RLOO(sb.Algorithm):
    """RLOO: - (g_i - mean_{j != i} g_j) ln pi(y_i), with g = R - beta w_y, the bracket without gradient.

    w is the sum of log-ratios over a completion's action tokens; the mean is over the prompt's other
    samples. It is written (g_i - mean_j g_j) / (1 - sum_j p_j^2) with p a sample's share of its
    prompt's weight: the same at equal weights, where the divisor is 1 - 1/n, and one factor a
    prompt at any others, which turns no gradient. The fixed point is pi*, on fresh samples.
    """

    beta: float = 0.1
    samples: int = 8

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}; expected 2 or more, for one to be left out")

    @property
    def needs(self) -> tuple[sb.Need, ...]:
        return (sb.OnPolicy(self.samples), sb.Reference(), sb.Rewards())

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Log-probabilities times their advantages, summed over trajectories."""
        w = sb.log_ratio(stats).detach()
        gain = ((batch.rewards - self.beta * w) * batch.mask).sum(-1)
        weight = torch.zeros_like(batch.weight).index_add(0, batch.group, batch.weight)[batch.group]
        alone = sb.group_mean(batch.weight / weight.clamp(min=1e-30), batch)
        # A lone sample has g equal to the mean: the bound makes its advantage 0 and not 0 / 0.
        advantage = (gain - sb.group_mean(gain, batch)) / (1 - alone).clamp(min=1e-6)
        metrics = {"w": sb.masked_mean(w, batch.mask), "advantage": sb.masked_mean(advantage.abs(), batch.weight)}
        return sb.LossOutput(-(stats.policy.logp.sum(-1) * advantage * batch.weight).sum(), metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        return exact.optimum(self.beta)
