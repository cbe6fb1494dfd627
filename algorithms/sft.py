"""Supervised fine-tuning on the trajectories that a rule selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from shiq_bench import Algorithm, Batch, LossOutput, Rewards, Stats, algorithm, masked_mean

if TYPE_CHECKING:
    from shiq_bench import Exact


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

    needs = (Rewards(),)

    def _kept(self, batch: Batch) -> Tensor:
        """Weight of each trajectory, zero where it is not selected. ``[N]``"""
        returns = (batch.rewards * batch.mask).sum(-1)
        if self.select == "all":
            return batch.weight
        if self.select == "above":
            return batch.weight * (returns > self.threshold)
        counted = returns.masked_fill(batch.weight == 0, -torch.inf)
        best = torch.full_like(returns, -torch.inf).scatter_reduce(0, batch.group, counted, "amax")
        return batch.weight * (returns >= best[batch.group])

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        """Negative log-likelihood of the selected trajectories, summed."""
        logp = stats.policy.logp
        return LossOutput(-(logp.sum(-1) * self._kept(batch)).sum(), {"logp": masked_mean(logp, batch.mask)})

    def count(self, batch: Batch) -> Tensor:
        """Weight of the selected trajectories."""
        return self._kept(batch).sum()

    def fixed_point(self, exact: Exact) -> np.ndarray | None:
        """The data that the rule selects."""
        returns, context = exact.paths.returns, exact.paths.context
        if self.select == "all":
            return exact.reweighted(np.zeros_like(returns))
        bar = np.full(context.max() + 1, -np.inf)
        np.maximum.at(bar, context, np.where(exact.weight > 0, returns, -np.inf))
        kept = returns > self.threshold if self.select == "above" else returns >= bar[context]
        return exact.reweighted(np.where(kept, 0.0, -np.inf))
