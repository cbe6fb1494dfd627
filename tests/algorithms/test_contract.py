"""What every registered algorithm must do; a new one is tested by being registered."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from shiq_bench.api import Algorithm, Pairs, Reference, algorithms
from shiq_bench.batch import Batch, Stats, TokenStats
from tasks.tree import Tree
from tests.tables import Table, kl, solve

NAMES = algorithms.names()
ABLATIONS = {
    "shiq one-step": ("shiq", {"multi_step": False}),
    "shiq unshifted": ("shiq", {"shift": False}),
    "shiq sequence-level": ("shiq", {"token_wise": False}),
}
VARIANTS = {**{name: (name, {}) for name in NAMES}, **ABLATIONS}


def make(variant: str, **options: object) -> Algorithm:
    name, given = VARIANTS[variant]
    cls = algorithms.get(name)
    known = {f.name for f in dataclasses.fields(cls)}
    return cls(**{**given, **{k: v for k, v in options.items() if k in known}})


def random_batch(seed: int, prompts: int = 4, answers: int = 3, width: int = 6) -> tuple[Stats, Batch]:
    """Ragged random statistics in float64: policy and reference differ."""
    g = torch.Generator().manual_seed(seed)
    n = prompts * answers
    lengths = torch.randint(1, width + 1, (n,), generator=g)
    lengths[0] = width
    mask = torch.arange(width)[None] < lengths[:, None]

    def draw() -> torch.Tensor:
        return torch.randn(n, width, generator=g, dtype=torch.float64) * mask

    pairs = [(g_ * answers + i, g_ * answers + j) for g_ in range(prompts) for i in range(answers) for j in range(i)]
    batch = Batch(
        mask=mask,
        rewards=draw(),
        sampler_logp=draw(),
        group=torch.arange(prompts).repeat_interleave(answers),
        weight=torch.rand(n, generator=g, dtype=torch.float64) + 0.5,
        truncated=torch.zeros(n, dtype=torch.bool),
        pairs=torch.tensor(pairs),
        pair_weight=torch.rand(len(pairs), generator=g, dtype=torch.float64) + 0.5,
    )
    stats = Stats(TokenStats(draw() - 1, draw()), TokenStats(draw() - 1, draw()))
    return stats, batch


def leaves(stats: Stats) -> tuple[Stats, list[torch.Tensor]]:
    inputs = [stats.policy.logp.clone().requires_grad_(), stats.policy.lse.clone().requires_grad_()]
    return Stats(TokenStats(*inputs), stats.reference), inputs


def loss_and_grads(algorithm: Algorithm, stats: Stats, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    stats, inputs = leaves(stats)
    total = algorithm.loss(stats, batch).total
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return total.detach(), [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)]


def reorder(stats: Stats, batch: Batch, order: torch.Tensor) -> tuple[Stats, Batch]:
    inverse = torch.argsort(order)
    pick = {f.name: getattr(batch, f.name)[order] for f in dataclasses.fields(batch) if not f.name.startswith("pair")}
    assert stats.reference is not None
    moved = Stats(
        TokenStats(stats.policy.logp[order], stats.policy.lse[order]),
        TokenStats(stats.reference.logp[order], stats.reference.lse[order]),
    )
    return moved, Batch(**pick, pairs=inverse[batch.pairs], pair_weight=batch.pair_weight)


@pytest.mark.parametrize("variant", VARIANTS)
def test_declares_itself(variant: str) -> None:
    algorithm = make(variant)
    assert dataclasses.is_dataclass(algorithm)
    assert type(algorithm).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert (type(algorithm).__doc__ or "").strip()
    assert algorithm.fixed_point in ("optimum", "data")


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_is_pure_and_finite(variant: str) -> None:
    stats, batch = random_batch(0)
    algorithm = make(variant)
    before = [t.clone() for t in (stats.policy.logp, stats.policy.lse, batch.rewards, batch.weight)]
    first, grads = loss_and_grads(algorithm, stats, batch)
    second, _ = loss_and_grads(algorithm, stats, batch)
    assert torch.equal(first, second)
    assert first.ndim == 0 and torch.isfinite(first)
    assert any(g.abs().sum() > 0 for g in grads), "no gradient at all"
    for old, new in zip(before, (stats.policy.logp, stats.policy.lse, batch.rewards, batch.weight), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant: str) -> None:
    """Three more columns of garbage behind the mask: same loss, and no gradient in them."""
    stats, batch = random_batch(1)
    algorithm = make(variant)
    n = len(batch.mask)

    def pad(x: torch.Tensor, value: float) -> torch.Tensor:
        return torch.cat([x, torch.full((n, 3), value, dtype=x.dtype)], dim=1)

    wide = dataclasses.replace(
        batch,
        mask=torch.cat([batch.mask, torch.zeros(n, 3, dtype=torch.bool)], dim=1),
        rewards=pad(batch.rewards, 0.0),
        sampler_logp=pad(batch.sampler_logp, 0.0),
    )
    assert stats.reference is not None
    wider = Stats(
        TokenStats(pad(stats.policy.logp, 0.0), pad(stats.policy.lse, 0.0)),
        TokenStats(pad(stats.reference.logp, 0.0), pad(stats.reference.lse, 0.0)),
    )
    total, grads = loss_and_grads(algorithm, stats, batch)
    padded, padded_grads = loss_and_grads(algorithm, wider, wide)
    torch.testing.assert_close(padded, total, rtol=1e-12, atol=1e-12)
    for a, b in zip(grads, padded_grads, strict=True):
        torch.testing.assert_close(b[:, :-3] * batch.mask, a * batch.mask, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_trajectories_changes_nothing(variant: str) -> None:
    stats, batch = random_batch(2)
    order = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(0))
    total, grads = loss_and_grads(make(variant), stats, batch)
    moved, moved_grads = loss_and_grads(make(variant), *reorder(stats, batch, order))
    torch.testing.assert_close(moved, total, rtol=1e-12, atol=1e-12)
    for a, b in zip(grads, moved_grads, strict=True):
        torch.testing.assert_close(b, a[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_add_up(variant: str) -> None:
    """The batch at once equals its prompt groups one by one, totals and counts both."""
    stats, batch = random_batch(3)
    algorithm = make(variant)
    total, _ = loss_and_grads(algorithm, stats, batch)
    parts, counts = [], []
    assert stats.reference is not None
    for g in batch.group.unique():
        rows = (batch.group == g).nonzero().squeeze(1)
        first = int(rows[0])
        keep = (batch.group[batch.pairs[:, 0]] == g).nonzero().squeeze(1)
        fields = {f.name: getattr(batch, f.name)[rows] for f in dataclasses.fields(batch) if "pair" not in f.name}
        fields["group"] = torch.zeros_like(fields["group"])
        part = Batch(**fields, pairs=batch.pairs[keep] - first, pair_weight=batch.pair_weight[keep])
        part_stats = Stats(
            TokenStats(stats.policy.logp[rows], stats.policy.lse[rows]),
            TokenStats(stats.reference.logp[rows], stats.reference.lse[rows]),
        )
        parts.append(loss_and_grads(algorithm, part_stats, part)[0])
        counts.append(algorithm.count(part))
    torch.testing.assert_close(sum(parts), total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(counts), algorithm.count(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_step_zero(variant: str) -> None:
    """pi = rho: the known starting value of each family."""
    stats, batch = random_batch(4)
    assert stats.reference is not None
    algorithm = make(variant)
    value = algorithm.loss(Stats(stats.reference, stats.reference), batch).total / algorithm.count(batch)
    if algorithm.need(Pairs):
        expected = torch.tensor(math.log(2), dtype=torch.float64)
    elif variant in ("shiq", "shiq sequence-level"):
        to_go = batch.rewards.flip(-1).cumsum(-1).flip(-1) * batch.mask
        kept = to_go if variant == "shiq" else to_go[:, :1]
        expected = (kept.square().sum(-1) * batch.weight).sum() / batch.weight.sum()
    elif variant == "shiq one-step":
        expected = (batch.rewards.square().sum(-1) * batch.weight).sum() / batch.weight.sum()
    elif variant == "sft":
        expected = -(stats.reference.logp.sum(-1) * batch.weight).sum() / batch.weight.sum()
    else:
        pytest.skip("no closed form at step 0")
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)


def fixed_point(algorithm: Algorithm, tree: Tree, log_rho: torch.Tensor, log_mu: torch.Tensor) -> torch.Tensor:
    if algorithm.fixed_point == "data":
        return log_mu
    return torch.tensor(tree.oracle(log_rho.numpy(), algorithm.beta)).log()  # type: ignore[attr-defined]


@pytest.mark.parametrize("far", [False, True], ids=["mu = rho", "mu far from rho"])
@pytest.mark.parametrize("reward", ["token", "final"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fixed_point(variant: str, reward: str, far: bool) -> None:
    """Enumerated data, expected labels: KL to the declared fixed point at most 1e-6, off-policy too.

    The fixed point is computed by enumeration. Bradley-Terry labels use sigma(R - R'), so a
    preference method's pi* is that of the reward itself, at the method's own beta.
    """
    tree = Tree(actions=3, depth=3, reward=reward, tree_seed=5)
    table = Table.of(tree)
    reference = table.random_logits(seed=1)
    log_rho = table.log_completions(reference)
    log_mu = log_rho
    if far:
        # A tenth of uniform: full support, or the solver, not the loss, would be what is measured.
        uniform = torch.full_like(log_rho, math.log(0.1 / log_rho.shape[1]))
        log_mu = torch.logaddexp(table.log_completions(table.random_logits(seed=2, scale=3.5)) + math.log(0.9), uniform)
        assert kl(log_mu, log_rho) >= 2, "the behaviour must be far from the reference"
    algorithm = make(variant, beta=0.7)
    found = table.log_completions(solve(algorithm, table, reference, log_mu))
    target = fixed_point(algorithm, tree, log_rho, log_mu)
    assert kl(target, found) <= 1e-6
    if algorithm.fixed_point == "optimum":
        assert kl(target, log_rho) > 0.1, "a test in which the start is already right proves nothing"


@pytest.mark.parametrize("variant", ["shiq", "shiq one-step", "shiq sequence-level"])
def test_shifted_losses_ignore_reference_offsets(variant: str) -> None:
    """Adding any constant per state to the reference's logits, and to the policy's start, changes no loss."""
    table = Table.of(Tree(actions=3, depth=2))
    reference = table.random_logits(seed=3)
    offset = torch.randn(table.size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    step = table.random_logits(seed=4, scale=0.3)
    log_mu = table.log_completions(reference)
    algorithm = make(variant)
    batch = table.batch(algorithm, log_mu)
    plain = algorithm.loss(Stats(table.stats(reference + step), table.stats(reference)), batch).total
    moved = algorithm.loss(Stats(table.stats(reference + offset + step), table.stats(reference + offset)), batch).total
    torch.testing.assert_close(moved, plain, rtol=1e-10, atol=1e-12)


def test_unshifted_loss_sees_reference_offsets() -> None:
    """The ablation must lose the invariance, or the switch switches nothing."""
    table = Table.of(Tree(actions=3, depth=2))
    reference = table.random_logits(seed=3)
    algorithm = make("shiq unshifted")
    batch = table.batch(algorithm, table.log_completions(reference))
    plain = algorithm.loss(Stats(table.stats(reference), table.stats(reference)), batch).total
    moved = algorithm.loss(Stats(table.stats(reference + 1), table.stats(reference + 1)), batch).total
    assert abs(float(plain - moved)) > 1e-3


def test_every_optimum_needs_the_reference() -> None:
    for name in NAMES:
        cls = algorithms.get(name)
        if cls.fixed_point == "optimum":
            assert any(isinstance(n, Reference) for n in cls.needs), name


def test_oracle_is_the_soft_bellman_solution() -> None:
    """Enumeration agrees with dynamic programming on q*, computed the other way round."""
    tree = Tree(actions=3, depth=3, tree_seed=1)
    table = Table.of(tree)
    reference = table.random_logits(seed=0)
    beta = 0.4
    log_rho = reference.log_softmax(-1)
    value = torch.zeros(table.size, dtype=torch.float64)
    q = torch.zeros(table.size, tree.actions, dtype=torch.float64)
    rewards = torch.tensor(tree.token_rewards).reshape(-1, tree.depth)
    for t in reversed(range(tree.depth)):
        nxt = value[table.states[:, t + 1]] if t + 1 < tree.depth else 0.0
        q[table.states[:, t], table.actions[:, t]] = rewards[:, t] + nxt
        rows = table.states[:, t].unique()
        value[rows] = beta * torch.logsumexp(log_rho[rows] + q[rows] / beta, -1)
    log_pi = log_rho + (q - value[:, None]) / beta
    oracle = tree.oracle(table.log_completions(reference).numpy(), beta)
    np.testing.assert_allclose(table.log_completions(log_pi).exp().numpy(), oracle, atol=1e-12)
