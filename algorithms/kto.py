"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass

import shiq_bench as sb


@sb.algorithm("kto")
@dataclass(frozen=True)
class KTO(sb.Algorithm):
    """KTO: lambda_D (1 - sigma(beta (w - z))) where desirable, lambda_U (1 - sigma(beta (z - w))) where not.

    w is the sum of log-ratios over a completion's action tokens. z estimates KL(pi || rho) as the
    mean w of completions given to the wrong prompt, at least 0 and without gradient: an estimate
    over the whole batch. lambda_D and lambda_U are ``desirable`` and ``undesirable``.

    There is no finite fixed point. With a share l of desirable labels an answer's expected loss is
    linear in sigma(beta (w - z)) with slope lambda_U (1 - l) - lambda_D l, so its w runs away:
    down, until its mass is 0, where l is below lambda_U / (lambda_D + lambda_U), up where above.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    couples_groups = True
    needs = (sb.Reference(), sb.Labels(), sb.Mismatched())

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; expected a positive KL strength")
        if not (self.desirable >= 0 and self.undesirable >= 0 and self.desirable + self.undesirable > 0):
            raise ValueError(
                f"desirable is {self.desirable} and undesirable {self.undesirable}; expected 0 or more, not both 0"
            )

    def loss(self, stats: sb.Stats, batch: sb.Batch) -> sb.LossOutput:
        """Weighted value lost, summed over trajectories."""
        assert batch.label is not None and stats.mismatched is not None
        elsewhere = sb.log_ratio(stats.mismatched).sum(-1).detach()
        kl = ((elsewhere * batch.weight).sum() / batch.weight.sum().clamp(min=1e-12)).clamp(min=0)
        gain = self.beta * (sb.log_ratio(stats).sum(-1) - kl)
        good = self.desirable * batch.label * (1 - gain.sigmoid())
        bad = self.undesirable * (1 - batch.label) * (1 - (-gain).sigmoid())
        return sb.LossOutput(((good + bad) * batch.weight).sum(), {"kl": kl})
