"""ShiQ: Q-learning on shifted logits (Clavier et al. 2025, arXiv 2505.11081)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import shiq_bench as sb


@sb.algorithm("shiq")
@dataclass(frozen=True)
class ShiQ(sb.Algorithm):
    """ShiQ: off-policy Q-learning that reads logits as shifted Q-values, token by token.

    With v(s) = beta lse(l(s, .)), d_v = v - v_ref and w = ln pi - ln rho, the loss is, over a
    trajectory's action tokens (multi-step consistency of the paper),

        sum_t ( sum_{k >= t} (r_k - beta w_k) - d_v(s_t) )^2.

    Every pi and every v carries gradient; there is no target network. The switches are the
    paper's ablations: ``shift=False`` puts v in place of d_v, ``multi_step=False`` squares the
    one-step residuals r_t + d_v(s_{t+1}) - beta w_t - d_v(s_t), ``token_wise=False`` keeps only
    the first token's term, a loss on sequences.
    """

    beta: float = 0.01
    shift: bool = True
    multi_step: bool = True
    token_wise: bool = True

    couples_answers = False
    needs = (sb.Reference(), sb.Rewards(), sb.Support())

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")
        if not (self.token_wise or self.multi_step):
            raise ValueError("token_wise=false needs multi_step=true: one step from the first token reaches no reward")

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Squared residuals summed over tokens and trajectories; see the class for the equation."""
        w = sb.log_ratio(stats)
        lse = stats.policy.lse - sb.reference_of(stats).lse if self.shift else stats.policy.lse
        value = self.beta * lse * batch.mask
        gain = batch.rewards - self.beta * w
        target = sb.sum_to_end(gain) if self.multi_step else gain + sb.next_step(value)
        squared = ((target - value) * batch.mask).square()
        if not self.token_wise:
            squared = squared[:, :1]
        metrics = {
            "w": sb.masked_mean(w, batch.mask),
            "value": sb.masked_mean(value, batch.mask),
            "target": sb.masked_mean(target, batch.mask),
        }
        return sb.LossOutput((squared.sum(-1) * batch.weight).sum(), metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """pi*, of every ablation alike."""
        return exact.optimum(self.beta)
