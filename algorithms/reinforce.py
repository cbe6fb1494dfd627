"""REINFORCE with the KL in the reward (Williams 1992, Machine Learning 8; it has no arXiv id)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import shiq_bench as sb


@sb.algorithm("reinforce")
@dataclass(frozen=True)
class Reinforce(sb.Algorithm):
    """REINFORCE: - sum_t ln pi(a_t | s_t) ( sum_{k >= t} (r_k - beta w_k) - b(x) ), brackets without gradient.

    w_k = ln pi - ln rho of a token, and b(x) is the mean of R - beta w_y over the prompt's samples.
    On enumerated completions weighted by pi the gradient is that of beta KL - E[R] exactly; over n
    samples a mean that includes the sample itself makes it (n - 1) / n of that. The fixed point is
    pi* on fresh samples of the policy, and not on anyone else's.
    """

    beta: float = 0.1
    samples: int = 8

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}; expected 2 or more, for a mean to compare with")

    @property
    def needs(self) -> tuple[sb.Need, ...]:
        return (sb.OnPolicy(self.samples), sb.Reference(), sb.Rewards())

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Log-probabilities times their advantages, summed over tokens and trajectories."""
        w = sb.log_ratio(stats).detach()
        gain = (batch.rewards - self.beta * w) * batch.mask
        baseline = sb.group_mean(gain.sum(-1), batch)
        advantage = (sb.sum_to_end(gain) - baseline[:, None]) * batch.mask
        metrics = {"w": sb.masked_mean(w, batch.mask), "advantage": sb.masked_mean(advantage.abs(), batch.mask)}
        return sb.LossOutput(-((stats.policy.logp * advantage).sum(-1) * batch.weight).sum(), metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        return exact.optimum(self.beta)
