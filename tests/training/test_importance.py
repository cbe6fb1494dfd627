"""Importance weights between sampler and trainer: worked out by hand, on expectations, and through the trainer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shiq_bench.algorithms.grpo import GRPO
from shiq_bench.algorithms.reinforce import Reinforce
from shiq_bench.algorithms.rloo import RLOO
from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, LossOutput, Stats, TokenStats, group_mean
from shiq_bench.api.needs import OnPolicy, Reference, Rewards
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.training.importance import Level, importance_weights, sampler_gap, weighed
from shiq_bench.training.policy import Policy
from shiq_bench.training.trainer import Collect, train
from tests.training.conftest import VOCAB, build

F = torch.float64
METHODS: dict[str, Algorithm] = {"reinforce": Reinforce(beta=0.5), "rloo": RLOO(beta=0.5), "grpo": GRPO(beta=0.5)}
LEVELS: tuple[Level, ...] = ("token", "sequence")


def made(logp: Tensor, sampler: Tensor, rewards: Tensor, mask: Tensor | None = None, **given: Tensor) -> Any:
    """Statistics and a batch of one prompt, against a reference whose every number is -1."""
    n = len(logp)
    batch = Batch(
        mask=torch.ones_like(logp, dtype=torch.bool) if mask is None else mask,
        rewards=rewards,
        sampler_logp=sampler,
        group=given.get("group", torch.zeros(n, dtype=torch.long)),
        weight=given.get("weight", torch.ones(n, dtype=logp.dtype)),
        pairs=torch.zeros(0, 2, dtype=torch.long),
        pair_weight=torch.zeros(0, dtype=logp.dtype),
    )
    reference = torch.full_like(logp.detach(), -1.0) * batch.mask
    return Stats(TokenStats(logp, torch.zeros_like(logp)), TokenStats(reference, reference)), batch


def worked() -> Any:
    """Ratios pi / pi_sampler of (1/2, 4) and (1, 3/2), log-probabilities those of the reference, returns 2 and 0."""
    logp = torch.full((2, 2), -1.0, dtype=F).requires_grad_()
    ratio = torch.tensor([[0.5, 4.0], [1.0, 1.5]], dtype=F)
    rewards = torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=F)
    return logp, *made(logp, -1.0 - ratio.log(), rewards)


def gradient(algorithm: Algorithm, at: Tensor, stats: Stats, batch: Batch) -> tuple[Tensor, Tensor]:
    total = algorithm.loss(stats, batch).total
    return total.detach(), torch.autograd.grad(total, at)[0]


@pytest.mark.parametrize(
    ("algo", "terms"),
    [
        ("reinforce", [[-1.0, -1.0], [1.0, 1.0]]),  # - (2 - 1) and - (0 - 1)
        ("rloo", [[-2.0, -2.0], [2.0, 2.0]]),  # - (2 - 0) and - (0 - 2)
        ("grpo", [[-0.5, -0.5], [0.5, 0.5]]),  # -/+ (2 - 1) / 1, over two tokens; the KL is at its minimum
    ],
)
def test_weights_multiply_the_terms(algo: str, terms: list[list[float]]) -> None:
    """Cut at 2: (1/2, 2) and (1, 3/2) of the tokens; of the sequences, 1/2 * 4 = 2, which is not cut, and 3/2."""
    weights: dict[Level, Any] = {"token": [[0.5, 2.0], [1.0, 1.5]], "sequence": [[2.0, 2.0], [1.5, 1.5]]}
    logp, stats, batch = worked()
    plain = METHODS[algo].loss(stats, replace(batch, sampler_logp=logp.detach())).total
    for level, weight in weights.items():
        value, grad = gradient(METHODS[algo], logp, *weighed(stats, batch, level, 2.0)[:2])
        assert value.item() == plain.item(), "values stay"
        torch.testing.assert_close(grad, torch.tensor(weight, dtype=F) * torch.tensor(terms, dtype=F))


def test_the_kl_in_a_loss_is_weighed_with_the_rest() -> None:
    """Against a reference at half the probability w = ln 2, so beta (1 - e^-w) / 2 = 1/8 joins the terms of GRPO."""
    logp, stats, batch = worked()
    lower = torch.full((2, 2), -1.0 - math.log(2), dtype=F)
    stats = replace(stats, reference=TokenStats(lower, lower))
    _, grad = gradient(METHODS["grpo"], logp, *weighed(stats, batch, "token", 2.0)[:2])
    expected = [[0.5 * (-0.5 + 0.125), 2 * (-0.5 + 0.125)], [0.5 + 0.125, 1.5 * (0.5 + 0.125)]]
    torch.testing.assert_close(grad, torch.tensor(expected, dtype=F))


def test_a_sequence_is_cut_after_the_product() -> None:
    """1/2 * 4 = 2 is cut at 7/4 and 3/2 is not; tokens cut first would make it 1/2 * 7/4. Padding counts nowhere."""
    _, stats, batch = worked()
    weight, truncated = importance_weights(stats.policy.logp, batch, "sequence", 1.75)
    torch.testing.assert_close(weight, torch.tensor([[1.75, 1.75], [1.5, 1.5]], dtype=F))
    assert truncated.tolist() == [[True, True], [False, False]]
    short = replace(batch, mask=torch.tensor([[True, False], [True, True]]))
    weight, truncated = importance_weights(stats.policy.logp, short, "sequence", 1.75)
    assert weight[:, 0].tolist() == pytest.approx([0.5, 1.5]) and not truncated.any()


def test_the_numbers() -> None:
    """|ln| of the ratios over four tokens, and their r - 1 - ln r; weights (1/2, 2, 1, 3/2) of which one was cut."""
    _, stats, batch = worked()
    ratios = (0.5, 4.0, 1.0, 1.5)
    expected = {
        "sampler_gap": sum(abs(math.log(r)) for r in ratios) / 4,
        "sampler_kl": sum(r - 1 - math.log(r) for r in ratios) / 4,
    }
    found = weighed(stats, batch, "none", 2.0)
    assert found[0] is stats and found[1] is batch
    assert {k: v.item() for k, v in found[2].items()} == pytest.approx(expected)
    _, _, numbers = weighed(stats, batch, "token", 2.0)
    expected |= {"importance_weight": 5 / 4, "importance_truncated": 1 / 4}
    assert {k: v.item() for k, v in numbers.items()} == pytest.approx(expected)


def test_a_small_gap_is_not_lost_in_rounding() -> None:
    """At 1e-4 nats e^d - 1 - d is 5e-9, which float32 would make 0 or worse."""
    logp = torch.full((1, 3), -1.0)
    _, batch = made(logp, logp - 1e-4, torch.zeros(1, 3))
    d = (logp.double() - batch.sampler_logp)[0, 0].item()
    assert sampler_gap(logp, batch)["sampler_kl"].item() == pytest.approx(d**2 / 2, rel=1e-3)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algo", METHODS)
def test_a_sampler_that_agrees_changes_no_bit(algo: str, level: Level) -> None:
    generator = torch.Generator().manual_seed(0)
    logp = -torch.rand(4, 5, generator=generator)
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1])[:, None]
    logp = (logp * mask).requires_grad_()
    stats, batch = made(logp, logp.detach(), torch.rand(4, 5, generator=generator) * mask, mask)
    before = gradient(METHODS[algo], logp, stats, batch)
    after = gradient(METHODS[algo], logp, *weighed(stats, batch, level, 2.0)[:2])
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) and before[1].abs().max() > 0


# --- exact expectations, a sampler that is another policy


def sequences(theta: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """ln pi of every token of all sequences over three tokens; ``theta [1 + 3, 3]``: logits at the start, and after."""
    every = torch.tensor(list(itertools.product(range(3), repeat=length)))
    states = torch.cat([torch.zeros_like(every[:, :1]), 1 + every[:, :-1]], dim=1)
    return theta.log_softmax(-1)[states, every], every


def expected_gradient(algorithm: Algorithm, theta: Tensor, sampler: Tensor, length: int, level: Level) -> Tensor:
    """The gradient in expectation over samples of ``sampler``: of one at a time, or of two where one is left out."""
    logp, _ = sequences(theta, length)
    drawn = sequences(sampler, length)[0].detach()
    chance = drawn.sum(-1).exp()
    rewards = torch.linspace(0, 1, len(logp), dtype=F)[torch.randperm(len(logp), generator=torch.manual_seed(1))]
    members = torch.arange(len(logp))
    group, weight = torch.zeros_like(members), chance
    if isinstance(algorithm, RLOO):
        members = torch.cartesian_prod(members, members).flatten()
        group = torch.arange(len(members)) // 2
        weight = chance[members].reshape(-1, 2).prod(-1).repeat_interleave(2) / 2
    paid = torch.zeros_like(drawn)
    paid[:, -1] = rewards
    stats, batch = made(logp[members], drawn[members], paid[members], group=group, weight=weight)
    return torch.autograd.grad(algorithm.loss(*weighed(stats, batch, level, math.inf)[:2]).total, theta)[0]


@pytest.mark.parametrize(("level", "length"), [("token", 1), ("sequence", 1), ("sequence", 3)])
@pytest.mark.parametrize("algo", ["reinforce", "rloo"])
def test_weighed_samples_of_another_policy_give_the_gradient_on_policy(algo: str, level: Level, length: int) -> None:
    """To the last digit where nothing is cut; of tokens alone, weights leave a bias, and none a larger one."""
    generator = torch.Generator().manual_seed(0)
    theta, other = torch.randn(2, 4, 3, generator=generator, dtype=F)
    theta.requires_grad_()
    method = METHODS[algo]
    right = expected_gradient(method, theta, theta, length, "none")
    torch.testing.assert_close(expected_gradient(method, theta, other, length, level), right, rtol=0, atol=1e-12)
    wrong = (expected_gradient(method, theta, other, length, "none") - right).norm() / right.norm()
    assert wrong > 0.1
    if length > 1:
        by_token = (expected_gradient(method, theta, other, length, "token") - right).norm() / right.norm()
        assert 1e-3 < by_token < wrong


# --- through the trainer

SPEC = RunSpec(
    "a", "t", steps=3, groups_per_step=2, learning_rate=1e-2, precision="fp32", schedule="constant", warmup=0.0, seed=3
)  # fmt: skip


@dataclass(frozen=True)
class Gradient(Algorithm):
    """A policy gradient, its terms multiplied by hand or left alone."""

    by_hand: bool = False
    needs = (OnPolicy(3), Reference(), Rewards())

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        logp = stats.policy.logp
        weight = (logp.detach() - batch.sampler_logp).exp().clamp(max=1.5) if self.by_hand else torch.ones_like(logp)
        returns = batch.rewards.sum(-1)
        metrics = {"mean": (weight * batch.mask).sum() / batch.mask.sum()} if self.by_hand else {}
        terms = (returns - group_mean(returns, batch))[:, None] * (weight * logp) * batch.mask
        return LossOutput(-terms.sum(), metrics)


def answers(names: Sequence[str], step: int) -> list[Trajectory]:
    """Three a prompt; two begin alike, and the sampler gave what they share another probability each time."""
    made = []
    for name in names:
        for k, ids in enumerate(([5, 6, 7], [5, 6, 9, 4], [8])):
            said = tuple(-3.5 - 0.2 * (i + k + step) for i in range(len(ids)))
            tool = [11] if k == 1 else []  # a result of a tool, before the last action
            tokens = (1, 2 + ord(name) % 3, *ids[:-1], *tool, ids[-1])
            mask = (False, False, *[True] * (len(ids) - 1), *[False] * len(tool), True)
            logp = (0.0, 0.0, *said[:-1], *[0.0] * len(tool), said[-1])
            made.append(Trajectory(name, tokens, mask, (0.0,) * (len(tokens) - 1) + (float(k),), logp))
    return made


def trained(folder: Path, algorithm: Algorithm, layout: Any = "tree", **options: Any) -> tuple[Policy, Any]:
    policy = Policy(build(), VOCAB, layout)
    assert policy.layout == layout
    collect = Collect("ab", options.pop("sample", answers))
    spec = replace(SPEC, **options)
    return policy, train(policy, None, [], algorithm, spec, folder, collect=collect)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("micro", [0, 1])
def test_the_engine_weighs_as_a_loss_would_by_hand(layout: Any, micro: int, tmp_path: Path) -> None:
    ours, history = trained(
        tmp_path / "a", Gradient(), layout, importance="token", importance_cap=1.5, micro_groups=micro
    )
    theirs, expected = trained(tmp_path / "b", Gradient(by_hand=True))
    alone, unweighed = trained(tmp_path / "c", Gradient())
    for h, e, u in zip(history, expected, unweighed, strict=True):
        assert h["importance_weight"] == pytest.approx(e["mean"], rel=1e-4)
        assert h["grad_norm"] == pytest.approx(e["grad_norm"], rel=1e-3) != pytest.approx(u["grad_norm"], rel=1e-2)
        assert 0 < h["importance_truncated"] < 1 and h["sampler_gap"] == pytest.approx(e["sampler_gap"], rel=1e-4)
        assert {"sampler_gap", "sampler_kl"} <= set(u) and "importance_weight" not in u
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-4)
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(ours.parameters(), alone.parameters(), strict=True))


def test_a_sampler_that_does_not_say_is_refused(tmp_path: Path) -> None:
    def silent(names: Sequence[str], step: int) -> list[Trajectory]:
        return [replace(t, sampler_logp=None) for t in answers(names, step)]

    with pytest.raises(UserError, match=r"needs the log-probabilities of the sampler.*leave importance out"):
        trained(tmp_path, Gradient(), sample=silent, importance="token")
    _, history = trained(tmp_path, Gradient(), sample=silent)
    assert not any("sampler_gap" in h for h in history), "what is not known is not written as a number"
