"""Layout, pairs, the policy module, the reference pass and the trainer, on small random models."""

from __future__ import annotations

import copy
import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.needs import BehaviourModel, Mismatched, OnPolicy, Pairs, Rewards
from shiq_bench.api.registry import algorithms
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.collation import Collator, lay_out, to_batch
from shiq_bench.data.groups import (
    Row,
    centred,
    in_unit_range,
    make_labels,
    make_pairs,
    prepare,
    with_mismatches,
)
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.training import reference as reference_module
from shiq_bench.training.policy import Policy
from shiq_bench.training.reference import model_inputs, policy_stats, reference_pass
from shiq_bench.training.stopping import last_checkpoint
from shiq_bench.training.trainer import trackers, train
from tests.training.conftest import VOCAB as SMALL
from tests.training.conftest import build

VOCAB = 60


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB + 4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def trajectories() -> list[Trajectory]:
    """Six prompts, four answers each, ragged, tool tokens between actions, rewards 0, 1 and 2."""
    rng = random.Random(0)
    made = []
    for prompt in range(6):
        for k in range(4):
            n = rng.randint(6, 24)
            mask = (False, False, *(rng.random() < 0.6 for _ in range(n - 3)), True)
            rewards = (0.0,) * (n - 1) + (float(k % 3),)
            ids = [rng.randrange(VOCAB) for _ in range(n)]
            ids[:2] = 7 * prompt, 11 * prompt
            made.append(Trajectory(f"p{prompt}", tuple(ids), mask, rewards))
    return made


def naive(model: Any, trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """One trajectory at a time, all logits, over the vocabulary alone."""
    ids = torch.tensor([trajectory.token_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, :, :VOCAB].double()
    actions = [i for i, a in enumerate(trajectory.action_mask) if a]
    logp = [logits[i - 1].log_softmax(-1)[trajectory.token_ids[i]].item() for i in actions]
    return np.array(logp), np.array([logits[i - 1].logsumexp(-1).item() for i in actions])


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_layouts_give_the_naive_statistics(model: Any, trajectories: list[Trajectory], layout: Any) -> None:
    """Prompt, tool and padding tokens are left out, each action is predicted from the state before it."""
    policy = Policy(model, VOCAB, layout)
    assert policy.layout == layout, "a tree that comes to something else is not taken"
    for ours, trajectory in zip(policy_stats(policy, trajectories, "fp32"), trajectories, strict=True):
        for a, b in zip(ours, naive(model, trajectory), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_causal_mask_on_a_tree_leaks(model: Any, trajectories: list[Trajectory]) -> None:
    """The trap: with it answers see each other, and the test above would fail."""
    policy = Policy(model, VOCAB)
    inputs = lay_out(trajectories, "tree")
    causal = inputs | {"end": torch.where(inputs["end"] > 0, inputs["end"].shape[1], 0)}
    with torch.no_grad():
        right, leaking = (policy(**model_inputs(given))["logp"] for given in (inputs, causal))
    assert (right - leaking).abs().max() > 0.1


def test_a_reference_has_no_dropout(trajectories: list[Trajectory]) -> None:
    """Not even of a policy in the middle of its training, which goes on as it was."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, attention_dropout=0.5,
    )  # fmt: skip
    policy = Policy(LlamaForCausalLM(config), VOCAB).train()
    got = policy_stats(policy, trajectories, "fp32")
    assert policy.training and policy.model.training
    policy.eval()
    for ours, trajectory in zip(got, trajectories, strict=True):
        np.testing.assert_allclose(ours[0], naive(policy.model, trajectory)[0], atol=2e-5)


@pytest.mark.parametrize("kind", ["scaled", "capped", "biased"])
def test_a_head_that_is_more_than_a_matrix(trajectories: list[Trajectory], kind: str) -> None:
    """What it samples from is a multiple of ``hidden @ head.T``, a soft cap of it, or that and a bias."""
    model = build(kind)
    policy = Policy(model, SMALL)
    assert policy.plain_head == (kind != "biased")
    few = [dataclasses.replace(t, token_ids=tuple(i % SMALL for i in t.token_ids)) for t in trajectories]
    for ours, t in zip(policy_stats(policy, few, "fp32"), few, strict=True):
        np.testing.assert_allclose(ours[0], naive(model, t)[0], atol=2e-5)


def test_a_foreign_tokenizer_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match="do not belong together"):
        Policy(model, VOCAB + 5)


def test_kl_along_the_path_is_exact(model: Any, trajectories: list[Trajectory]) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.02 * torch.randn_like(p))
    a, b = Policy(model, VOCAB), Policy(other, VOCAB)
    inputs = lay_out(trajectories[:3], "padded")
    logp, ref_logp, kl = a.compare(b, inputs, chunk=4)
    expected = []
    for t in trajectories[:3]:
        ids = torch.tensor([t.token_ids])
        with torch.no_grad():
            p, q = (m(ids).logits[0, :, :VOCAB].double().log_softmax(-1) for m in (model, other))
        expected += [float((p[i - 1].exp() * (p[i - 1] - q[i - 1])).sum()) for i, x in enumerate(t.action_mask) if x]
    np.testing.assert_allclose(kl.numpy(), expected, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(logp, a(**model_inputs(inputs))["logp"])
        torch.testing.assert_close(ref_logp, b(**model_inputs(inputs))["logp"])


def test_a_batch_by_hand() -> None:
    """Every number stands at its own action: tool tokens are skipped, and a shift is taken off the last one."""
    F, T = False, True
    long = Trajectory("p", (7, 8, 9, 10, 11), (F, T, F, T, T), (0.0, 0.5, 0.0, 2.0, 0.0), (0.0, -1.0, 0.0, -2.0, -3.0))
    short = Trajectory("p", (7, 6, 12), (F, F, T), (0.0, 0.0, 1.0), (0.0, 0.0, -4.0))
    made = Collator(algorithms.get("sft")(), "padded", "hard")([[Row(long, reward_shift=0.25), Row(short)]])
    assert made["index"].tolist() == [0, 2, 3, 5 + 1]
    assert made["targets"].tolist() == [8, 10, 11, 12]
    assert made["mask"].tolist() == [[T, T, T], [T, F, F]]
    assert made["rewards"].tolist() == [[0.5, 2.0, -0.25], [1.0, 0.0, 0.0]]
    assert made["sampler_logp"].tolist() == [[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]]


def test_mismatched_answers_are_another_prompts() -> None:
    """Prompts (1, 2) and (6), answered by 3, and by 7, a tool's 8 and 9, of which two tokens fit the other prompt."""

    def made(prompt: tuple[int, ...], answer: tuple[int, ...], mask: tuple[bool, ...]) -> Trajectory:
        n, rewards = len(prompt), (0.0,) * (len(prompt) + len(answer) - 1) + (1.0,)
        return Trajectory(str(n), prompt + answer, (False,) * n + mask, rewards, weight=n)

    one, two = made((1, 2), (3,), (True,)), made((6,), (7, 8, 9), (True, False, True))
    ordered, (a, again, b) = with_mismatches([one, two, one], 4)
    assert ordered == [one, one, two]
    assert a == again
    assert (a.prompt_id, a.token_ids, a.action_mask) == ("2", (1, 2, 7, 8), (False, False, True, False))
    assert (b.prompt_id, b.token_ids, b.action_mask) == ("1", (6, 3), (False, True))
    assert (a.weight, b.weight, a.total_reward, b.total_reward) == (2, 1, 0, 0)
    with pytest.raises(UserError, match="two prompts"):
        with_mismatches([one, one], 4)


def test_returns_are_brought_into_the_unit_range_where_a_method_asks() -> None:
    asks = next(a for a in map(algorithms.get, algorithms.names()) if (n := a().need(Rewards)) and n.unit)
    data = [Trajectory("p", (1, 2, 3), (False, True, True), (0.0, *rewards)) for rewards in ((0.25, 0.5), (0.0, 1.0))]
    assert [t.rewards for t in in_unit_range(data, asks(), 2.0)] == [(0.0, 0.125, 0.25), (0.0, 0.0, 0.5)]
    assert in_unit_range(data, algorithms.get("shiq")(), 2.0) == data
    with pytest.raises(UserError, match=r"every return in \[0, 1\]"):
        in_unit_range(data, asks(), 0.5)


def test_pairs_by_hand() -> None:
    """Returns 2, 0, 0: two hard pairs and a tie; sigma(2) in both orders for Bradley-Terry, the tie at one half."""

    def made(total: float, weight: float = 1.0) -> Trajectory:
        return Trajectory("p", (1, 2), (False, True), (0.0, total), weight=weight)

    group = [made(2.0), made(0.0), made(0.0, weight=3.0)]
    hard = make_pairs(group, Pairs(), "hard")
    assert (hard.pairs, hard.weights, hard.ties) == ([(0, 1), (0, 2)], [1.0, 3.0], 1)
    kept = make_pairs(group, Pairs(ties="keep"), "hard")
    assert (kept.pairs[2:], kept.weights[2:], kept.ties) == ([(1, 2), (2, 1)], [1.5, 1.5], 0)
    soft = make_pairs(group, Pairs(), "bradley_terry")
    assert soft.pairs == [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
    s = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(soft.weights, [s, 1 - s, 3 * s, 3 * (1 - s), 1.5, 1.5])


def test_which_pairs_by_hand() -> None:
    """Ranks 0, 3, 1, 3, whatever the returns: best against worst is the first 3 with the 0; a drawn one is any."""
    group = [
        Trajectory("p", (1, 2), (False, True), (0.0, r), rank=k) for r, k in ((9.0, 0), (0.0, 3), (5.0, 1), (7.0, 3))
    ]
    assert make_pairs(group, Pairs(), "hard", choice="best_worst").pairs == [(1, 0)]
    every = make_pairs(group, Pairs(), "hard")
    assert every.pairs == [(1, 0), (2, 0), (3, 0), (1, 2), (3, 2)] and every.ties == 1
    drawn = [make_pairs(group, Pairs(ties="keep"), "sampled", seed, "random").pairs for seed in range(200)]
    assert all(len(pairs) == 1 for pairs in drawn) and len({tuple(sorted(p)) for (p,) in drawn}) == 6
    assert make_labels(group, "hard") == [0.0, 1.0, 0.0, 1.0], "against the mean rank, 1.75"


def test_labels_by_hand() -> None:
    """Returns 4, 2 and, twice as heavy, 1: the mean is 2, so the labels are of gaps 2, 0 and -1."""
    group = [Trajectory("p", (1, 2), (False, True), (0.0, r), weight=w) for r, w in ((4.0, 1), (2.0, 1), (1.0, 2))]
    assert make_labels(group, "hard") == [1.0, 0.5, 0.0]
    expected = [1 / (1 + np.exp(-gap)) for gap in (2, 0, -1)]
    np.testing.assert_allclose(make_labels(group, "bradley_terry"), expected)
    n = 4000
    drawn = np.array([make_labels(group, "sampled", seed) for seed in range(n)])
    assert set(drawn.flatten()) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0), expected, atol=4 * 0.5 / n**0.5)


def test_sampled_pairs_follow_bradley_and_terry() -> None:
    """One order of each pair, the higher return first in sigma(1) of the draws; a seed decides, not the batch."""
    group = [Trajectory("p", (1, 2), (False, True), (0.0, r), weight=w) for r, w in ((0.0, 2.0), (1.0, 3.0))]
    n = 4000
    drawn = [make_pairs(group, Pairs(), "sampled", seed) for seed in range(n)]
    assert all(d.weights == [6.0] and sorted(d.pairs[0]) == [0, 1] for d in drawn)
    share = sum(d.pairs == [(1, 0)] for d in drawn) / n
    assert share == pytest.approx(1 / (1 + np.exp(-1)), abs=4 * 0.5 / n**0.5)
    assert make_pairs(group, Pairs(), "sampled", 5) == drawn[5]


def test_centring_takes_the_prompts_mean_off_the_last_action(trajectories: list[Trajectory]) -> None:
    means = centred(trajectories)
    assert means["p0"] == pytest.approx((0 + 1 + 2 + 0) / 4)
    heavy = [Trajectory("p", (1, 2), (False, True), (0.0, r), weight=w) for r, w in ((4.0, 1), (2.0, 1), (1.0, 2))]
    assert centred(heavy) == {"p": 2.0}
    for algo, moved in (("shiq", True), ("dpo", False)):
        algorithm = algorithms.get(algo)()
        groups = prepare(trajectories, None, algorithm, center_rewards=True)
        batch = to_batch(Collator(algorithm, "padded", "hard")(groups))
        totals = batch.rewards.sum(1).reshape(6, 4).sum(1)
        assert torch.allclose(totals, torch.zeros(6), atol=1e-6) == moved


def test_reference_pass_is_cached_by_what_decides_it(
    model: Any, trajectories: list[Trajectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path))
    calls = 0
    real = reference_module.policy_stats

    def counted(*a: Any, **k: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*a, **k)

    monkeypatch.setattr(reference_module, "policy_stats", counted)
    policy = Policy(model, VOCAB)
    first = reference_pass(policy, "w", trajectories, "fp32")
    again = reference_pass(policy, "w", trajectories, "fp32")
    assert calls == 1
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    shifted = [
        dataclasses.replace(
            trajectories[0],
            action_mask=(False, *trajectories[0].action_mask[1:-1], False),
            rewards=(0.0,) * len(trajectories[0].token_ids),
        ),
        *trajectories[1:],
    ]
    for n, arguments in enumerate(
        [
            ("other", trajectories, "fp32"),
            ("w", shifted, "fp32"),
            ("w", trajectories, "bf16"),
        ]
    ):
        reference_pass(policy, *arguments)  # type: ignore[arg-type]
        assert calls == 2 + n
    reference_pass(Policy(model, VOCAB, "padded"), "w", trajectories, "fp32")
    # Rewards and sources are no part of it.
    reference_pass(policy, "w", [dataclasses.replace(t, source="x", truncated=True) for t in trajectories], "fp32")
    assert calls == 5


def trained(
    model: Any, trajectories: list[Trajectory], algorithm: Algorithm, folder: Path, **changes: Any
) -> tuple[Any, Any]:
    """Four steps on whatever the algorithm needs, of stored trajectories even for on-policy methods."""
    spec = RunSpec(
        "a", "t", steps=4, groups_per_step=6, learning_rate=1e-3, precision="fp32", schedule="constant", warmup=0.0,
        **changes,
    )  # fmt: skip
    policy = Policy(copy.deepcopy(model), VOCAB, spec.layout)
    trajectories = in_unit_range(trajectories, algorithm, 2.0)
    mismatches = None
    if algorithm.need(Mismatched):
        trajectories, mismatches = with_mismatches(trajectories, 30)
    columns = [policy_stats(policy, ts, "fp32") if ts else None for ts in (trajectories, mismatches)]
    rows = prepare(trajectories, columns[0], algorithm, False, mismatches, columns[1])
    behaviour = Policy(copy.deepcopy(model), VOCAB) if algorithm.need(BehaviourModel) else None
    return policy, train(policy, None, rows, algorithm, spec, folder, behaviour=behaviour)


def test_too_few_tokens_a_pass_are_refused_before_the_first_update(
    model: Any, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"tokens_per_pass=20, .*lays out \d+ tokens: set tokens_per_pass=\d+"
    ) as caught:
        trained(model, trajectories, algorithms.get("dpo")(), tmp_path, tokens_per_pass=20)
    enough = int(str(caught.value).split("set tokens_per_pass=")[1].split(",")[0])
    trained(model, trajectories, algorithms.get("dpo")(), tmp_path, tokens_per_pass=enough)


def test_answers_that_add_up_share_no_pass_and_the_longest_says_how_many_tokens(
    model: Any, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    longest = max(len(t.token_ids) for t in trajectories)
    with pytest.raises(UserError, match=f"set tokens_per_pass={longest}, or lower max_length"):
        trained(model, trajectories, algorithms.get("shiq")(), tmp_path / "a", tokens_per_pass=longest - 1)
    trained(model, trajectories, algorithms.get("shiq")(), tmp_path / "b", tokens_per_pass=longest)


@pytest.mark.parametrize("algo", algorithms.names())
def test_six_prompts_at_once_equal_six_times_one(
    model: Any, trajectories: list[Trajectory], algo: str, tmp_path: Path
) -> None:
    """Accumulated by prompt groups of unequal counts: same losses, same gradients, same weights."""
    algorithm = algorithms.get(algo)()
    trajectories = [t for i, t in enumerate(trajectories) if i not in (3, 8, 9, 19)]
    whole, a = trained(model, trajectories, algorithm, tmp_path / "a")
    others = [trained(model, trajectories, algorithm, tmp_path / "c", layout="padded")]
    if not algorithm.couples_groups:
        others.append(trained(model, trajectories, algorithm, tmp_path / "b", micro_groups=1))
        others.append(trained(model, trajectories, algorithm, tmp_path / "d", tokens_per_pass=130))
    for policy, other in others:
        for x, y in zip(a, other, strict=True):
            assert y["loss"] == pytest.approx(x["loss"], rel=2e-4, abs=1e-6)
            assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=2e-3)
        for p, q in zip(whole.parameters(), policy.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=0, atol=2e-4)


@pytest.mark.parametrize("algo", algorithms.names())
def test_training_changes_the_policy_and_lowers_the_loss(
    model: Any, trajectories: list[Trajectory], algo: str, tmp_path: Path
) -> None:
    algorithm = algorithms.get(algo)()
    policy, result = trained(model, trajectories, algorithm, tmp_path)
    assert any(not torch.equal(p, q) for p, q in zip(policy.model.parameters(), model.parameters(), strict=True))
    if not algorithm.need(OnPolicy):  # whose gradient is not that of a loss that falls
        assert result[-1]["loss"] < result[0]["loss"]
    assert result[0].get("abs_w", 0.0) < 1e-6


def test_no_clipping_where_the_limit_is_zero(model: Any, trajectories: list[Trajectory], tmp_path: Path) -> None:
    """Adam hides a factor common to all gradients, but not one that differs from step to step."""
    algorithm = algorithms.get("sft")()
    histories = [
        trained(model, trajectories, algorithm, tmp_path / str(limit), max_grad_norm=limit)[1]
        for limit in (0.0, 1e9, 1e-3)
    ]
    assert histories[0] == histories[1] != histories[2]
    assert histories[0][0]["grad_norm"] == pytest.approx(histories[2][0]["grad_norm"])


@pytest.mark.parametrize("groups", [[], [[]], [[], [1]]])
def test_nothing_to_train_on_is_one_line(model: Any, groups: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        train(Policy(model, VOCAB), None, groups, algorithms.get("sft")(), RunSpec("a", "t"), tmp_path)


def test_scoring_after_bf16_training_is_float32(model: Any, trajectories: list[Trajectory], tmp_path: Path) -> None:
    """Mixed precision wraps the module's forward; left in place it would follow the policy into evaluation."""
    spec = RunSpec("a", "t", steps=1, groups_per_step=6, precision="bf16")
    policy = Policy(copy.deepcopy(model), VOCAB)
    algorithm = algorithms.get("sft")()
    train(policy, None, prepare(trajectories, None, algorithm, False), algorithm, spec, tmp_path)
    fresh = policy_stats(Policy(copy.deepcopy(policy.model), VOCAB), trajectories, "fp32")
    for a, b in zip(policy_stats(policy, trajectories, "fp32"), fresh, strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-6)


def test_a_cut_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_st')
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert last_checkpoint(tmp_path / "none") is None


def test_a_tracker_is_told_of_every_update(model: Any, trajectories: list[Trajectory], tmp_path: Path) -> None:
    """TensorBoard's files lie in the run's folder and hold the numbers of the record."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    algorithm = algorithms.get("sft")()
    spec = RunSpec("sft", "t", steps=3, groups_per_step=2, precision="fp32", track="tensorboard")
    groups = prepare(trajectories, None, algorithm, False)
    found = train(Policy(copy.deepcopy(model), VOCAB), None, groups, algorithm, spec, tmp_path / "checkpoints")
    events = EventAccumulator(str(tmp_path / "tracker"))
    events.Reload()
    told = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert told == [(i + 1, pytest.approx(h["loss"], rel=1e-6)) for i, h in enumerate(found)]
    assert len(told) == 3 and "train/tokens" in events.Tags()["scalars"]


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UserError, match="tensorbored is no tracker that is installed here"):
        trackers(RunSpec("sft", "t", track="tensorbored"))
    assert trackers(RunSpec("sft", "t")) == []
