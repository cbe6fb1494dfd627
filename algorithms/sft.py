"""Supervised fine-tuning on the trajectories that a rule selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import shiq_bench as sb


@sb.algorithm("sft")
@dataclass(frozen=True)
class SFT(sb.Algorithm):
    """Maximum likelihood: - sum_t ln pi(a_t | s_t) over the selected trajectories.

    ``select`` keeps ``all`` of them, the ``preferred`` ones (highest return of their prompt, ties
    included), or those with a return ``above`` the ``threshold``. The fixed point is the data
    distribution conditioned on the selection.
    """

    select: Literal["all", "preferred", "above"] = "all"
    threshold: float = 0.0

    needs = (sb.Rewards(),)

    @property
    def couples_answers(self) -> bool:
        """The preferred are those of a prompt that no other of its answers outdoes."""
        return self.select == "preferred"

    def _kept(self, batch: sb.Batch) -> Tensor:
        """Weight of each trajectory, zero where it is not selected. ``[N]``"""
        returns = (batch.rewards * batch.mask).sum(-1)
        if self.select == "all":
            return batch.weight
        if self.select == "above":
            return batch.weight * (returns > self.threshold)
        counted = returns.masked_fill(batch.weight == 0, -torch.inf)
        best = torch.full_like(returns, -torch.inf).scatter_reduce(0, batch.group, counted, "amax")
        return batch.weight * (returns >= best[batch.group])

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Negative log-likelihood of the selected trajectories, summed."""
        logp = stats.policy.logp
        return sb.LossOutput(-(logp.sum(-1) * self._kept(batch)).sum(), {"logp": sb.masked_mean(logp, batch.mask)})

    def count(self, batch: sb.Batch) -> Tensor:
        """Weight of the selected trajectories."""
        return self._kept(batch).sum()

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        """The data that the rule selects."""
        returns, context = exact.paths.returns, exact.paths.context
        if self.select == "all":
            return exact.reweighted(np.zeros_like(returns))
        bar = np.full(context.max() + 1, -np.inf)
        np.maximum.at(bar, context, np.where(exact.weight > 0, returns, -np.inf))
        kept = returns > self.threshold if self.select == "above" else returns >= bar[context]
        return exact.reweighted(np.where(kept, 0.0, -np.inf))
