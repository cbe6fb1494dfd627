"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import shiq_bench as sb


@sb.algorithm("grpo")
@dataclass(frozen=True)
class GRPO(sb.Algorithm):
    """GRPO: mean_t ( - min(u_t A, clip(u_t, 1 - clip, 1 + clip) A) + beta (e^-w_t - 1 + w_t) ).

    A = (R - mean R) / std R over the prompt's samples; u_t = pi / pi_sampler and w_t = ln pi - ln rho
    of a token; the mean is over a trajectory's own tokens. The deviation is that of the weighted
    population, without Bessel's correction, which has no meaning for weights. u is 1 where the
    sampler's probability is unknown. On-policy the second term's gradient is that of KL(rho || pi)
    at the states pi visits, so the fixed point is not pi*.
    """

    beta: float = 0.04
    clip: float = 0.2
    samples: int = 8

    deviations = ("advantages over the population deviation of a group; TRL's divide by the sample deviation",)

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")
        if not 0 < self.clip < 1:
            raise ValueError(f"clip is {self.clip}; expected a share between 0 and 1")
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}; expected 2 or more, for a mean to compare with")

    @property
    def needs(self) -> tuple[sb.Need, ...]:
        return (sb.OnPolicy(self.samples), sb.Reference(), sb.Rewards())

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Clipped surrogate and KL, averaged over each trajectory's tokens, summed over trajectories."""
        returns = (batch.rewards * batch.mask).sum(-1)
        gap = returns - sb.group_mean(returns, batch)
        # The bound only acts on a group of equal returns, where what remains is rounding.
        advantage = (gap / sb.group_mean(gap.square(), batch).sqrt().clamp(min=1e-4))[:, None]
        logp = stats.policy.logp
        ratio = (logp - torch.where(batch.sampler_logp.isnan(), logp.detach(), batch.sampler_logp)).exp()
        held = ratio.clamp(1 - self.clip, 1 + self.clip)
        surrogate = torch.minimum(ratio * advantage, held * advantage)
        w = sb.log_ratio(stats)
        k3 = (-w).exp() - 1 + w
        each = ((self.beta * k3 - surrogate) * batch.mask).sum(-1) / batch.mask.sum(-1).clamp(min=1)
        metrics = {"k3": sb.masked_mean(k3, batch.mask), "clipped": sb.masked_mean((ratio != held).float(), batch.mask)}
        return sb.LossOutput((each * batch.weight).sum(), metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """Where the normalised advantages and the in-loss KL balance."""
        return exact.group_normalised(self.beta)
