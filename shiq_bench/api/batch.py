"""What a loss sees: tensors over N trajectories and at most A action tokens each, right-padded; and reductions of them.

Prompts, tool results and padding never reach a loss, so no loss can get them wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The data of one step. Whole prompt groups only: a pair never straddles two batches."""

    mask: Tensor  # [N, A] bool, real action tokens
    rewards: Tensor  # [N, A] reward credited at each action token, 0 in the padding
    sampler_logp: Tensor  # [N, A] log-probability under the policy that sampled; NaN where unknown
    group: Tensor  # [N] long, index of the prompt
    weight: Tensor  # [N] weight of the trajectory in expectations
    pairs: Tensor  # [P, 2] long, (preferred, other) inside a group
    pair_weight: Tensor  # [P] weight of the pair
    label: Tensor | None = None  # [N] chance that the trajectory is labelled desirable: 0 or 1 once drawn


@dataclass(frozen=True)
class TokenStats:
    """Two numbers an action token, at least float32.

    ``logp`` is ln pi(a_t | s_t); ``lse`` is ln sum_a exp(logit(a | s_t)) over the tokenizer's
    vocabulary, with raw logits. Padding holds zeros.
    """

    logp: Tensor  # [N, A]
    lse: Tensor  # [N, A]


@dataclass(frozen=True)
class Stats:
    """What the engine computed because the algorithm declared it needs it, over the batch's trajectories.

    Everything but ``policy``, ``value``, ``q`` and ``sum_logits`` is without gradient. Padding
    holds zeros.
    """

    policy: TokenStats
    reference: TokenStats | None = None
    behaviour: TokenStats | None = None  # the policy that the data imitate, fitted beforehand
    value: Tensor | None = None  # [N, A] V(s_t), of the value head
    q: tuple[TokenStats, ...] = ()  # one a head: Q(s_t, a_t) = logp + lse, and ln sum_a exp Q(s_t, a) = lse
    sum_logits: Tensor | None = None  # [N, A] sum over the vocabulary of the policy's logits
    max_ratio: Tensor | None = None  # [N, A] max_a of target policy over behaviour, where behaviour has a floor
    actions: int = 0  # |A|, the size of the vocabulary
    target: Stats | None = None  # the same of the target network
    mismatched: Stats | None = None  # policy and reference on answers to other prompts, [N, A']


@dataclass(frozen=True)
class Dense:
    """The whole distribution at some states, for acting: ``[..., V]`` each, without gradient."""

    logits: Tensor
    q: tuple[Tensor, ...] = ()
    behaviour: Tensor | None = None  # logits of the behaviour model


@dataclass(frozen=True)
class LossOutput:
    """A loss before normalisation.

    Attributes:
        total: 0-dim sum over the batch. The engine divides it by the GLOBAL count, so that
            accumulation and data parallelism change nothing.
        metrics: detached 0-dim tensors to log.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


def scatter_actions(values: Tensor, mask: Tensor) -> Tensor:
    """Flat values of the real action tokens ``[M]`` into their padded places ``[N, A]``, zeros elsewhere."""
    import torch

    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def sum_to_end(x: Tensor) -> Tensor:
    """Reverse cumulative sum over the last axis: ``out[..., t] = sum_{k >= t} x[..., k]``."""
    return x.flip(-1).cumsum(-1).flip(-1)


def next_step(x: Tensor) -> Tensor:
    """``out[..., t] = x[..., t + 1]``, and 0 at the end, where every episode's value is 0. ``[N, A]``"""
    import torch

    return torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], dim=-1)


def reference_of(stats: Stats) -> TokenStats:
    """The reference statistics, which an algorithm that declares ``Reference()`` always gets."""
    if stats.reference is None:
        raise ValueError("the loss reads reference statistics, but the algorithm does not declare Reference()")
    return stats.reference


def log_ratio(stats: Stats) -> Tensor:
    """w_t = ln pi(a_t | s_t) - ln rho(a_t | s_t), zero in the padding. ``[N, A]``"""
    return stats.policy.logp - reference_of(stats).logp


def group_mean(x: Tensor, batch: Batch) -> Tensor:
    """Weighted mean of ``x`` over each trajectory's prompt group. ``[N]`` to ``[N]``"""
    import torch

    zeros = torch.zeros_like(x)
    total = zeros.index_add(0, batch.group, x * batch.weight)
    weight = zeros.index_add(0, batch.group, batch.weight.to(x.dtype))
    return (total / weight.clamp(min=1e-30))[batch.group]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` under a mask or weights of its shape (``[B, T]``, ``[B]`` or ``[P]``), detached, 0-dim; 0 of none.

    For metrics: a loss is a sum, which the engine divides.
    """
    return (x.detach() * mask).sum() / mask.sum().clamp(min=1e-12)
