"""What every registered algorithm must do; a new one is tested by being registered."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, Stats, TokenStats
from shiq_bench.api.needs import (
    BehaviourModel,
    Labels,
    MaxRatio,
    Mismatched,
    OnPolicy,
    Pairs,
    QHeads,
    Reference,
    Rewards,
    SumLogits,
    TargetNetwork,
    ValueHead,
)
from shiq_bench.api.registry import algorithms
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.settings import resolve
from shiq_bench.tabular.exact import kl
from shiq_bench.tabular.task import TabularTask
from shiq_bench.tabular.training import Tables, table_stats, tabulate, train_tables

NAMES = algorithms.names()
ABLATIONS = {
    "shiq one-step": ("shiq", {"multi_step": False}),
    "shiq unshifted": ("shiq", {"shift": False}),
    "shiq sequence-level": ("shiq", {"token_wise": False}),
    "rebel, one iteration": ("rebel", {"refresh": 0}),
    "ilql without cql": ("ilql", {"cql": 0.0}),
    "sft on the preferred": ("sft", {"select": "preferred"}),
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {**{name: (name, {}) for name in NAMES}, **ABLATIONS}
SHIFTED = ["shiq", "shiq one-step", "shiq sequence-level"]
BETA = 0.2
#: Enough of them, and large enough, for most methods to be at their fixed point to the last digit.
STEPS: dict[str, Any] = {"steps": 1000, "learning_rate": 0.3}
#: One number a sequence, or a value beside the policy, is badly conditioned where data are far off.
SETTINGS: dict[str, dict[str, Any]] = {"dro": {"steps": 2500}, "shiq sequence-level": {"steps": 1500}}
#: These declare no fixed point, and these have to; a new method may do either.
ENDLESS = ["kto", "rebel"]
FINITE = [
    "copg", "dpo", "dro", "grpo", "ilql", "ipo", "qsft", "qsft-direct", "reinforce", "rloo", "rwr", "sft", "shiq",
    "simpo", *ABLATIONS,
]  # fmt: skip
#: Actions that a fixed point never takes send logits to minus infinity, at the logarithm's pace.
TOLERANCE = {"sft on the preferred": 2e-3}


def make(variant: str, **options: object) -> Algorithm:
    name, given = VARIANTS[variant]
    cls = algorithms.get(name)
    known = {f.name for f in dataclasses.fields(cls)}
    return cls(**{**given, **{k: v for k, v in options.items() if k in known}})


def mapped(stats: Stats, f: Callable[[Tensor], Tensor]) -> Stats:
    """``f`` on every tensor of some statistics, those of target and mismatch included."""

    def tokens(t: TokenStats | None) -> TokenStats | None:
        return None if t is None else TokenStats(f(t.logp), f(t.lse))

    def plain(t: Tensor | None) -> Tensor | None:
        return None if t is None else f(t)

    policy = tokens(stats.policy)
    assert policy is not None
    return Stats(
        policy=policy,
        reference=tokens(stats.reference),
        behaviour=tokens(stats.behaviour),
        value=plain(stats.value),
        q=tuple(TokenStats(f(q.logp), f(q.lse)) for q in stats.q),
        sum_logits=plain(stats.sum_logits),
        max_ratio=plain(stats.max_ratio),
        actions=stats.actions,
        target=None if stats.target is None else mapped(stats.target, f),
        mismatched=None if stats.mismatched is None else mapped(stats.mismatched, f),
    )


def random_batch(
    algorithm: Algorithm, seed: int, prompts: int = 4, answers: int = 3, width: int = 6
) -> tuple[Stats, Batch]:
    """Ragged random statistics in float64 of all that the algorithm declares: policy and reference differ."""
    g = torch.Generator().manual_seed(seed)
    n = prompts * answers
    lengths = torch.randint(1, width + 1, (n,), generator=g)
    lengths[0] = width
    mask = torch.arange(width)[None] < lengths[:, None]

    def draw() -> Tensor:
        return torch.randn(n, width, generator=g, dtype=torch.float64) * mask

    def tokens() -> TokenStats:
        return TokenStats((draw() - 1) * mask, draw())

    def heads() -> dict[str, Any]:
        count = algorithm.need(QHeads)
        return {
            "value": draw() if algorithm.need(ValueHead) else None,
            "q": tuple(tokens() for _ in range(count.count if count else 0)),
        }

    pairs = [(g_ * answers + i, g_ * answers + j) for g_ in range(prompts) for i in range(answers) for j in range(i)]
    unit = (need := algorithm.need(Rewards)) is not None and need.unit
    batch = Batch(
        mask=mask,
        rewards=draw().abs() / 50 if unit else draw(),
        sampler_logp=draw(),
        group=torch.arange(prompts).repeat_interleave(answers),
        weight=torch.rand(n, generator=g, dtype=torch.float64) + 0.5,
        pairs=torch.tensor(pairs) if algorithm.need(Pairs) else torch.zeros(0, 2, dtype=torch.long),
        pair_weight=torch.rand(len(pairs) if algorithm.need(Pairs) else 0, generator=g, dtype=torch.float64) + 0.5,
        label=torch.rand(n, generator=g, dtype=torch.float64) if algorithm.need(Labels) else None,
    )
    stats = Stats(
        policy=tokens(),
        reference=tokens() if algorithm.need(Reference) else None,
        behaviour=tokens() if algorithm.need(BehaviourModel) else None,
        sum_logits=draw() if algorithm.need(SumLogits) else None,
        max_ratio=draw().abs() if algorithm.need(MaxRatio) else None,
        actions=7,
        target=Stats(tokens(), **heads()) if algorithm.need(TargetNetwork) else None,
        mismatched=Stats(tokens(), tokens()) if algorithm.need(Mismatched) else None,
        **heads(),
    )
    return stats, batch


def leaves(stats: Stats) -> list[Tensor]:
    """What a loss may send gradient to."""
    found = [stats.policy.logp, stats.policy.lse, stats.value, stats.sum_logits]
    return [t for t in [*found, *(x for q in stats.q for x in (q.logp, q.lse))] if t is not None]


def loss_and_grads(algorithm: Algorithm, stats: Stats, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    stats = mapped(stats, lambda t: t.clone().requires_grad_())
    inputs = leaves(stats)
    total = algorithm.loss(stats, batch).total
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    return total.detach(), [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)]


def select(batch: Batch, rows: Tensor) -> dict[str, Any]:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if "pair" not in f.name}
    return {k: None if v is None else v[rows] for k, v in fields.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_declares_itself(variant: str) -> None:
    algorithm = make(variant)
    assert dataclasses.is_dataclass(algorithm)
    assert type(algorithm).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert (type(algorithm).__doc__ or "").strip()
    if algorithm.need(MaxRatio):
        assert algorithm.need(TargetNetwork) and algorithm.need(BehaviourModel)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_is_pure_and_finite(variant: str) -> None:
    algorithm = make(variant)
    stats, batch = random_batch(algorithm, 0)
    seen: list[Tensor] = []
    mapped(stats, lambda t: seen.append(t) or t)  # type: ignore[func-returns-value]
    before = [t.clone() for t in [*seen, batch.rewards, batch.weight]]
    first, grads = loss_and_grads(algorithm, stats, batch)
    second, _ = loss_and_grads(algorithm, stats, batch)
    assert torch.equal(first, second)
    assert first.ndim == 0 and torch.isfinite(first)
    assert any(g.abs().sum() > 0 for g in grads), "no gradient at all"
    for old, new in zip(before, [*seen, batch.rewards, batch.weight], strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if make(v).need(Mismatched)])
def test_mismatched_answers_get_no_gradient(variant: str) -> None:
    """What else is frozen comes without gradient from the engine; these statistics are the trained policy's own."""
    algorithm = make(variant)
    stats, batch = random_batch(algorithm, 5)
    assert stats.mismatched is not None
    watched = mapped(stats.mismatched, lambda t: t.clone().requires_grad_())
    total = algorithm.loss(dataclasses.replace(stats, mismatched=watched), batch).total
    assert not total.requires_grad
    policy = mapped(Stats(stats.policy), lambda t: t.clone().requires_grad_()).policy
    assert algorithm.loss(dataclasses.replace(stats, policy=policy, mismatched=watched), batch).total.requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant: str) -> None:
    """Three more empty columns behind the mask: same loss, same gradients, none in the padding's rewards."""
    algorithm = make(variant)
    stats, batch = random_batch(algorithm, 1)
    n = len(batch.mask)

    def wide(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros(n, 3, dtype=x.dtype)], dim=1)

    names = ("mask", "rewards", "sampler_logp")
    wider = dataclasses.replace(batch, **{name: wide(getattr(batch, name)) for name in names})
    total, grads = loss_and_grads(algorithm, stats, batch)
    padded, padded_grads = loss_and_grads(algorithm, mapped(stats, wide), wider)
    torch.testing.assert_close(padded, total, rtol=1e-12, atol=1e-12)
    for a, b in zip(grads, padded_grads, strict=True):
        torch.testing.assert_close(b[:, :-3] * batch.mask, a * batch.mask, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_trajectories_changes_nothing(variant: str) -> None:
    algorithm = make(variant)
    stats, batch = random_batch(algorithm, 2)
    order = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(0))
    inverse = torch.argsort(order)
    total, grads = loss_and_grads(algorithm, stats, batch)
    shuffled = Batch(**select(batch, order), pairs=inverse[batch.pairs], pair_weight=batch.pair_weight)
    moved, moved_grads = loss_and_grads(algorithm, mapped(stats, lambda t: t[order]), shuffled)
    torch.testing.assert_close(moved, total, rtol=1e-12, atol=1e-12)
    for a, b in zip(grads, moved_grads, strict=True):
        torch.testing.assert_close(b, a[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_groups_add_up(variant: str) -> None:
    """The batch at once equals its prompt groups one by one, totals and counts both, unless declared otherwise."""
    algorithm = make(variant)
    stats, batch = random_batch(algorithm, 3)
    total, _ = loss_and_grads(algorithm, stats, batch)
    parts, counts = [], []
    for g in batch.group.unique():
        rows = (batch.group == g).nonzero().squeeze(1)
        keep = (batch.group[batch.pairs[:, 0]] == g).nonzero().squeeze(1)
        fields = select(batch, rows)
        fields["group"] = torch.zeros_like(fields["group"])
        part = Batch(**fields, pairs=batch.pairs[keep] - int(rows[0]), pair_weight=batch.pair_weight[keep])
        parts.append(loss_and_grads(algorithm, mapped(stats, lambda t, r=rows: t[r]), part)[0])  # type: ignore[misc]
        counts.append(algorithm.count(part))
    torch.testing.assert_close(sum(counts), algorithm.count(batch), rtol=1e-12, atol=1e-12)
    if algorithm.couples_groups:
        assert abs(float(sum(parts) - total)) > 1e-9, "declared to couple groups, and does not"
    else:
        torch.testing.assert_close(sum(parts), total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_answers_add_up(variant: str) -> None:
    """The batch at once equals its trajectories one by one, totals, counts and gradients, unless they are coupled."""
    algorithm = make(variant)
    stats, batch = random_batch(algorithm, 7)
    total, grads = loss_and_grads(algorithm, stats, batch)
    totals, parts, counts = [], [], []
    for n in range(len(batch.mask)):
        fields = select(batch, torch.tensor([n])) | {"group": torch.zeros(1, dtype=torch.long)}
        alone = Batch(**fields, pairs=batch.pairs[:0], pair_weight=batch.pair_weight[:0])
        found, part = loss_and_grads(algorithm, mapped(stats, lambda t, n=n: t[n : n + 1]), alone)  # type: ignore[misc]
        totals.append(found)
        parts.append(part)
        counts.append(algorithm.count(alone))
    if algorithm.couples_answers:
        assert abs(float(sum(totals) - total)) > 1e-9, "couples no answers: let it say couples_answers = False"
        return
    assert not algorithm.couples_groups and not any(map(algorithm.need, (Pairs, Labels, Mismatched)))
    torch.testing.assert_close(sum(counts), algorithm.count(batch), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(totals), total, rtol=1e-12, atol=1e-12)
    for whole, rows in zip(grads, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("above", [-1.0, 0.5])
def test_a_threshold_couples_no_answers(above: float) -> None:
    """Which of SFT's rules do is said by each, and a threshold is one for all."""
    algorithm = algorithms.get("sft")(select="above", threshold=above)  # type: ignore[call-arg]
    _, batch = random_batch(algorithm, 8)
    assert not algorithm.couples_answers
    rows = [select(batch, torch.tensor([n])) for n in range(len(batch.mask))]
    counts = [algorithm.count(Batch(**row, pairs=batch.pairs, pair_weight=batch.pair_weight)) for row in rows]
    assert 0 < float(sum(counts)) < float(batch.weight.sum())
    torch.testing.assert_close(sum(counts), algorithm.count(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not make(v).need(Pairs) and v != "rloo"])
def test_weights_are_counts(variant: str) -> None:
    """A trajectory of weight 2 is the same as standing there twice, where trajectories are what is counted.

    A preference method weighs pairs, and the leave-one-out mean of RLOO asks how many samples there are.
    """
    algorithm = make(variant)
    stats, batch = random_batch(algorithm, 6)
    batch = dataclasses.replace(batch, weight=torch.ones_like(batch.weight))
    twice = dataclasses.replace(batch, weight=batch.weight.index_fill(0, torch.tensor([0]), 2.0))
    rows = torch.cat([torch.tensor([0]), torch.arange(len(batch.mask))])
    doubled = Batch(**select(batch, rows), pairs=batch.pairs, pair_weight=batch.pair_weight)
    weighted = algorithm.loss(stats, twice).total / algorithm.count(twice)
    repeated = algorithm.loss(mapped(stats, lambda t: t[rows]), doubled).total / algorithm.count(doubled)
    torch.testing.assert_close(weighted, repeated, rtol=1e-12, atol=1e-12)


def _mean(x: Tensor, batch: Batch) -> Tensor:
    return (x * batch.weight).sum() / batch.weight.sum()


def _to_go(batch: Batch) -> Tensor:
    return batch.rewards.flip(-1).cumsum(-1).flip(-1) * batch.mask


def _square_gap(stats: Stats, batch: Batch) -> Tensor:
    """Mean square difference of a pair's returns."""
    left, right = batch.rewards.sum(-1)[batch.pairs].unbind(-1)
    return ((left - right).square() * batch.pair_weight).sum() / batch.pair_weight.sum()


STEP_ZERO: dict[str, Callable[[Stats, Batch], Tensor]] = {
    "dpo": lambda stats, batch: torch.tensor(math.log(2), dtype=torch.float64),
    "ipo": lambda stats, batch: torch.tensor(1 / (2 * 0.1) ** 2, dtype=torch.float64),
    "shiq": lambda stats, batch: _mean(_to_go(batch).square().sum(-1), batch),
    "shiq sequence-level": lambda stats, batch: _mean(_to_go(batch)[:, 0].square(), batch),
    "shiq one-step": lambda stats, batch: _mean(batch.rewards.square().sum(-1), batch),
    "copg": _square_gap,
    "rebel": _square_gap,
    "dro": lambda stats, batch: _mean((batch.rewards.sum(-1) - stats.value[:, 0]).square() / 2, batch),  # type: ignore[index]
    "sft": lambda stats, batch: _mean(-stats.policy.logp.sum(-1), batch),
}


@pytest.mark.parametrize("variant", STEP_ZERO)
def test_step_zero(variant: str) -> None:
    """pi = rho: the starting value, where a closed form gives it."""
    algorithm = make(variant)
    stats, batch = random_batch(algorithm, 4)
    stats = dataclasses.replace(stats, policy=stats.reference or stats.policy)
    value = algorithm.loss(stats, batch).total / algorithm.count(batch)
    torch.testing.assert_close(value, STEP_ZERO[variant](stats, batch), rtol=1e-10, atol=1e-12)


# --- fixed points: the loss, the engine and the oracle have to agree ---


@functools.cache
def trees(variant: str, **settings: Any) -> tuple[Algorithm, RunSpec, Tables]:
    """Four small trees at once: data on the reference and 2 nats off it, rewards at every token and at the last."""
    name, given = VARIANTS[variant]
    spec = None
    worlds, data = [], []
    for off in (0.0, 2.0):
        for reward in ("token", "final"):
            options = {"enumerated": True, "kl_strength": BETA, "off_policy": off, "explore": 0.2 if off else 0.0}
            resolved = resolve(name, "tree", {"reward": reward, **STEPS, **options, **given, **settings})
            task, algorithm = resolved.task, resolved.algorithm
            assert isinstance(task, TabularTask)
            spec, world = resolved.spec, task.world(7)
            away = kl(world, np.log(world.behaviour), world.reference - _lse(world.reference))
            assert away == pytest.approx(off, abs=1e-6), "the behaviour must be as far away as it says"
            worlds.append(world)
            data.append(task.data(7))
    assert spec is not None
    return algorithm, spec, tabulate(worlds, data, algorithm, spec.labels)


@functools.cache
def learned(variant: str, fresh: Literal["no", "enumerated"] = "no", **settings: Any) -> np.ndarray:
    """Log-probabilities that training on the trees ends with. ``[4, S, A]``"""
    algorithm, spec, tables = trees(variant, **settings)
    return train_tables(algorithm, tables, spec, fresh=fresh).log_pi.numpy()


def _lse(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.log(np.exp(x).sum(-1, keepdims=True))
    return out


@pytest.mark.parametrize("variant", VARIANTS)
def test_fixed_point(variant: str) -> None:
    """Enumerated data: KL to the declared fixed point at most 1e-6, from the reference's own data and from 2 nats off.

    The fixed point is computed by enumeration or dynamic programming. Bradley-Terry labels use
    sigma(R - R'), so a preference method's pi* is that of the reward itself, at its own beta.
    """
    # Values travel one step back per time constant of the target network: a short one, for a short test.
    settings = {**({"tau": 0.05} if make(variant).need(TargetNetwork) else {}), **SETTINGS.get(variant, {})}
    algorithm, _, tables = trees(variant, **settings)
    log_pi = learned(variant, **({"fresh": "enumerated"} if algorithm.need(OnPolicy) else {}), **settings)
    assert np.isfinite(log_pi).all()
    for k, exact in enumerate(tables.exact):
        if (target := algorithm.fixed_point(exact)) is not None:
            assert kl(exact.world, target, log_pi[k]) <= TOLERANCE.get(variant, 1e-6), f"tree {k}"


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ENDLESS])
def test_the_start_is_not_the_fixed_point(variant: str) -> None:
    """A test in which the start is already right proves nothing."""
    algorithm, _, tables = trees(variant)
    fixed = [(e, target) for e in tables.exact if (target := algorithm.fixed_point(e)) is not None]
    if not fixed:
        pytest.skip(f"{variant} declares no fixed point")
    assert max(kl(e.world, target, e.log_reference) for e, target in fixed) > 0.01


@pytest.mark.parametrize("variant", [*FINITE, *ENDLESS])
def test_who_declares_a_fixed_point(variant: str) -> None:
    """KTO has none that is finite, and REBEL none while its reference is refreshed; each has a test of its own."""
    algorithm, _, tables = trees(variant)
    assert (algorithm.fixed_point(tables.exact[0]) is None) == (variant in ENDLESS)


def test_kto_collapses_on_what_is_mostly_undesirable() -> None:
    """No finite fixed point: mass on answers whose share of desirable labels is under one half goes to 0."""
    _, _, tables = trees("kto")
    log_pi = learned("kto")
    for k, exact in enumerate(tables.exact):
        paths = exact.paths
        log_p = (log_pi[k][paths.states, paths.actions]).sum(-1)
        label = tables.data["label"][k].numpy()[: len(log_p)]
        start = exact.log_reference[paths.states, paths.actions].sum(-1)
        for context in range(2):
            rows = paths.context == context
            bad = rows & (label < 0.5)
            assert np.exp(start[bad]).sum() > 0.2
            assert np.exp(log_p[bad]).sum() < 1e-3


def test_rebel_walks_on_after_a_refresh() -> None:
    """n iterations against a refreshed reference reach rho exp(n R / beta): it happens, and where it should."""
    settings = {"refresh": STEPS["steps"] // 2, "schedule": "constant"}
    _, _, tables = trees("rebel", **settings)
    log_pi = learned("rebel", **settings)
    for k, exact in enumerate(tables.exact):
        assert kl(exact.world, exact.optimum(BETA / 2), log_pi[k]) <= 1e-6
        assert kl(exact.world, exact.optimum(BETA), log_pi[k]) > 0.05


@pytest.mark.parametrize("variant", ["reinforce", "rwr"])
def test_off_policy_data_mislead_them(variant: str) -> None:
    """Policy gradients on stored data, and reward-weighted regression, must MISS pi* when mu is not rho."""
    _, _, tables = trees(variant)
    log_pi = learned(variant)
    for k in (2, 3):  # two nats off
        exact = tables.exact[k]
        assert kl(exact.world, exact.optimum(BETA), log_pi[k]) > 0.05


def test_rloo_with_exact_expectations_is_copg() -> None:
    """On stored data it does find pi*: with the mean over mu as baseline its gradient is the covariance under mu of
    R - beta w with grad ln pi, which is half of copg's. What misleads reinforce is its reward-to-go."""
    _, _, tables = trees("rloo")
    log_pi = learned("rloo")
    for k, exact in enumerate(tables.exact):
        assert kl(exact.world, exact.optimum(BETA), log_pi[k]) <= 1e-6


def test_rwr_is_right_on_the_references_own_data() -> None:
    """The other half of the claim: with mu = rho it does reach pi*."""
    _, _, tables = trees("rwr")
    log_pi = learned("rwr")
    assert kl(tables.exact[0].world, tables.exact[0].optimum(BETA), log_pi[0]) <= 1e-6


# --- the offsets of logits, which carry ShiQ's values ---


def _moved_loss(variant: str, offset: float) -> float:
    """A shiq loss with a constant a state added to the logits of reference and policy."""
    algorithm, _, tables = trees(variant)
    world = tables.exact[0].world
    noise = torch.randn(world.size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) * offset
    step = 0.3 * torch.randn(world.size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    reference = torch.as_tensor(world.reference) + noise
    data = {name: t[0] for name, t in tables.data.items()}
    stats = table_stats(algorithm, {"logits": reference + step}, {"reference": reference}, None, data)
    names = ("mask", "rewards", "sampler_logp", "group", "weight", "pairs", "pair_weight")
    return float(algorithm.loss(stats, Batch(**{n: data[n] for n in names})).total)


@pytest.mark.parametrize("variant", SHIFTED)
def test_shifted_losses_ignore_reference_offsets(variant: str) -> None:
    """Adding any constant per state to the reference's logits, and to the policy's start, changes no loss."""
    assert _moved_loss(variant, 1.0) == pytest.approx(_moved_loss(variant, 0.0), rel=1e-10)


def test_unshifted_loss_sees_reference_offsets() -> None:
    """The ablation must lose the invariance, or the switch switches nothing."""
    assert abs(_moved_loss("shiq unshifted", 1.0) - _moved_loss("shiq unshifted", 0.0)) > 1e-3
