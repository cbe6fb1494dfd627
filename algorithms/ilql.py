"""Implicit language Q-learning (Snell et al. 2022, arXiv 2206.11871)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import shiq_bench as sb


@sb.algorithm("ilql")
@dataclass(frozen=True)
class ILQL(sb.Algorithm):
    """ILQL: an expectile of Q for the value, one-step backups for two Qs, a conservative term; per token

        |expectile - 1(u < 0)| u^2,  u = min_i Q_i^target(s, a) - V(s)
        + sum_i ( r + gamma V(s') - Q_i(s, a) )^2        (V(s') without gradient, 0 at the end)
        + cql sum_i ( ln sum_b exp Q_i(s, b) - Q_i(s, a) ).

    ``cql`` is the paper's alpha. It acts by pi ∝ pi_b exp(alpha min_i Q_i): ``alpha`` is the paper's
    beta, and its advantage Q - V would give the same, V being one number a state. The policy's own
    logits are not trained.
    """

    gamma: float = 0.99
    expectile: float = 0.7
    cql: float = 0.01
    alpha: float = 1.0
    tau: float = 0.005

    couples_answers = False
    deviations = ("acts by the live Qs; the authors' code acts by their targets",)

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; expected a discount from 0 to 1")
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile is {self.expectile}; expected a share between 0 and 1")
        if not (self.cql >= 0 and self.alpha > 0):
            raise ValueError(f"cql is {self.cql} and alpha {self.alpha}; expected 0 or more, and above 0")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau is {self.tau}; expected a share above 0, up to 1")

    @property
    def needs(self) -> tuple[sb.Need, ...]:
        """Q and V, their moving averages, and the behaviour, which proposes the actions."""
        return (sb.QHeads(2), sb.ValueHead(), sb.TargetNetwork(self.tau), sb.BehaviourModel(), sb.Rewards())

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """The three terms summed over heads, tokens and trajectories."""
        assert stats.value is not None and stats.target is not None
        value = stats.value * batch.mask
        best = torch.stack([q.logp + q.lse for q in stats.target.q]).amin(0)
        u = best - value
        each = (self.expectile - (u < 0).to(u.dtype)).abs() * u.square()
        backup = batch.rewards + self.gamma * sb.next_step(value.detach())
        for q in stats.q:
            each = each + (backup - q.logp - q.lse).square() - self.cql * q.logp
        metrics = {"value": sb.masked_mean(value, batch.mask), "backup": sb.masked_mean(backup, batch.mask)}
        return sb.LossOutput(((each * batch.mask).sum(-1) * batch.weight).sum(), metrics)

    def act(self, dense: sb.Dense) -> Tensor:
        """The behaviour, tilted by the more careful of the two Qs."""
        assert dense.behaviour is not None
        return dense.behaviour.log_softmax(-1) + self.alpha * torch.stack(dense.q).amin(0)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """Its own backup, iterated from the end of the episodes, and acted on; both heads agree there."""
        q = torch.from_numpy(exact.expectile_backup(self.gamma, self.expectile, self.cql))
        logits = self.act(sb.Dense(logits=q, q=(q,), behaviour=torch.from_numpy(exact.behaviour())))
        return logits.log_softmax(-1).numpy()
