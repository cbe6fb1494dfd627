"""Losses and gradients worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.dpo import DPO
from algorithms.sft import SFT
from algorithms.shiq import ShiQ
from shiq_bench.api import Algorithm
from shiq_bench.batch import Batch, Stats, TokenStats

F = torch.float64


def two_tokens(logp: list[list[float]], lse: list[list[float]], rewards: list[list[float]], pairs: Any = ()) -> Any:
    """Statistics of a policy against a reference whose every number is 0."""
    logps, lses = torch.tensor(logp, dtype=F).requires_grad_(), torch.tensor(lse, dtype=F).requires_grad_()
    n, width = logps.shape
    batch = Batch(
        mask=torch.ones(n, width, dtype=torch.bool),
        rewards=torch.tensor(rewards, dtype=F),
        sampler_logp=torch.full((n, width), math.nan),
        group=torch.zeros(n, dtype=torch.long),
        weight=torch.ones(n, dtype=F),
        truncated=torch.zeros(n, dtype=torch.bool),
        pairs=torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2),
        pair_weight=torch.ones(len(pairs), dtype=F),
    )
    zero = torch.zeros_like(logps.detach())
    return Stats(TokenStats(logps, lses), TokenStats(zero, zero)), batch, logps, lses


def check(
    algorithm: Algorithm, made: Any, total: float, grad_logp: list[list[float]], grad_lse: list[list[float]]
) -> None:
    stats, batch, logps, lses = made
    value = algorithm.loss(stats, batch).total
    assert value.item() == pytest.approx(total, abs=1e-12)
    grads = torch.autograd.grad(value, [logps, lses], allow_unused=True)
    for grad, expected in zip(grads, (grad_logp, grad_lse), strict=True):
        found: Tensor = torch.zeros_like(logps) if grad is None else grad
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F), rtol=0, atol=1e-12)


def test_shiq_multi_step() -> None:
    """beta = 1/2, r = (1, 2), w = (2, -4), d_lse = (4, 2), so d_v = (2, 1).

    r - beta w = (0, 4); to the end: (4, 4); residuals e = (4 - 2, 4 - 1) = (2, 3); loss 4 + 9 = 13.
    d/dw_1 = 2 e_1 (-beta) = -2; d/dw_2 = 2 (e_1 + e_2)(-beta) = -5; d/d lse_t = 2 e_t (-beta) = (-2, -3).
    """
    made = two_tokens([[2.0, -4.0]], [[4.0, 2.0]], [[1.0, 2.0]])
    check(ShiQ(beta=0.5), made, 13.0, [[-2.0, -5.0]], [[-2.0, -3.0]])


def test_shiq_one_step() -> None:
    """The same numbers one step at a time: e_1 = 1 + 1 - 1 - 2 = -1, e_2 = 2 + 0 + 2 - 1 = 3; loss 10.

    d/dw_t = 2 e_t (-beta) = (1, -3); lse_1: -beta 2 e_1 = 1; lse_2: beta 2 e_1 - beta 2 e_2 = -1 - 3 = -4.
    """
    made = two_tokens([[2.0, -4.0]], [[4.0, 2.0]], [[1.0, 2.0]])
    check(ShiQ(beta=0.5, multi_step=False), made, 10.0, [[1.0, -3.0]], [[1.0, -4.0]])


def test_shiq_sequence_level() -> None:
    """Only the first token's term: e_1 = 2, loss 4, d/dw = 2 e_1 (-beta) = -2 for both, lse_1 -2, lse_2 0."""
    made = two_tokens([[2.0, -4.0]], [[4.0, 2.0]], [[1.0, 2.0]])
    check(ShiQ(beta=0.5, token_wise=False), made, 4.0, [[-2.0, -2.0]], [[-2.0, 0.0]])


def test_shiq_unshifted_differs_only_by_the_reference_value() -> None:
    """With a reference lse of (2, 2), shifting takes 1 = beta 2 off each value: e = (3, 4), loss 25; unshifted 13."""
    stats, batch, logps, lses = two_tokens([[2.0, -4.0]], [[4.0, 2.0]], [[1.0, 2.0]])
    moved = Stats(stats.policy, TokenStats(stats.reference.logp, torch.full((1, 2), 2.0, dtype=F)))
    check(ShiQ(beta=0.5), (moved, batch, logps, lses), 25.0, [[-3.0, -7.0]], [[-3.0, -4.0]])
    check(ShiQ(beta=0.5, shift=False), (moved, batch, logps, lses), 13.0, [[-2.0, -5.0]], [[-2.0, -3.0]])


def test_dpo() -> None:
    """beta = 1/2, w_c = 1 + 1 = 2, w_r = 3 - 1 = 2 - 2 ln 3: margin beta (w_c - w_r) = ln 3, sigma = 3/4.

    loss = ln(4/3); d/dw_c = -beta (1 - sigma) = -1/8 for each of its tokens, +1/8 for the other's.
    """
    made = two_tokens([[1.0, 1.0], [3.0, -1.0 - 2 * math.log(3)]], [[0.0, 0.0]] * 2, [[0.0, 1.0], [0.0, 0.0]], [(0, 1)])
    check(DPO(beta=0.5), made, math.log(4 / 3), [[-1 / 8] * 2, [1 / 8] * 2], [[0.0, 0.0]] * 2)


def test_sft_selections() -> None:
    """Log-likelihoods -1, -2, -4, returns 0, 1, 1: all 7, preferred (ties kept) 6, above 0.5 likewise, above 1 none."""
    rows = [[-0.5, -0.5], [-1.0, -1.0], [-2.0, -2.0]]
    for options, kept in (
        ({}, (1, 1, 1)),
        ({"select": "preferred"}, (0, 1, 1)),
        ({"select": "above", "threshold": 0.5}, (0, 1, 1)),
        ({"select": "above", "threshold": 1.0}, (0, 0, 0)),
    ):
        made = two_tokens(rows, [[0.0, 0.0]] * 3, [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        algorithm = SFT(**options)  # type: ignore[arg-type]
        total = sum(k * -sum(r) for k, r in zip(kept, rows, strict=True))
        check(algorithm, made, total, [[-float(k)] * 2 for k in kept], [[0.0, 0.0]] * 3)
        assert algorithm.count(made[1]).item() == sum(kept)


def test_sft_prefers_within_a_prompt() -> None:
    """The best of each prompt, not of the batch."""
    stats, batch, *_ = two_tokens(
        [[-1.0, 0.0], [-2.0, 0.0], [-4.0, 0.0]], [[0.0, 0.0]] * 3, [[0, 5.0], [0, 1.0], [0, 2.0]]
    )
    batch.group.copy_(torch.tensor([0, 1, 1]))
    assert SFT(select="preferred").loss(stats, batch).total.item() == 1.0 + 4.0


def test_masked_tokens_and_weights_count() -> None:
    """Weight 3 on the hand-worked ShiQ example, beside a masked third column of garbage-free zeros."""
    stats, batch, *_ = two_tokens([[2.0, -4.0]], [[4.0, 2.0]], [[1.0, 2.0]])
    batch.weight.fill_(3.0)
    assert ShiQ(beta=0.5).loss(stats, batch).total.item() == pytest.approx(39.0)
    assert ShiQ(beta=0.5).count(batch).item() == 3.0
