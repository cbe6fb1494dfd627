"""Reward-weighted regression (Peters and Schaal, ICML 2007; it has no arXiv id)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import shiq_bench as sb


@sb.algorithm("rwr")
@dataclass(frozen=True)
class RWR(sb.Algorithm):
    """RWR: - exp((R - b(x)) / beta) sum_t ln pi(a_t | s_t), maximum likelihood weighted by reward.

    b(x) is the highest return of the prompt's trajectories, so that no factor exceeds 1. The loss
    is divided by the trajectories' own weights and not by the sum of the factors: the latter would
    make a prompt's share depend on which prompts it is batched with. The fixed point is
    pi ∝ mu exp(R / beta), which is pi* only where the data come from the reference.
    """

    beta: float = 0.1

    needs = (sb.Rewards(),)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive temperature")

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Negative log-likelihood times the factor, summed over trajectories."""
        returns = (batch.rewards * batch.mask).sum(-1)
        counted = returns.masked_fill(batch.weight == 0, -torch.inf)
        best = torch.full_like(returns, -torch.inf).scatter_reduce(0, batch.group, counted, "amax")
        # The bound only acts on a trajectory without weight, whose factor could be infinite otherwise.
        factor = ((returns - best[batch.group]).clamp(max=0) / self.beta).exp() * batch.weight
        logp = stats.policy.logp
        metrics = {
            "factor": factor.sum() / batch.weight.sum().clamp(min=1e-12),
            "logp": sb.masked_mean(logp, batch.mask),
        }
        return sb.LossOutput(-(logp.sum(-1) * factor).sum(), metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """The data, tilted by exp(R / beta)."""
        return exact.reweighted(exact.paths.returns / self.beta)
