"""Fresh samples come from an engine whose policy is not quite the trainer's: how far off it is, and weights for that.

The sampler and the trainer hold the same weights, but compute them with other kernels and in other float formats.
Truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
training") multiplies what a token adds to the policy gradient by min(pi / pi_sampler, cap).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor

from shiq_bench.api.batch import Batch, Stats

#: What one importance weight is of: nothing, an action token, or a trajectory.
Level = Literal["none", "token", "sequence"]


def sampler_gap(logp: Tensor, batch: Batch) -> dict[str, Tensor]:
    """How far the trainer's log-probabilities ``[N, A]`` are from the sampler's, means over action tokens in nats.

    Returns:
        ``sampler_gap``, the mean of |d| with d = ln pi - ln pi_sampler, and ``sampler_kl``, that of e^d - 1 - d, which
        estimates KL(pi_sampler || pi) a token; NaN where the sampler's are unknown.
    """
    d = (logp.detach().double() - batch.sampler_logp) * batch.mask
    return {"sampler_gap": d.abs().sum() / batch.mask.sum(), "sampler_kl": (d.expm1() - d).sum() / batch.mask.sum()}


def importance_weights(logp: Tensor, batch: Batch, level: Level, cap: float) -> tuple[Tensor, Tensor]:
    """min(pi / pi_sampler, cap) of every action token, or of the whole sequence, the product over its action tokens.

    Returns:
        The weights, without gradient and finite, and whether the cap made them smaller. ``[N, A]`` each
    """
    d = (logp.detach() - batch.sampler_logp) * batch.mask
    if level == "sequence":
        d = d.sum(-1, keepdim=True).expand_as(d)
    ratio = d.exp()
    return ratio.clamp(max=cap), ratio > cap


def weighed(stats: Stats, batch: Batch, level: Level, cap: float) -> tuple[Stats, Batch, Mapping[str, Tensor]]:
    """What a loss sees of fresh samples, its policy gradient weighed unless ``level`` is none, and numbers to log.

    Every value stays as it is, to the bit. The gradient that reaches ``policy.logp`` at an action is multiplied by the
    action's weight, which for a term A ln pi, or A pi / pi_old, is to multiply the term; a KL inside the loss that is
    estimated from the same samples is weighed too. What is a function of the state alone (``lse``, ``sum_logits``, a
    value or Q head) is not: any function of the state serves as a baseline, so that a weight would only add variance;
    nor are mismatched answers, which the sampler did not draw.

    The batch's ``sampler_logp`` becomes the trainer's own, that of the policy before the update: a loss that has the
    ratio pi / pi_old would otherwise weigh twice. Every batch serves a single update, and the weights move only after
    the last of its micro-batches, so all of them see one old policy, and the pass at hand has its log-probabilities
    (with the dropout of that pass, where there is any).

    Returns:
        Statistics and batch for the loss; the numbers of :func:`sampler_gap` and, where weighed, the mean weight of an
        action token, ``importance_weight``, and the share that the cap changed, ``importance_truncated``.
    """
    logp = stats.policy.logp
    numbers = sampler_gap(logp, batch)
    if level == "none":
        return stats, batch, numbers
    weight, truncated = importance_weights(logp, batch, level, cap)
    count, old = batch.mask.sum(), logp.detach()
    numbers["importance_weight"] = (weight * batch.mask).sum() / count
    numbers["importance_truncated"] = (truncated & batch.mask).sum() / count
    # Not weight * logp + (1 - weight) * old, which would round.
    policy = replace(stats.policy, logp=old + weight * (logp - old))
    return replace(stats, policy=policy), replace(batch, sampler_logp=old), numbers
