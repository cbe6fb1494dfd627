"""The one log-probability path of the project: training, the reference pass and scoring all come through here.

:func:`token_stats` never holds all logits; :func:`stats_from_logits` serves heads that are no plain matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Statistics are at least float32, whatever the model's dtype."""
    return torch.promote_types(dtype, torch.float32)


class _TokenStats(torch.autograd.Function):
    """Chunked ln softmax at the targets and logsumexp, with the chunk recomputed on the way back."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab: int, chunk: int, scale: float, cap: float
    ) -> tuple[Tensor, Tensor]:
        dtype = _wide(hidden.dtype)
        logp = torch.empty(hidden.shape[0], dtype=dtype, device=hidden.device)
        lse = torch.empty_like(logp)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight[:vocab].to(dtype)
            for start in range(0, hidden.shape[0], chunk):
                rows = slice(start, start + chunk)
                logits = shaped(hidden[rows].to(dtype) @ head.T, scale, cap)
                logp[rows] = logits.gather(1, targets[rows, None]).squeeze(1)
                lse[rows] = _logsumexp_(logits)
        logp -= lse
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.vocab, ctx.chunk, ctx.scale, ctx.cap = vocab, chunk, scale, cap
        return logp, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, lse = ctx.saved_tensors
        dtype = lse.dtype
        head = weight[: ctx.vocab].to(dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], ctx.chunk):
                rows = slice(start, start + ctx.chunk)
                states = hidden[rows].to(dtype)
                # d logp = g (onehot - p) and d lse = g p: one buffer holds the logits, then p, then the gradient.
                grad = shaped(states @ head.T, ctx.scale, ctx.cap)
                slope = 1 - (grad / ctx.cap).square_() if ctx.cap else None
                grad.sub_(lse[rows, None]).exp_()
                grad.mul_((grad_lse[rows] - grad_logp[rows])[:, None])
                grad.scatter_add_(1, targets[rows, None], grad_logp[rows, None])
                if slope is not None:
                    grad.mul_(slope)
                if ctx.scale != 1:
                    grad.mul_(ctx.scale)
                if grad_hidden is not None:
                    grad_hidden[rows] = (grad @ head).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight[: ctx.vocab].addmm_(grad.T, states)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), *[None] * 5


def shaped(logits: Tensor, scale: float, cap: float) -> Tensor:
    """``cap tanh(scale x / cap)`` of each entry; without a cap (0) ``scale x``."""
    scaled = logits if scale == 1 else scale * logits
    return cap * (scaled / cap).tanh() if cap else scaled


def _logsumexp_(logits: Tensor) -> Tensor:
    """Row-wise logsumexp that destroys its input, so that no second chunk is allocated."""
    top = logits.amax(dim=1, keepdim=True)
    return logits.sub_(top).exp_().sum(dim=1).log_() + top.squeeze(1)


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab: int | None = None,
    chunk: int = 1024,
    scale: float = 1.0,
    cap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and the logsumexp of its row of logits, never holding all logits.

    Args:
        hidden: final hidden states at the positions that predict the targets. ``[M, D]``
        weight: the head. ``[V', D]`` with V' >= vocab: rows that pad the embedding are left out.
        targets: ids below ``vocab``. ``[M]`` long
        vocab: size of the tokenizer's vocabulary; by default all rows.
        chunk: positions whose logits are held at once.
        scale: of the logits (Cohere, Granite).
        cap: soft cap of the logits, ``cap tanh(x / cap)`` (Gemma 2 and 3); 0 is none.

    Returns:
        ``logp [M]`` and ``lse [M]`` in nats, at least float32, differentiable once with respect to
        ``hidden`` and ``weight``: a row's gradient on its logits is g_logp (onehot - p) + g_lse p.
    """
    rows = weight.shape[0] if vocab is None else vocab
    logp, lse = _TokenStats.apply(hidden, weight, targets, rows, chunk, scale, cap)
    return logp, lse


def stats_from_logits(logits: Tensor, targets: Tensor, vocab: int | None = None) -> tuple[Tensor, Tensor]:
    """The naive form of :func:`token_stats`, from logits ``[..., V]`` and targets ``[...]``."""
    logits = logits[..., :vocab].to(_wide(logits.dtype))
    lse = torch.logsumexp(logits, dim=-1)
    return logits.gather(-1, targets[..., None]).squeeze(-1) - lse, lse


def kl_rows(logits_p: Tensor, logits_q: Tensor, vocab: int | None = None) -> Tensor:
    """Exact KL(p || q) in nats of each row, from logits ``[M, V]``: the Rao-Blackwellised estimator
    of the sequence KL when summed along a path sampled from p (arXiv 2504.10637)."""
    log_p = torch.log_softmax(logits_p[..., :vocab].to(_wide(logits_p.dtype)), dim=-1)
    log_q = torch.log_softmax(logits_q[..., :vocab].to(_wide(logits_q.dtype)), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
