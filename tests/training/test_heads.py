"""What a policy learns and is compared with beside its logits: heads, target, refreshed reference, behaviour."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, Dense, LossOutput, Stats
from shiq_bench.api.needs import BehaviourModel, MaxRatio, QHeads, Reference, SumLogits, TargetNetwork, ValueHead
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.collation import lay_out, to_batch, to_stats
from shiq_bench.data.groups import Row, group_rows, prepare
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.settings import resolve
from shiq_bench.tabular.task import TabularTask
from shiq_bench.tabular.training import table_stats, tabulate, train_tables
from shiq_bench.training.policy import ActingPolicy, Policy
from shiq_bench.training.reference import Companions, autocast, model_inputs, policy_stats
from shiq_bench.training.starting_policy import WeightedLikelihood
from shiq_bench.training.stopping import Interrupted, StopFlag, last_checkpoint
from shiq_bench.training.trainer import train
from tests.training.conftest import VOCAB, build, ragged

SPEC = RunSpec(
    "a", "t", steps=6, groups_per_step=2, learning_rate=1e-2, precision="fp32", schedule="constant", warmup=0.0,
    save_every=1, seed=3,
)  # fmt: skip


@dataclass(frozen=True)
class Everything(Algorithm):
    """Reads all that an engine can supply, and remembers nothing."""

    tau: float = 0.25
    refresh: int = 2

    @property
    def needs(self) -> Any:
        return (
            ValueHead(), QHeads(2), SumLogits(), TargetNetwork(self.tau), BehaviourModel(), MaxRatio(0.01),
            Reference(self.refresh),
        )  # fmt: skip

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        assert stats.value is not None and stats.sum_logits is not None and stats.max_ratio is not None
        assert stats.reference is not None and stats.behaviour is not None and stats.target is not None
        backup = batch.rewards + stats.max_ratio + stats.target.q[0].lse + 0.1 * stats.behaviour.logp
        errors = [stats.value - stats.target.q[1].lse, stats.policy.logp - stats.reference.logp]
        errors += [q.logp + q.lse - backup for q in stats.q]
        errors += [0.01 * (stats.sum_logits - stats.actions * stats.policy.lse), stats.policy.logp + 1]
        return LossOutput(sum((e * batch.mask).square().sum() for e in errors))  # type: ignore[arg-type]

    def act(self, dense: Dense) -> Tensor:
        assert dense.behaviour is not None
        return dense.behaviour.log_softmax(-1) + dense.q[0] + dense.logits.softmax(-1)


def equipped(model: Any, algorithm: Algorithm | None = None) -> Policy:
    """With heads that are not zero."""
    policy = Policy(copy.deepcopy(model), VOCAB).equip(algorithm or Everything(), seed=1)
    if policy.heads is not None and policy.heads.value is not None:
        torch.nn.init.normal_(policy.heads.value)
    return policy


def naive(policy: Policy, trajectories: list[Trajectory]) -> tuple[Tensor, Tensor, Tensor]:
    """One trajectory at a time: all logits and final hidden states before each action, and the actions."""
    logits, hidden, actions = [], [], []
    for t in trajectories:
        out = policy.model(torch.tensor([t.token_ids]), output_hidden_states=True)
        where = [i for i, a in enumerate(t.action_mask) if a]
        logits.append(out.logits[0, [i - 1 for i in where], :VOCAB])
        hidden.append(out.hidden_states[-1][0, [i - 1 for i in where]])
        actions += [t.token_ids[i] for i in where]
    return torch.cat(logits), torch.cat(hidden), torch.tensor(actions)


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_heads_and_sums_equal_the_naive_ones(any_model: Any, layout: Any) -> None:
    """Values and gradients, wherever the layout puts a trajectory, whatever the head of the model."""
    policy, trajectories = equipped(any_model), ragged()
    assert policy.heads is not None and policy.heads.value is not None and policy.heads.bias is not None
    logits, hidden, actions = naive(policy, trajectories)
    q = [hidden @ weight.T for weight in policy.heads.q]
    expected = {
        "logp": logits.log_softmax(-1).gather(1, actions[:, None])[:, 0],
        "lse": logits.logsumexp(-1),
        "sum_logits": logits.sum(-1),
        "value": hidden @ policy.heads.value + policy.heads.bias,
    }
    for i in range(2):
        expected[f"q{i}_lse"] = q[i].logsumexp(-1)
        expected[f"q{i}_logp"] = q[i].gather(1, actions[:, None])[:, 0] - expected[f"q{i}_lse"]
    inputs = lay_out(trajectories, layout)
    got = {name: found[inputs["spread"]] for name, found in policy(**model_inputs(inputs)).items()}
    assert set(got) == set(expected)
    weights = torch.linspace(-1, 1, len(actions))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=2e-4, rtol=1e-4)
        gradients = []
        for out in (got, expected):
            policy.zero_grad()
            (out[name] * weights).sum().backward(retain_graph=True)
            gradients.append([None if p.grad is None else p.grad.clone() for p in policy.parameters()])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a if a is not None else torch.zeros(()), b if b is not None else torch.zeros(()),
                                       atol=2e-3, rtol=1e-3)  # fmt: skip


def test_without_heads_forward_says_what_it_always_did() -> None:
    out = Policy(build(), VOCAB)(**model_inputs(lay_out(ragged(), "padded")))
    assert set(out) == {"logp", "lse"}


def test_a_value_starts_at_zero_and_each_q_on_its_own() -> None:
    policy = Policy(build(), VOCAB).equip(Everything(), seed=7)
    same, other = (Policy(build(), VOCAB).equip(Everything(), seed=s) for s in (7, 8))
    assert policy.heads is not None and same.heads is not None and other.heads is not None
    out = policy(**model_inputs(lay_out(ragged(), "padded")))
    assert not out["value"].any()
    assert torch.equal(policy.heads.q[0], same.heads.q[0])
    assert not torch.allclose(policy.heads.q[0], other.heads.q[0])
    assert not torch.allclose(policy.heads.q[0], policy.heads.q[1])
    before = policy.heads
    assert policy.equip(Everything(), seed=9).heads is before


def test_heads_are_float32_whatever_autocast() -> None:
    policy, inputs = equipped(build()), lay_out(ragged(), "padded")
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        out = policy(**model_inputs(inputs))
        (hidden,) = policy.states(inputs)
    assert all(v.dtype == torch.float32 for v in out.values())
    assert policy.heads is not None and policy.heads.value is not None and policy.heads.bias is not None
    exact = hidden.float() @ policy.heads.value + policy.heads.bias
    torch.testing.assert_close(out["value"], exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.05, 1.0])
def test_max_ratio(any_model: Any, floor: float) -> None:
    target, behaviour = equipped(any_model), Policy(copy.deepcopy(any_model), VOCAB)
    with torch.no_grad():
        for p in behaviour.parameters():
            p.add_(0.1 * torch.randn_like(p))
    trajectories = ragged()
    inputs = lay_out(trajectories, "padded")
    with torch.no_grad():
        got = target.max_ratio(target.states(inputs), behaviour, behaviour.states(inputs), floor, chunk=5)
        p, b = (naive(x, trajectories)[0].softmax(-1) for x in (target, behaviour))
    expected = (p / b).where(b >= floor, 0).amax(-1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)
    assert (expected == 0).all() == (floor == 1.0)


@pytest.mark.parametrize(("floor", "expected"), [(0.0, 2.0), (0.2, 2.0), (0.3, 0.5), (0.6, 0.0)])
def test_max_ratio_of_a_table(floor: float, expected: float) -> None:
    """The target's (1/4, 1/4, 1/2) over the behaviour's (1/2, 1/4, 1/4): 1/2, 1 and 2."""

    @dataclass(frozen=True)
    class Ratio(Everything):
        needs = (TargetNetwork(), BehaviourModel(), MaxRatio(floor))  # type: ignore[assignment]

    target, behaviour = torch.tensor([[[1.0, 1.0, 2.0]], [[2.0, 1.0, 1.0]]], dtype=torch.float64).log()
    one = torch.zeros(1, 1, dtype=torch.long)
    data = {"states": one, "actions": one, "mask": one == 0}
    stats = table_stats(Ratio(), {"logits": behaviour}, {"behaviour": behaviour}, {"logits": target}, data)
    assert stats.max_ratio is not None
    assert stats.max_ratio.item() == pytest.approx(expected, abs=1e-12)


def test_stats_come_from_whom_they_should() -> None:
    """Each companion's numbers are its own, without gradient, and none is trained or seen by the optimiser."""
    policy, behaviour = equipped(build()), Policy(build(seed=5), VOCAB)
    names = {name for name, _ in policy.named_parameters()}
    companions = Companions(policy, Everything(), behaviour, live_reference=False, precision="fp32")
    assert {name for name, _ in policy.named_parameters()} == names
    assert set(companions.policies) == {"reference", "target", "behaviour"}
    assert not any(p.requires_grad for c in companions.policies.values() for p in c.parameters())
    assert not any(c.training for c in companions.policies.values())
    with torch.no_grad():
        companions.policies["target"].heads.q[0].add_(1.0)  # type: ignore[union-attr]
    inputs = lay_out(ragged(), "padded")
    found = companions.statistics(inputs)
    (outputs, with_target, with_behaviour) = (
        p(**model_inputs(inputs)) for p in (policy, companions.policies["target"], behaviour)
    )
    stats = to_stats(outputs, inputs, **found, actions=VOCAB)
    assert stats.target is not None and stats.behaviour is not None and stats.reference is not None
    assert torch.equal(stats.target.q[0].lse[inputs["mask"]], with_target["q0_lse"])
    assert not torch.allclose(stats.target.q[0].lse, stats.q[0].lse)
    assert torch.equal(stats.behaviour.logp[inputs["mask"]], with_behaviour["logp"])
    assert torch.equal(stats.reference.logp, stats.policy.logp.detach())
    assert stats.actions == VOCAB and not stats.target.q[0].lse.requires_grad


def test_the_target_follows_by_polyak_averages_and_the_reference_by_jumps() -> None:
    policy = equipped(build())
    companions = Companions(policy, Everything(tau=0.25, refresh=3), Policy(build(), VOCAB), False, "fp32")
    start = [p.detach().clone() for p in policy.parameters()]
    expected = [p.clone() for p in start]
    for step in range(1, 5):
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(torch.randn_like(p))
        now = [p.detach().clone() for p in policy.parameters()]
        expected = [e + 0.25 * (p - e) for e, p in zip(expected, now, strict=True)]
        companions.update(policy, step)
        for got, e in zip(companions.policies["target"].parameters(), expected, strict=True):
            torch.testing.assert_close(got, e, rtol=1e-6, atol=1e-6)
        if step == 3:
            jumped = [p.detach().clone() for p in policy.model.parameters()]
        wanted = jumped if step >= 3 else start
        for got, e in zip(companions.policies["reference"].model.parameters(), wanted, strict=False):
            assert torch.equal(got, e)


def test_a_tables_target_and_reference_do_the_same() -> None:
    """What the loss sees at an update comes from the tables that the updates before it left."""

    @dataclass(frozen=True)
    class Seen(Everything):
        def loss(self, stats: Stats, batch: Batch) -> LossOutput:
            assert stats.target is not None and stats.target.value is not None and stats.reference is not None
            found = {"target": stats.target.value.sum(), "reference": stats.reference.lse.sum()}
            return LossOutput(super().loss(stats, batch).total, found)

    resolved = resolve("ilql", "tree", {"schedule": "constant", "depth": 2})
    task, algorithm = resolved.task, Seen(tau=0.25, refresh=2)
    world = task.world(0)
    assert isinstance(task, TabularTask) and world is not None
    tables = tabulate([world], [task.data(0)], algorithm, "hard")
    runs = [train_tables(algorithm, tables, replace(resolved.spec, steps=n)) for n in range(5)]
    states, mask = tables.data["states"], tables.data["mask"]
    target, reference = runs[0].tables["value"], tables.world["reference"]
    for n, seen in enumerate(runs[4].history):
        target = target + 0.25 * (runs[n].tables["value"] - target)
        reference = runs[2].tables["logits"] if n >= 2 else reference
        for name, table in (("target", target), ("reference", reference.logsumexp(-1))):
            assert seen[name] == pytest.approx(float(table[0, states[0]][mask[0]].sum()), rel=1e-12), (n, name)
    assert len({seen["target"] for seen in runs[4].history}) == 4


@pytest.mark.parametrize("algorithm", [Everything(), Everything(tau=1.0, refresh=0)])
def test_resumed_is_the_same_to_the_bit(algorithm: Everything, tmp_path: Path) -> None:
    """Stopped after two of six updates and resumed: heads, target and refreshed reference go on where they were."""
    groups = prepare(ragged(), policy_stats(Policy(build(), VOCAB), ragged(), "fp32"), algorithm, False)

    def go(folder: Path, stop_at: int | None, resume: bool) -> tuple[Policy, list[Any]]:
        stop, losses = StopFlag(), 0

        def on_step(logs: Mapping[str, float]) -> None:
            nonlocal losses
            losses += "loss" in logs
            stop.raised = stop_at is not None and losses >= stop_at

        policy = Policy(build(), VOCAB)
        with pytest.raises(Interrupted) if stop_at else contextlib.nullcontext():
            result = train(
                policy, None, groups, algorithm, SPEC, folder,
                resume=resume, stop=stop, on_step=on_step, behaviour=Policy(build(seed=5), VOCAB),
            )  # fmt: skip
            return policy, result
        return policy, []

    whole, history = go(tmp_path / "whole", None, False)
    go(tmp_path / "cut", 2, False)
    saved = last_checkpoint(tmp_path / "cut")
    assert saved is not None and saved.name == "checkpoint-3", "the step after the one that asked to stop"
    moving = {"heads", "target", *({"reference"} if algorithm.refresh else ())}
    assert {p.stem for p in saved.glob("*.safetensors")} == {"model", *moving}
    assert not [k for k in load_file(saved / "model.safetensors") if "heads" in k]
    resumed, again = go(tmp_path / "cut", None, True)
    assert again == history and len(history) == 6
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
    finished, once_more = go(tmp_path / "cut", None, True)
    assert once_more == history
    for p, q in zip(whole.parameters(), finished.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_need_without_what_it_is_made_of_is_refused(tmp_path: Path) -> None:
    policy, groups = Policy(build(), VOCAB), group_rows([Row(t) for t in ragged()])
    with pytest.raises(UserError, match="behaviour model"):
        train(policy, None, groups, Everything(), SPEC, tmp_path)

    @dataclass(frozen=True)
    class Alone(Everything):
        needs = (MaxRatio(),)  # type: ignore[assignment]

    with pytest.raises(UserError, match="TargetNetwork"):
        train(policy, None, groups, Alone(), SPEC, tmp_path)


def test_a_fitted_behaviour_has_the_frequencies_of_the_data(tmp_path: Path) -> None:
    """Two first tokens at 0.8 and 0.2 by weight, though they stand equally often in the data."""
    data = [
        Trajectory("p", (1, 2, a, b), (False, False, True, True), (0.0,) * 4, weight=w)
        for a, b, w in ((5, 6, 0.6), (5, 7, 0.2), (8, 9, 0.2))
    ]
    weighted = [replace(t, rewards=tuple(t.weight * a for a in t.action_mask)) for t in data]
    policy = Policy(build(), VOCAB)
    spec = replace(SPEC, steps=150, groups_per_step=1, save_every=10**9)
    train(policy, None, group_rows([Row(t) for t in weighted]), WeightedLikelihood(), spec, tmp_path)
    got = np.exp([logp for logp, _ in policy_stats(policy, data, "fp32")])
    np.testing.assert_allclose(got, [[0.8, 0.75], [0.8, 0.25], [0.2, 1.0]], atol=0.02)


def test_an_acting_policy_scores_by_both_models(any_model: Any) -> None:
    trained, behaviour, trajectories = equipped(any_model), Policy(build(seed=5), VOCAB), ragged()
    acting = ActingPolicy(trained, behaviour, Everything())
    inputs = lay_out(trajectories, "padded")
    with torch.no_grad():
        logits, hidden, actions = naive(trained, trajectories)
        assert trained.heads is not None
        mixed = naive(behaviour, trajectories)[0].log_softmax(-1) + hidden @ trained.heads.q[0].T + logits.softmax(-1)
        expected = mixed.log_softmax(-1)
        torch.testing.assert_close(
            acting(**model_inputs(inputs))["logp"], expected.gather(1, actions[:, None])[:, 0], atol=1e-4, rtol=1e-4
        )
        logp, other_logp, kl = acting.compare(behaviour, inputs, chunk=4)
        rho = naive(behaviour, trajectories)[0].log_softmax(-1)
    torch.testing.assert_close(kl, (expected.exp() * (expected - rho)).sum(-1), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(logp, expected.gather(1, actions[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other_logp, rho.gather(1, actions[:, None])[:, 0], atol=1e-4, rtol=1e-4)


def test_mismatched_answers_reach_the_loss_beside_the_real_ones() -> None:
    """Statistics of both come out of one pass, and land in their own places."""
    from shiq_bench.api.needs import Mismatched
    from shiq_bench.data.collation import Collator
    from shiq_bench.data.groups import with_mismatches

    @dataclass(frozen=True)
    class Both(Algorithm):
        needs = (Reference(), Mismatched())

        def loss(self, stats: Stats, batch: Batch) -> LossOutput:
            raise NotImplementedError

    data, mates = with_mismatches(ragged(), 30)
    policy = Policy(build(), VOCAB)
    own, theirs = (policy_stats(policy, ts, "fp32") for ts in (data, mates))
    inputs = Collator(Both(), "padded", "hard")(prepare(data, own, Both(), False, mates, theirs))
    with torch.no_grad():
        stats = to_stats(policy(**model_inputs(inputs)), inputs)
    assert stats.mismatched is not None and stats.mismatched.reference is not None and stats.reference is not None
    assert stats.policy.logp.shape == to_batch(inputs).mask.shape
    torch.testing.assert_close(stats.policy.logp, stats.reference.logp, atol=1e-5, rtol=0)
    torch.testing.assert_close(stats.mismatched.policy.logp, stats.mismatched.reference.logp, atol=1e-5, rtol=0)
    for n, (logp, _) in enumerate(theirs):
        np.testing.assert_allclose(stats.mismatched.policy.logp[n, : len(logp)], logp, atol=1e-5)
