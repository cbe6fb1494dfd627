"""Losses and gradients worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from shiq_bench.algorithms.copg import CoPG
from shiq_bench.algorithms.dpo import DPO
from shiq_bench.algorithms.dro import DRO
from shiq_bench.algorithms.grpo import GRPO
from shiq_bench.algorithms.ilql import ILQL
from shiq_bench.algorithms.ipo import IPO
from shiq_bench.algorithms.kto import KTO
from shiq_bench.algorithms.qsft import QSFT, QSFTDirect
from shiq_bench.algorithms.rebel import REBEL
from shiq_bench.algorithms.reinforce import Reinforce
from shiq_bench.algorithms.rloo import RLOO
from shiq_bench.algorithms.rwr import RWR
from shiq_bench.algorithms.sft import SFT
from shiq_bench.algorithms.shiq import ShiQ
from shiq_bench.algorithms.simpo import SimPO
from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, Dense, Stats, TokenStats
from shiq_bench.api.needs import BehaviourModel, MaxRatio, OnPolicy, Reference, TargetNetwork
from shiq_bench.api.registry import algorithms

F = torch.float64
LN2, LN3 = math.log(2), math.log(3)
Grads = Sequence[tuple[Tensor, list[Any]]]


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
        pairs=torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2),
        pair_weight=torch.ones(len(pairs), dtype=F),
    )
    zero = torch.zeros_like(logps.detach())
    return Stats(TokenStats(logps, lses), TokenStats(zero, zero)), batch, logps, lses


def leaf(rows: list[Any]) -> Tensor:
    return torch.tensor(rows, dtype=F).requires_grad_()


def fixed(rows: list[Any]) -> Tensor:
    return torch.tensor(rows, dtype=F)


def expect(algorithm: Algorithm, stats: Stats, batch: Batch, total: float, gradients: Grads) -> None:
    """The loss, and its gradient with respect to each leaf."""
    value = algorithm.loss(stats, batch).total
    assert value.item() == pytest.approx(total, abs=1e-12)
    grads = torch.autograd.grad(value, [at for at, _ in gradients], allow_unused=True)
    for grad, (at, expected) in zip(grads, gradients, strict=True):
        found = torch.zeros_like(at) if grad is None else grad
        torch.testing.assert_close(found, fixed(expected), rtol=0, atol=1e-12)


def check(
    algorithm: Algorithm, made: Any, total: float, grad_logp: list[list[float]], grad_lse: list[list[float]]
) -> None:
    stats, batch, logps, lses = made
    expect(algorithm, stats, batch, total, [(logps, grad_logp), (lses, grad_lse)])


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


def test_ipo() -> None:
    """beta = 1/4, so margins are drawn to 2; w_c = 2 + 3/2, w_r = 2 - 1: margin 5/2, error 1/2.

    Pair weight 3: loss 3/4; d/dw_c = 3 * 2 * 1/2 = 3 for each token, -3 for the other's.
    """
    stats, batch, logps, lses = two_tokens([[2.0, 1.5], [2.0, -1.0]], [[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2, [(0, 1)])
    batch.pair_weight.fill_(3.0)
    check(IPO(beta=0.25), (stats, batch, logps, lses), 0.75, [[3.0, 3.0], [-3.0, -3.0]], [[0.0, 0.0]] * 2)
    assert IPO().count(batch).item() == 3.0


def kto_batch(mismatched: list[list[float]], label: list[float]) -> Any:
    """Two trajectories of w = 3/2 + 2 ln 3, weighing 1 and 3, beside mismatched answers of one token."""
    stats, batch, logps, _ = two_tokens([[1.5, 2 * LN3]] * 2, [[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2)
    batch.weight.copy_(fixed([1.0, 3.0]))
    other = leaf(mismatched)
    zero = torch.zeros_like(other.detach())
    extra = Stats(TokenStats(other, other), TokenStats(zero, zero))
    return dataclasses.replace(stats, mismatched=extra), dataclasses.replace(batch, label=fixed(label)), logps, other


def test_kto() -> None:
    """beta = 1/2; mismatched w = 3 and 1 with weights 1 and 3: kl = 6/4 = 3/2, and beta (w - kl) = ln 3.

    The first is desirable: 1 - sigma(ln 3) = 1/4. The second is not, with lambda_U = 2: weight 3
    times 2 times 1 - sigma(-ln 3) = 3/4, so 9/2. Loss 19/4. sigma' = 3/16, so d/dw = -beta 3/16 =
    -3/32 and 3 * 2 * 3/32 = 9/16; the estimate of the KL carries no gradient.
    """
    stats, batch, logps, other = kto_batch([[3.0], [1.0]], [1.0, 0.0])
    gradients: Grads = [(logps, [[-3 / 32] * 2, [9 / 16] * 2]), (other, [[0.0], [0.0]])]
    expect(KTO(beta=0.5, undesirable=2.0), stats, batch, 19 / 4, gradients)
    assert KTO(beta=0.5).loss(stats, batch).metrics["kl"].item() == 1.5


def test_kto_takes_chances_as_labels() -> None:
    """Desirable by a half: the first loses 1/2 1/4 + 1/2 3/4 = 1/2, and its two pulls cancel; the second, 3 * 1/4."""
    stats, batch, logps, _ = kto_batch([[3.0], [1.0]], [0.5, 1.0])
    expect(KTO(beta=0.5), stats, batch, 0.5 + 0.75, [(logps, [[0.0] * 2, [-9 / 32] * 2])])


def test_kto_estimates_no_negative_kl() -> None:
    """Mismatched w = -3 and -1: kl 0 and not -3/2, so beta w = 3/4 + ln 3 and 1 - sigma = 1 / (1 + 3 e^(3/4))."""
    stats, batch, *_ = kto_batch([[-3.0], [-1.0]], [1.0, 1.0])
    total = 4 / (1 + 3 * math.exp(0.75))
    assert KTO(beta=0.5).loss(stats, batch).total.item() == pytest.approx(total, abs=1e-12)


def test_simpo() -> None:
    """beta = 2, gamma = 1; m_c = (-1 + ln 3 - 2) / 2, and m_r = -2 of a single token: the mean is over real ones.

    2 (m_c - m_r) - 1 = -3 + ln 3 + 4 - 1 = ln 3: loss ln(4/3). d/dm_c = -2 * 1/4 = -1/2, so -1/4 a
    token; d/dm_r = 1/2, all of it on its one token.
    """
    made = two_tokens([[-1.0, LN3 - 2], [-2.0, 0.0]], [[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2, [(0, 1)])
    made[1].mask[1, 1] = False
    check(SimPO(beta=2.0, gamma=1.0), made, math.log(4 / 3), [[-0.25, -0.25], [0.5, 0.0]], [[0.0, 0.0]] * 2)


@pytest.mark.parametrize("algorithm", [CoPG(beta=0.5), REBEL(beta=0.5, refresh=0)], ids=["copg", "rebel"])
def test_copg_and_rebel(algorithm: Algorithm) -> None:
    """beta = 1/2 (eta = 2), R = 3, R' = 1, w_y = 1 + 1, w_y' = 3 - 1/2.

    (3 - 1) - (1 - 5/4) = 9/4, squared 81/16; d/dw_y = 2 * 9/4 * (-1/2) = -9/4, and 9/4 for w_y'.
    The other way round: (2 - 5/2) / 2 - (3 - 1) = -9/4, the same. Both orders at half weight: the same again.
    """
    rows: list[Any] = [[[1.0, 1.0], [3.0, -0.5]], [[0.0, 0.0]] * 2, [[0.0, 3.0], [1.0, 0.0]]]
    gradient: list[Any] = [[[-9 / 4] * 2, [9 / 4] * 2], [[0.0, 0.0]] * 2]
    check(algorithm, two_tokens(*rows, pairs=[(0, 1)]), 81 / 16, *gradient)
    both = two_tokens(*rows, pairs=[(0, 1), (1, 0)])
    both[1].pair_weight.fill_(0.5)
    check(algorithm, both, 81 / 16, *gradient)


def test_rebel_asks_for_the_previous_iterate() -> None:
    assert REBEL(refresh=7).need(Reference) == Reference(refresh=7)
    assert REBEL().need(Reference) != Reference()


def test_dro() -> None:
    """beta = 1/2, R = 3, w = 2, V(x) = -1 (the second value is of no prompt): error 3 + 1 - 1 = 3, loss 9/2.

    Weight 2: loss 9; d/dw = 2 * 3 * (-1/2) = -3 a token, d/dV(x) = -6.
    """
    stats, batch, logps, _ = two_tokens([[1.0, 1.0]], [[0.0, 0.0]], [[1.0, 2.0]])
    batch.weight.fill_(2.0)
    value = leaf([[-1.0, 5.0]])
    gradients: Grads = [(logps, [[-3.0, -3.0]]), (value, [[-6.0, 0.0]])]
    expect(DRO(beta=0.5), dataclasses.replace(stats, value=value), batch, 9.0, gradients)


def test_rwr() -> None:
    """beta = 1 / ln 2, so a return 1 below the best of its prompt counts half; ln pi(y) = -1, -2 and -4, -2.

    R = 1, 0 and -5, -6: factors 1, 1/2 and 1, 1/2. Loss 1 + 1 + 4 + 1 = 7, divided by the weight 4.
    """
    rows = [[-0.5, -0.5], [-2.0, 0.0], [-1.0, -3.0], [-1.0, -1.0]]
    made = two_tokens(rows, [[0.0, 0.0]] * 4, [[0.0, 1.0], [1.0, -1.0], [0.0, -5.0], [-3.0, -3.0]])
    made[1].group.copy_(torch.tensor([0, 0, 1, 1]))
    check(RWR(beta=1 / LN2), made, 7.0, [[-1.0] * 2, [-0.5] * 2] * 2, [[0.0, 0.0]] * 4)
    assert RWR().count(made[1]).item() == 4.0


@pytest.mark.parametrize("algorithm", [SFT(select="preferred"), RWR(beta=0.001)], ids=["sft", "rwr"])
def test_a_trajectory_without_weight_is_nobodys_best(algorithm: Algorithm) -> None:
    """R = -9 and, weighing nothing, 0: the first is the best that counts, in full; e^9000 times nothing is nothing."""
    made = two_tokens([[-1.0, -1.0], [-3.0, -3.0]], [[0.0, 0.0]] * 2, [[-9.0, 0.0], [0.0, 0.0]])
    made[1].weight[1] = 0.0
    check(algorithm, made, 2.0, [[-1.0] * 2, [0.0] * 2], [[0.0, 0.0]] * 2)


def test_reinforce() -> None:
    """beta = 1/2; r - beta w: (1, 2) - (-1, 1) = (2, 1) and (0, 1) - (1, -1) = (-1, 2).

    To go (3, 1) and (1, 2); the totals' mean is 2: advantages (1, -1) and (-1, 0). ln pi = w here:
    loss -(-2 - 2) - (-2 + 0) = 6, and the gradient is minus the advantages, none of it through w.
    """
    made = two_tokens([[-2.0, 2.0], [2.0, -2.0]], [[0.0, 0.0]] * 2, [[1.0, 2.0], [0.0, 1.0]])
    check(Reinforce(beta=0.5), made, 6.0, [[-1.0, 1.0], [1.0, 0.0]], [[0.0, 0.0]] * 2)


def test_rloo() -> None:
    """beta = 1/2; w = 2, -2, 0 and R = 4, 0, 5, so g = 3, 1, 5; the others' means are 3, 4, 2: advantages 0, -3, 3.

    ln pi = w here: loss -(0 + 6 + 0) = -6, the gradient minus the advantage at every token.
    """
    rows = [[-2.0, 4.0], [-1.0, -1.0], [1.0, -1.0]]
    made = two_tokens(rows, [[0.0, 0.0]] * 3, [[4.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    check(RLOO(beta=0.5), made, -6.0, [[0.0] * 2, [3.0] * 2, [-3.0] * 2], [[0.0, 0.0]] * 3)


def test_rloo_with_weights_and_alone() -> None:
    """Weights 3 and 1, g = 3 and 1: mean 5/2, 1 - 9/16 - 1/16 = 3/8: advantages 4/3 and -4; a lone sample has 0."""
    made = two_tokens([[0.0, 0.0]] * 3, [[0.0, 0.0]] * 3, [[3.0, 0.0], [1.0, 0.0], [7.0, 0.0]])
    made[1].weight.copy_(fixed([3.0, 1.0, 1.0]))
    made[1].group.copy_(torch.tensor([0, 0, 1]))
    check(RLOO(), made, 0.0, [[-4.0] * 2, [4.0] * 2, [0.0] * 2], [[0.0, 0.0]] * 3)


def grpo_batch(logp: list[list[float]], sampler: list[list[float]], reference: list[list[float]]) -> Any:
    """Returns 3 and 1: mean 2, population deviation 1, advantages 1 and -1."""
    stats, batch, logps, lses = two_tokens(logp, [[0.0, 0.0]] * 2, [[0.0, 3.0], [1.0, 0.0]])
    stats = dataclasses.replace(stats, reference=TokenStats(fixed(reference), torch.zeros(2, 2, dtype=F)))
    return stats, dataclasses.replace(batch, sampler_logp=fixed(sampler)), logps, lses


def test_grpo() -> None:
    """clip = 1/5, beta = 1/2. Ratios (1, 2) at A = 1: terms -1 and, clipped, -6/5 without gradient.

    Ratios (1/2, 2) at A = -1: 4/5, clipped without gradient, and 2, whose gradient is 2: min takes
    the worse. w = -ln 2 at the first token of the first, 0 elsewhere: k3 = 2 - 1 - ln 2, gradient
    1 - 2 = -1. Means of two tokens: (-1 + (1 - ln 2)/2 - 6/5)/2 + (4/5 + 2)/2 = 11/20 - ln 2 / 4.
    Gradients (-1 - 1/2)/2, 0; 0, 2/2.
    """
    logp = [[-3.0, -1.0], [-2.0, -1.0]]
    made = grpo_batch(logp, [[-3.0, -1.0 - LN2], [-2.0 + LN2, -1.0 - LN2]], [[-3.0 + LN2, -1.0], [-2.0, -1.0]])
    check(GRPO(beta=0.5), made, 11 / 20 - LN2 / 4, [[-0.75, 0.0], [0.0, 1.0]], [[0.0, 0.0]] * 2)


def test_grpo_of_an_unknown_sampler() -> None:
    """Ratio 1, but a gradient: -A / |y|. The first has a single real token, the second two."""
    logp = [[-3.0, 0.0], [-2.0, -1.0]]
    made = grpo_batch(logp, [[math.nan, math.nan]] * 2, logp)
    made[1].mask[0, 1] = False
    made[1].rewards.copy_(fixed([[3.0, 0.0], [1.0, 0.0]]))
    check(GRPO(), made, -1.0 + 1.0, [[-1.0, 0.0], [0.5, 0.5]], [[0.0, 0.0]] * 2)


def test_grpo_deviation_is_weighted_and_bounded() -> None:
    """Weights 3 and 1 on returns 3 and 1: mean 5/2, variance 3/4 1/4 + 1/4 9/4 = 3/4; equal returns give 0."""
    logp = [[-3.0, -1.0], [-2.0, -1.0]]
    made = grpo_batch(logp, logp, logp)
    made[1].weight.copy_(fixed([3.0, 1.0]))
    up = 3 * 0.5 / math.sqrt(0.75) / 2
    check(GRPO(), made, 0.0, [[-up, -up], [up, up]], [[0.0, 0.0]] * 2)
    made[1].rewards.copy_(fixed([[0.0, 3.0], [3.0, 0.0]]))
    check(GRPO(), made, 0.0, [[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2)


def test_qsft() -> None:
    """|A| = 3, gamma = 1/2, r = (1/4, 3/4), max ratio (9, 1/2): y = (1/4 + 1/4, 3/4) = (1/2, 3/4).

    ln p(a) = (-1, -2); the others' sum is S - 3 lse - ln p = (-1 - 3 + 1, 0 - 6 + 2) = (-3, -4),
    shared by (1 - y)/2 = (1/4, 1/8). Loss (1/2 + 3/4) + (3/2 + 1/2) = 13/4. d/d ln p = (1 - y)/2 - y
    = (-1/4, -5/8); d/d lse = 3 (1 - y)/2 = (3/4, 3/8); d/dS = -(1 - y)/2.
    """
    stats, batch, logps, lses = two_tokens([[-1.0, -2.0]], [[1.0, 2.0]], [[0.25, 0.75]])
    sums = leaf([[-1.0, 0.0]])
    stats = dataclasses.replace(stats, sum_logits=sums, max_ratio=fixed([[9.0, 0.5]]), actions=3)
    gradients: Grads = [(logps, [[-1 / 4, -5 / 8]]), (lses, [[3 / 4, 3 / 8]]), (sums, [[-1 / 4, -1 / 8]])]
    for algorithm in (QSFT(gamma=0.5), QSFTDirect(gamma=0.5)):
        expect(algorithm, stats, batch, 13 / 4, gradients)
        metrics = algorithm.loss(stats, batch).metrics
        assert (metrics["clipped"].item(), metrics["y"].item()) == (0.0, 5 / 8)


def test_qsft_clips_its_label() -> None:
    """A ratio of 4 at s_2 makes y_1 = 1/4 + 2, clipped to 1: only ln p(a_1) remains, loss 1 + 2; half of y is clipped.

    A second token in the padding ends the episode at the first: y_1 = 1/4, though its ratio is still there.
    """
    stats, batch, *_ = two_tokens([[-1.0, -2.0]], [[1.0, 2.0]], [[0.25, 0.75]])
    ratio, sums = fixed([[9.0, 4.0]]), fixed([[-1.0, 0.0]])
    stats = dataclasses.replace(stats, sum_logits=sums, max_ratio=ratio, actions=3)
    out = QSFT(gamma=0.5).loss(stats, batch)
    assert out.total.item() == pytest.approx(1 + 2)
    assert out.metrics["clipped"].item() == 0.5
    batch.mask[0, 1] = False
    assert QSFT(gamma=0.5).loss(stats, batch).total.item() == pytest.approx(1 / 4 + 3 / 8 * 3)


def test_qsft_acts() -> None:
    """p = (1/4, 3/4) and pi_b = (2/3, 1/3), alpha = 4: logits ln 2/3 + 1 and ln 1/3 + 3. Direct: p's own logits."""
    dense = Dense(fixed([[0.0, LN3]]), behaviour=fixed([[LN2 + 5, 5.0]]))
    torch.testing.assert_close(QSFT(alpha=4.0).act(dense), fixed([[math.log(2 / 3) + 1, math.log(1 / 3) + 3]]))
    assert QSFTDirect().act(dense) is dense.logits
    assert QSFT().reweights and not QSFTDirect().reweights
    assert algorithms.get("qsft") is QSFT and algorithms.get("qsft-direct") is QSFTDirect


def test_ilql() -> None:
    """gamma = 1/2, expectile = 3/4, cql = 1/2; V = (1, 2), r = (1, 3), Q_1 = (2, 2), Q_2 = (1, 4).

    Target heads (3, 1) and (2, 4), the lower (2, 1): u = (1, -1), loss 3/4 + 1/4 = 1, d/dV = (-3/2, 1/2),
    with nothing through the backups r + V(s')/2 = (2, 3). Those leave (0, 1) and (1, -1): loss 1 + 2.
    cql (lse - Q) = -cql ln softmax: 1/2 (1 + 2) + 1/2 (1 + 1) = 5/2. Loss 13/2. Each head has
    d/d lse = -2 error: (0, -2) and (-2, 2); d/d logp is half less.
    """
    stats, batch, logps, _ = two_tokens([[-1.0, -1.0]], [[0.0, 0.0]], [[1.0, 3.0]])
    value = leaf([[1.0, 2.0]])
    heads = [(leaf([[-1.0, -2.0]]), leaf([[3.0, 4.0]])), (leaf([[-1.0, -1.0]]), leaf([[2.0, 5.0]]))]
    targets = [([[-1.0, -2.0]], [[4.0, 3.0]]), ([[-3.0, -1.0]], [[5.0, 5.0]])]
    target = Stats(stats.policy, q=tuple(TokenStats(fixed(a), fixed(b)) for a, b in targets))
    stats = dataclasses.replace(stats, value=value, q=tuple(TokenStats(a, b) for a, b in heads), target=target)
    gradients: Grads = [
        (value, [[-1.5, 0.5]]),
        (heads[0][0], [[-0.5, -2.5]]),
        (heads[0][1], [[0.0, -2.0]]),
        (heads[1][0], [[-2.5, 1.5]]),
        (heads[1][1], [[-2.0, 2.0]]),
        (logps, [[0.0, 0.0]]),
    ]
    expect(ILQL(gamma=0.5, expectile=0.75, cql=0.5), stats, batch, 13 / 2, gradients)


@pytest.mark.parametrize("expectile", [0.7, 0.9])
def test_ilql_keeps_the_precision_of_its_statistics(expectile: float) -> None:
    """u = (1, -1), and nothing else: the two weights are expectile and its complement, to the last bits of float64."""
    stats, batch, _, _ = two_tokens([[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]])
    zero = TokenStats(fixed([[0.0, 0.0]]), fixed([[0.0, 0.0]]))
    for u, weight in ((1.0, expectile), (-1.0, 1 - expectile)):
        target = Stats(stats.policy, q=(TokenStats(fixed([[0.0, 0.0]]), fixed([[u, 0.0]])),))
        found = dataclasses.replace(stats, value=leaf([[0.0, 0.0]]), q=(zero,), target=target)
        total = ILQL(expectile=expectile, cql=0.0).loss(found, batch).total
        assert total.dtype == torch.float64 and abs(total.item() - weight) < 1e-15


def test_ilql_acts() -> None:
    """pi_b = (2/3, 1/3), Q_1 = (1, 5), Q_2 = (2, 3), the lower (1, 3), alpha = 2."""
    dense = Dense(fixed([[9.0, -9.0]]), q=(fixed([[1.0, 5.0]]), fixed([[2.0, 3.0]])), behaviour=fixed([[LN2, 0.0]]))
    torch.testing.assert_close(ILQL(alpha=2.0).act(dense), fixed([[math.log(2 / 3) + 2, math.log(1 / 3) + 6]]))


def test_hyperparameters_reach_the_needs() -> None:
    assert QSFT(tau=0.5).need(TargetNetwork) == TargetNetwork(0.5) == ILQL(tau=0.5).need(TargetNetwork)
    assert QSFT(floor=0.25).need(MaxRatio) == MaxRatio(0.25)
    assert QSFT().need(BehaviourModel) == BehaviourModel(start=True)
    assert {a(samples=3).need(OnPolicy) for a in (Reinforce, RLOO, GRPO)} == {OnPolicy(3)}


@pytest.mark.parametrize("cls", [Reinforce, RLOO], ids=["reinforce", "rloo"])
def test_expected_policy_gradient(cls: type[Any]) -> None:
    """All four completions of two binary tokens, weighted by pi: the gradient is that of beta KL - E[R].

    It is written out here as the objective itself and differentiated, not as a policy gradient.
    RLOO's differs by the factor 1 / (1 - sum pi(y)^2) that makes it leave one out.
    """
    g = torch.Generator().manual_seed(0)
    logits, reference = (torch.randn(3, 2, generator=g, dtype=F) for _ in range(2))
    logits.requires_grad_()
    states, actions = torch.tensor([[0, 1], [0, 1], [0, 2], [0, 2]]), torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    rewards = torch.randn(3, 2, generator=g, dtype=F)[states, actions]
    logp, log_rho = (x.log_softmax(-1)[states, actions] for x in (logits, reference))
    chance = logp.sum(-1).exp()
    stats, batch, *_ = two_tokens([[0.0, 0.0]] * 4, [[0.0, 0.0]] * 4, rewards.tolist())
    stats = Stats(TokenStats(logp, logp), TokenStats(log_rho, log_rho))
    batch.weight.copy_(chance.detach())
    found = torch.autograd.grad(cls(beta=0.3).loss(stats, batch).total, logits, retain_graph=True)[0]
    cost = (chance * (0.3 * (logp - log_rho).sum(-1) - rewards.sum(-1))).sum()
    exact = torch.autograd.grad(cost, logits)[0]
    factor = 1 / (1 - chance.detach().square().sum()) if cls is RLOO else 1.0
    torch.testing.assert_close(found, exact * factor, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        *((a, {"beta": b}, "beta is") for a in (IPO, KTO, SimPO, CoPG, REBEL, DRO, RWR, GRPO) for b in (0.0, math.nan)),
        *((a, {"samples": 1}, "samples is 1") for a in (Reinforce, RLOO, GRPO)),
        (KTO, {"desirable": -1.0}, "desirable is -1.0"),
        (KTO, {"desirable": 0.0, "undesirable": 0.0}, "not both 0"),
        (SimPO, {"gamma": -1.0}, "gamma is -1.0"),
        (REBEL, {"refresh": -1}, "refresh is -1"),
        (GRPO, {"clip": 1.0}, "clip is 1.0"),
        *((a, {"gamma": 1.5}, "gamma is 1.5") for a in (QSFT, QSFTDirect, ILQL)),
        *((a, {"tau": 0.0}, "tau is 0.0") for a in (QSFT, QSFTDirect, ILQL)),
        *((a, {"alpha": 0.0}, "alpha") for a in (QSFT, ILQL)),
        (QSFT, {"floor": 1.0}, "floor is 1.0"),
        (ILQL, {"expectile": 1.0}, "expectile is 1.0"),
        (ILQL, {"cql": -0.1}, "cql is -0.1"),
    ],
)
def test_refuses_hyperparameters(cls: type[Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        cls(**options)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)
