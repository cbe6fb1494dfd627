"""Fresh data: drawn from the weights of the very update, scored or left out, and the same after a resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from shiq_bench.algorithms.reinforce import Reinforce
from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, LossOutput, Stats, group_mean
from shiq_bench.api.needs import Mismatched, OnPolicy, Reference, Rewards
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.generation.opening import make_generator
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash
from shiq_bench.records.record import RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs import language_data
from shiq_bench.runs.context import Run
from shiq_bench.runs.settings import resolve
from shiq_bench.tabular.training import tabulate, train_tables
from shiq_bench.training.policy import Policy, load_policy
from shiq_bench.training.reference import policy_stats
from shiq_bench.training.starting_policy import resolve_model
from shiq_bench.training.stopping import Interrupted, StopFlag
from shiq_bench.training.trainer import Collect, train
from tests.training.conftest import VOCAB, build

PROMPTS = ("a", "b", "c")
SPEC = RunSpec(
    "a", "t", steps=5, groups_per_step=3, learning_rate=1e-2, precision="fp32", schedule="constant", warmup=0.0,
    save_every=1, seed=3,
)  # fmt: skip


@dataclass(frozen=True)
class Gradient(Algorithm):
    """A policy gradient that notes how far its data are from its own policy, and from the reference."""

    gaps: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)
    needs = (OnPolicy(4), Reference(), Rewards())

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        assert stats.reference is not None
        logp, mask = stats.policy.logp, batch.mask
        self.gaps.append(float(((logp - batch.sampler_logp).detach() * mask).abs().max()))
        self.kls.append(float(((logp - stats.reference.logp).detach() * mask).abs().max()))
        returns = batch.rewards.sum(-1)
        return LossOutput(-((returns - group_mean(returns, batch))[:, None] * logp * mask).sum())


def collect(policy: Policy, folder: Path, lost: Callable[[str, int], bool] = lambda prompt, step: False) -> Collect:
    """Four answers a prompt by way of a folder and a sampler, as the main job does it; token 5 pays."""

    def sample(names: Sequence[str], step: int) -> list[Trajectory]:
        policy.model.save_pretrained(folder)
        generator = make_generator("hf", folder, tokenizer_vocab=VOCAB, max_length=32)
        prompts = [[1 + PROMPTS.index(n)] * (1 + PROMPTS.index(n)) for n in names for _ in range(4)]
        seeds = [int(stable_hash([step, i])[:8], 16) for i in range(len(prompts))]
        drawn = generator.generate(prompts, temperature=1.0, max_tokens=6, seeds=seeds, stop_ids=[2])
        torch.rand(3)  # a sampler that moves the global state
        return [
            Trajectory(
                names[i // 4], (*p, *c.token_ids), (False,) * len(p) + (True,) * len(c.token_ids),
                (0.0,) * len(p) + tuple(float(t == 5) for t in c.token_ids), (0.0,) * len(p) + c.logps,
            )
            for i, (p, c) in enumerate(zip(prompts, drawn, strict=True))
            if not lost(names[i // 4], step)
        ]  # fmt: skip

    return Collect(PROMPTS, sample)


def go(folder: Path, algorithm: Algorithm | None = None, **options: Any) -> tuple[Policy, Any]:
    policy = Policy(build(), VOCAB)
    lost = options.pop("lost", lambda prompt, step: False)
    spec = dataclasses.replace(SPEC, **options.pop("spec", {}))
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    made = collect(policy, folder / "weights", lost)
    return policy, train(policy, None, [], algorithm or Gradient(), spec, folder, collect=made, **options)


def test_data_come_from_the_weights_of_the_update(tmp_path: Path) -> None:
    """At every update, not only the first, the sampler's log-probabilities are the policy's own."""
    algorithm = Gradient()
    _, result = go(tmp_path, algorithm)
    assert len(algorithm.gaps) == 5 and max(algorithm.gaps) < 1e-4
    assert algorithm.kls[0] == 0.0 and min(algorithm.kls[1:]) > 1e-3, "the reference stays where training began"
    assert [h["prompts"] for h in result] == [3.0] * 5
    assert [h["trajectories"] for h in result] == [12.0] * 5
    assert all("return" in h for h in result)


def test_the_main_job_draws_from_the_weights_of_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder holds other weights at every update: it is written, and read, anew."""
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path))
    resolved = resolve("reinforce", "tree", {"model": "tiny", "engine": "hf"})
    run = Run(resolved, lambda *_: None, StopFlag(), RunRecord(resolved.spec.run_id, "started", resolved.spec))
    source = resolve_model(resolved.spec, resolved.task)
    policy = load_policy(source)
    made = language_data.collect_fresh(run, source, policy, tmp_path / "scratch")
    for step in range(3):
        drawn = made.sample(made.prompts, step)
        for t, (logp, _) in zip(drawn, policy_stats(policy, drawn, "fp32"), strict=True):
            assert t.sampler_logp is not None
            said = [p for p, a in zip(t.sampler_logp, t.action_mask, strict=True) if a]
            np.testing.assert_allclose(said, logp, atol=1e-5)
        with torch.no_grad():
            for p in policy.parameters():
                p.mul_(1.3)
    run.close()


@pytest.mark.parametrize("fresh", ["enumerated", "sampled"])
def test_data_of_tables_come_from_the_tables_of_the_update(fresh: Literal["enumerated", "sampled"]) -> None:
    @dataclass(frozen=True)
    class Watched(Reinforce):
        def loss(self, stats: Stats, batch: Batch) -> LossOutput:
            logp = stats.policy.logp.detach()
            weight = logp.sum(-1).exp() if fresh == "enumerated" else torch.full_like(batch.weight, 1 / self.samples)
            found = {
                "gap": ((logp - batch.sampler_logp) * batch.mask).abs().amax() + (batch.weight - weight).abs().amax(),
                "w": (logp - stats.reference.logp).abs().amax(),  # type: ignore[union-attr]
            }
            return LossOutput(super().loss(stats, batch).total, found)

    resolved = resolve("reinforce", "tree", {"depth": 2, "steps": 4, "learning_rate": 0.5})
    task, algorithm = resolved.task, Watched()
    worlds = [task.world(n) for n in range(2)]
    tables = tabulate(worlds, [task.data(n) for n in range(2)], algorithm, "hard")  # type: ignore[arg-type,attr-defined]
    history = train_tables(algorithm, tables, resolved.spec, fresh=fresh).history
    assert max(h["gap"] for h in history) < 1e-12
    assert [h["w"] > 0.1 for h in history] == [False, True, True, True], "the policy must move"


def test_it_learns(tmp_path: Path) -> None:
    _, result = go(tmp_path, spec={"steps": 40})
    returns = [h["return"] for h in result]
    assert sum(returns[-5:]) / 5 > sum(returns[:5]) / 5 + 2


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    whole, a = go(tmp_path / "a")
    parts, b = go(tmp_path / "b", spec={"micro_groups": 1})
    for x, y in zip(a, b, strict=True):
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=2e-3)
        assert y["return"] == x["return"]
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=2e-4)


def test_what_was_not_scored_is_left_out(tmp_path: Path) -> None:
    """A prompt without a scored episode, alone in its micro-batch, costs that batch and nothing else."""
    _, result = go(tmp_path / "a", lost=lambda p, step: p == "b" and step == 1, spec={"micro_groups": 1})
    assert [h["trajectories"] for h in result] == [12.0, 8.0, 12.0, 12.0, 12.0]
    assert [h["prompts"] for h in result] == [3.0] * 5
    with pytest.raises(UserError, match="step 2: there is nothing to learn from"):
        go(tmp_path / "b", lost=lambda p, step: step == 2)


@pytest.mark.parametrize("importance", ["none", "sequence"])
def test_resumed_draws_the_same(importance: str, tmp_path: Path) -> None:
    spec = {"importance": importance}
    whole, result = go(tmp_path / "whole", spec=spec)
    assert all(("importance_weight" in h) == (importance != "none") and h["sampler_gap"] < 1e-5 for h in result)
    stop, losses = StopFlag(), 0

    def on_step(logs: Mapping[str, float]) -> None:
        nonlocal losses
        losses += "loss" in logs
        stop.raised = losses >= 2

    with pytest.raises(Interrupted):
        go(tmp_path / "cut", stop=stop, on_step=on_step, spec=spec)
    resumed, again = go(tmp_path / "cut", resume=True, spec=spec)
    assert again == result
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_mismatched_answers_of_fresh_data(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Both(Gradient):
        needs = (OnPolicy(4), Reference(), Rewards(), Mismatched())  # type: ignore[assignment]

        def loss(self, stats: Stats, batch: Batch) -> LossOutput:
            assert stats.mismatched is not None and stats.mismatched.reference is not None
            seen.append((stats.mismatched.policy.logp - stats.mismatched.reference.logp).detach().abs().max())
            return super().loss(stats, batch)

    go(tmp_path, Both())
    assert seen[0] == 0 and min(seen[1:]) > 0
