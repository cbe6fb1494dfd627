"""What a loss sees: tensors over N trajectories and at most A action tokens each, right-padded.

Prompts, tool results and padding never reach a loss, so no loss can get them wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The data of one step. Whole prompt groups only: a pair never straddles two batches."""

    mask: Tensor  # [N, A] bool, real action tokens
    rewards: Tensor  # [N, A] reward credited at each action token, 0 in the padding
    sampler_logp: Tensor  # [N, A] log-probability under the policy that sampled; NaN where unknown
    group: Tensor  # [N] long, index of the prompt
    weight: Tensor  # [N] weight of the trajectory in expectations
    truncated: Tensor  # [N] bool, cut by a limit
    pairs: Tensor  # [P, 2] long, (preferred, other) inside a group
    pair_weight: Tensor  # [P] weight of the pair


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
    """What the engine computed because the algorithm declared it needs it."""

    policy: TokenStats
    reference: TokenStats | None = None


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
