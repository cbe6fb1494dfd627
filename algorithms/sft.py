"""Supervised fine-tuning on the trajectories that a rule selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from shiq_bench.api import Algorithm, Need, Rewards, algorithm
from shiq_bench.batch import Batch, LossOutput, Stats
from shiq_bench.ops import masked_mean


@algorithm("sft")
@dataclass(frozen=True)
class SFT(Algorithm):
    """Maximum likelihood: - sum_t ln pi(a_t | s_t) over the selected trajectories.

    ``select`` keeps ``all`` of them, the ``preferred`` ones (highest return of their prompt, ties
    included), or those with a return ``above`` the ``threshold``. The fixed point is the data
    distribution conditioned on the selection.
    """

    select: Literal["all", "preferred", "above"] = "all"
    threshold: float = 0.0

    needs: ClassVar[tuple[Need, ...]] = (Rewards(),)
    fixed_point: ClassVar[Literal["optimum", "data"]] = "data"

    def _kept(self, batch: Batch) -> Tensor:
        """Weight of each trajectory, zero where it is not selected. ``[N]``"""
        returns = (batch.rewards * batch.mask).sum(-1)
        if self.select == "all":
            return batch.weight
        if self.select == "above":
            return batch.weight * (returns > self.threshold)
        best = torch.full_like(returns, -torch.inf).scatter_reduce(0, batch.group, returns, "amax")
        return batch.weight * (returns >= best[batch.group])

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        """Negative log-likelihood of the selected trajectories, summed."""
        logp = stats.policy.logp
        return LossOutput(-(logp.sum(-1) * self._kept(batch)).sum(), {"logp": masked_mean(logp, batch.mask)})

    def count(self, batch: Batch) -> Tensor:
        """Weight of the selected trajectories."""
        return self._kept(batch).sum()
