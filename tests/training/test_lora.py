"""Adapters: they begin as nothing, are all that moves, switch off to the reference, resume, and are what is served."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shiq_bench.adapters import Lora, is_adapter, parse_lora
from shiq_bench.api import algorithms
from shiq_bench.evaluation.evaluate import score_paths
from shiq_bench.generation import make_generator
from shiq_bench.records import Trajectory, UserError
from shiq_bench.training.lora import WithoutAdapters, trainable, with_adapters
from shiq_bench.training.policy import Policy
from shiq_bench.training.reference import policy_stats
from tests.generation.conftest import MAX_LENGTH, VOCABULARY
from tests.generation.conftest import build as build_served
from tests.test_language_run import comparable, play, settle
from tests.training.conftest import VOCAB, build, ragged

LORA = Lora(r=4, alpha=8)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIQ_BENCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def moved(policy: Policy, seed: int = 1) -> Policy:
    """Adapters as training might leave them: B no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("r=16", Lora(16, 32.0)),
        ("r=4, alpha=4,dropout=0.1,targets=q_proj+v_proj", Lora(4, 4.0, 0.1, ("q_proj", "v_proj"))),
    ],
)
def test_what_is_asked_for(text: str, made: Lora) -> None:
    assert parse_lora(text) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("16", "expected r=16"), ("rank=4", "no setting 'rank'"), ("alpha=4", "r from 1"), ("r=0", "r from 1"),
        ("r=x", "whole number"), ("r=4,dropout=1", "dropout"), ("r=4,targets=lm_head", "cannot have adapters"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_lora(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["plain", "scaled"])
def test_adapters_begin_as_nothing_and_switch_off_to_the_bit(kind: str) -> None:
    data = ragged()
    before = policy_stats(Policy(build(kind), VOCAB), data, "padded", "fp32")
    policy = with_adapters(Policy(build(kind), VOCAB), LORA, seed=0)
    assert policy.plain_head == (kind == "plain")
    fresh = policy_stats(policy, data, "padded", "fp32")
    changed = policy_stats(moved(policy), data, "padded", "fp32")
    off = policy_stats(WithoutAdapters(policy), data, "padded", "fp32")  # type: ignore[arg-type]
    for a, b, c, d in zip(before, fresh, changed, off, strict=True):
        for column in (0, 1):
            np.testing.assert_array_equal(a[column], b[column])
            np.testing.assert_array_equal(a[column], d[column])
            assert np.abs(a[column] - c[column]).max() > 1e-3


def test_the_head_and_the_embedding_have_no_adapters() -> None:
    policy = with_adapters(Policy(build(), VOCAB), LORA, seed=0)
    names = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n for n in names) and not any("lm_head" in n or "embed" in n for n in names)
    trained, of = trainable(policy)
    assert trained == sum(p.numel() for p in policy.model.parameters() if p.requires_grad) < of
    with pytest.raises(UserError, match="lora"):
        with_adapters(Policy(build(), VOCAB), Lora(4, 8, targets=("nothing",)), seed=0)


@pytest.mark.parametrize("algo", algorithms.names())
def test_every_method_trains_adapters_and_nothing_else(algo: str, tmp_path: Path) -> None:
    record = play(settle(algo, tmp_path, lora="r=2", steps=2))
    assert record.status == "done" and record.data["lora"]["trainable"] < record.data["lora"]["of"]
    assert max(record.gaps.values()) < 1e-5, "what is sampled is what is scored"
    assert record.training[0].get("abs_w", 0.0) == pytest.approx(0.0, abs=1e-6)
    folder = tmp_path / record.run_id / "policy"
    if is_adapter(folder):
        assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_an_interrupted_run_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = play(settle("shiq", tmp_path / "whole", lora="r=2"))
    cut = settle("shiq", tmp_path / "cut", lora="r=2")
    with pytest.raises(KeyboardInterrupt):
        play(cut, interrupt_at=2)
    assert comparable(play(cut, resume=True)) == comparable(whole)
    weights = [
        load_file(tmp_path / n / whole.run_id / "policy" / "adapter_model.safetensors") for n in ("whole", "cut")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def sampled(generator: Any, prompts: Sequence[Sequence[int]]) -> list[Trajectory]:
    answers = generator.generate(prompts, temperature=1.0, max_tokens=12, seeds=list(range(len(prompts))), stop_ids=[5])
    return [
        Trajectory(
            str(n), (*p, *a.token_ids), (False,) * len(p) + (True,) * len(a.token_ids),
            (0.0,) * (len(p) + len(a.token_ids)), (0.0,) * len(p) + a.logps,
        )
        for n, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_what_is_served_is_what_was_trained(engine: Any, tmp_path: Path) -> None:
    """Sampled log-probabilities are the scoring path's; another adapter's are not, until it is loaded."""
    base = build_served(tmp_path / "base", seed=0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    policy = moved(with_adapters(Policy(model, VOCABULARY), LORA, seed=0), seed=1)
    policy.model.save_pretrained(tmp_path / "one")
    other = moved(copy.deepcopy(policy), seed=2)
    other.model.save_pretrained(tmp_path / "two")
    kept = load_file(tmp_path / "one" / "adapter_model.safetensors")
    trained = {n.replace(".default", ""): p for n, p in policy.model.named_parameters() if p.requires_grad}
    assert kept.keys() == trained.keys() and all(torch.equal(kept[n], trained[n]) for n in kept)

    prompts = [[1, 2, 3, n] for n in range(8)]
    generator = make_generator(engine, base, tokenizer_vocab=VOCABULARY, max_length=MAX_LENGTH, lora_rank=4)
    try:

        def gap(scorer: Any) -> float:
            return score_paths(sampled(generator, prompts), scorer, None)[0]

        assert gap(WithoutAdapters(policy)) < 1e-4 < 0.1 < gap(policy)
        generator.load(tmp_path / "one")
        assert gap(policy) < 1e-4 and gap(other) > 0.1 and gap(WithoutAdapters(policy)) > 0.1
        generator.load(tmp_path / "two")
        assert gap(other) < 1e-4 < 0.1 < gap(policy)
        other.model.save_pretrained(tmp_path / "one")  # the same folder, other weights, as on-policy training writes
        generator.load(tmp_path / "one")
        assert gap(other) < 1e-4
        generator.load(base)
        assert gap(WithoutAdapters(policy)) < 1e-4
    finally:
        generator.close()
