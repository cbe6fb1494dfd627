"""Direct reward optimisation with a value function (Richemond et al. 2024, arXiv 2405.19107)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import shiq_bench as sb


@sb.algorithm("dro")
@dataclass(frozen=True)
class DRO(sb.Algorithm):
    """DRO-V: (R - V(x) - beta w_y)^2 / 2 over single trajectories.

    w is the sum of log-ratios over a completion's action tokens; V(x) is a learned head at the
    prompt's end. One loss trains both. The fixed point is pi* with V(x) = beta ln E_rho exp(R / beta),
    off-policy too.
    """

    beta: float = 0.1

    couples_answers = False
    needs = (sb.Reference(), sb.Rewards(), sb.ValueHead(), sb.Support())

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Half the squared residuals, summed over trajectories."""
        assert stats.value is not None
        value = stats.value[:, 0]
        returns = (batch.rewards * batch.mask).sum(-1)
        error = returns - value - self.beta * sb.log_ratio(stats).sum(-1)
        metrics = {"value": sb.masked_mean(value, batch.weight), "error": sb.masked_mean(error.abs(), batch.weight)}
        return sb.LossOutput((error.square() * batch.weight).sum() / 2, metrics)

    def fixed_point(self, exact: sb.Exact) -> np.ndarray | None:
        return exact.optimum(self.beta)
