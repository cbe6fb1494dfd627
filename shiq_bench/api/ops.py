"""The few reductions that every loss is made of. Torch is imported by whoever has tensors to reduce."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from shiq_bench.api.batch import Batch, Stats, TokenStats


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
