"""Q-SFT: Q-learning by supervised fine-tuning (Hong et al. 2024, arXiv 2411.05193)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import shiq_bench as sb


@sb.algorithm("qsft-direct")
@dataclass(frozen=True)
class QSFTDirect(sb.Algorithm):
    """The p_theta of Q-SFT, acting by itself.

    A cross-entropy whose label is soft, over a trajectory's action tokens:

        - sum_t ( y_t ln p(a_t) + (1 - y_t) / (|A| - 1) sum_{a != a_t} ln p(a) ),
        y_t = r_t + gamma max_a p_target(a | s_{t+1}) / pi_b(a | s_{t+1}), and r_t at the end,

    with pi_b the data's own policy, from which p starts. p approaches Q pi_b where returns lie in
    [0, 1]. Deviations from the paper: the maximum is over actions to which pi_b gives at least
    ``floor``, and y is clipped to [0, 1], for else the loss has no lower bound; the clip rate is logged.

    Both p and pi_b sum to one, so where every action has its ``floor`` the ratio's maximum is at
    least 1: the label of every step but the last is clipped to 1, p imitates there, and what is
    learned is the last step's reward. Only a vocabulary with many actions that the data never take
    gives the mass of 1 - Q a place to go, and the backup something to say.
    """

    couples_answers = False
    deviations = (
        "Q-SFT's label is clipped to [0, 1], and its maximum is over actions that the behaviour takes often enough",
    )

    gamma: float = 1.0
    tau: float = 0.005
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; expected a discount from 0 to 1")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau is {self.tau}; expected a share above 0, up to 1")
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor is {self.floor}; expected a probability from 0, below 1")

    @property
    def needs(self) -> tuple[sb.Need, ...]:
        """Behaviour and target give the label, the sum of logits the other actions' share of the loss."""
        behaviour, target = sb.BehaviourModel(start=True), sb.TargetNetwork(self.tau)
        return (behaviour, target, sb.SumLogits(), sb.MaxRatio(self.floor), sb.Rewards(unit=True))

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Soft cross-entropies summed over tokens and trajectories."""
        assert stats.sum_logits is not None and stats.max_ratio is not None
        backup = batch.rewards + self.gamma * sb.next_step(stats.max_ratio * batch.mask)
        y = backup.clamp(0, 1)
        taken = stats.policy.logp
        others = stats.sum_logits - stats.actions * stats.policy.lse - taken
        each = -(y * taken + (1 - y) / max(stats.actions - 1, 1) * others) * batch.mask
        metrics = {"clipped": sb.masked_mean((backup != y).float(), batch.mask), "y": sb.masked_mean(y, batch.mask)}
        return sb.LossOutput((each.sum(-1) * batch.weight).sum(), metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """Its own backup, iterated from the end of the episodes, and acted on."""
        p = torch.from_numpy(exact.behaviour_backup(self.gamma, self.floor))
        logits = self.act(sb.Dense(logits=p.log(), behaviour=torch.from_numpy(exact.behaviour())))
        return logits.log_softmax(-1).numpy()


@sb.algorithm("qsft")
@dataclass(frozen=True)
class QSFT(QSFTDirect):
    """Q-SFT: learns as ``qsft-direct`` and acts by pi ∝ pi_b exp(alpha p_theta)."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}; expected a positive weight of what was learned")

    def act(self, dense: sb.Dense) -> Tensor:
        """The behaviour, tilted by the learned probabilities (not by their logarithms)."""
        assert dense.behaviour is not None
        return dense.behaviour.log_softmax(-1) + self.alpha * dense.logits.softmax(-1)
