"""Adapters: they begin as nothing, are all that moves, switch off to the reference, resume, and are what is served."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from shiq_bench.api.registry import algorithms
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.groups import prepare
from shiq_bench.evaluation.evaluate import score_paths
from shiq_bench.generation.opening import make_generator
from shiq_bench.models.lora import Lora, is_adapter, parse_lora
from shiq_bench.models.source import fingerprint
from shiq_bench.records.errors import UserError
from shiq_bench.runs.settings import resolve
from shiq_bench.training.policy import Policy
from shiq_bench.training.reference import Companions, WithoutAdapters, policy_stats, with_adapters
from shiq_bench.training.stopping import last_checkpoint
from shiq_bench.training.trainer import train
from tests import needs
from tests.generation.conftest import MAX_LENGTH, VOCABULARY
from tests.generation.conftest import build as build_served
from tests.runs.test_language import comparable, play, settle
from tests.training.conftest import VOCAB, build, ragged

LORA = Lora(r=4, alpha=8)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIQ_BENCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def logp(policy: Policy) -> np.ndarray:
    return np.concatenate([s[0] for s in policy_stats(policy, ragged(), "fp32")])


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
        ("r=4,targets=model.embed_tokens", "cannot have adapters"), ("r=4,targets=+", "names of layers"),
        ("r=4,alpha=inf", "alpha above 0"), ("r=4,r=8", "given twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_lora(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["plain", "scaled", "biased"])
def test_adapters_begin_as_nothing_and_switch_off_to_the_bit(kind: str) -> None:
    data = ragged()
    before = policy_stats(Policy(build(kind), VOCAB), data, "fp32")
    policy = with_adapters(Policy(build(kind), VOCAB), LORA, seed=0)
    assert policy.plain_head == (kind != "biased")
    fresh = policy_stats(policy, data, "fp32")
    changed = policy_stats(moved(policy), data, "fp32")
    off = policy_stats(WithoutAdapters(policy), data, "fp32")  # type: ignore[arg-type]
    for a, b, c, d in zip(before, fresh, changed, off, strict=True):
        for column in (0, 1):
            np.testing.assert_array_equal(a[column], b[column])
            np.testing.assert_array_equal(a[column], d[column])
            assert np.abs(a[column] - c[column]).max() > 1e-3


def test_the_head_and_the_embedding_have_no_adapters() -> None:
    policy = with_adapters(Policy(build(), VOCAB), LORA, seed=0)
    names = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n for n in names) and not any("lm_head" in n or "embed" in n for n in names)
    trained, of = policy.model.get_nb_trainable_parameters()
    assert trained == sum(p.numel() for p in policy.model.parameters() if p.requires_grad) < of
    with pytest.raises(UserError, match="no layer 'v_prj': did you mean 'v_proj'"):
        with_adapters(Policy(build(), VOCAB), Lora(4, 8, targets=("q_proj", "v_prj")), seed=0)


@pytest.mark.parametrize("target", ["embed_in", "gpt_neox.embed_in"])
def test_an_embedding_of_another_name_is_refused_too(target: str) -> None:
    config = GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UserError, match=f"{target} cannot have adapters"):
        with_adapters(Policy(GPTNeoXForCausalLM(config), VOCAB), Lora(4, 8, targets=("query_key_value", target)), 0)


@pytest.mark.parametrize("algo", ["shiq", "rebel"])
def test_the_weights_below_stay_to_the_bit(algo: str, tmp_path: Path) -> None:
    """Weight decay and all; also where the reference is replaced on the way."""
    settings = {"refresh": 1} if algo == "rebel" else {}
    resolved = resolve(
        algo, "tree", {"model": "tiny", "steps": 2, "weight_decay": 0.1, "learning_rate": 1e-2, **settings}
    )
    data = ragged()
    policy = with_adapters(Policy(build(), VOCAB), LORA, seed=0)
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    off = policy_stats(WithoutAdapters(policy), data, "fp32")  # type: ignore[arg-type]
    groups = prepare(data, None if settings else off, resolved.algorithm, False)
    train(policy, None, groups, resolved.algorithm, resolved.spec, tmp_path)
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name)
    after = policy_stats(WithoutAdapters(policy), data, "fp32")  # type: ignore[arg-type]
    for a, b in zip(off, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("algo", ["ilql", "rebel"])
def test_companions_copy_adapters_alone(algo: str, tmp_path: Path) -> None:
    """A target network and a refreshed reference: in memory, and in checkpoints."""
    settings = {"refresh": 1} if algo == "rebel" else {}
    algorithm = resolve(algo, "tree", {"model": "tiny", **settings}).algorithm
    policy = moved(with_adapters(Policy(build(), VOCAB), LORA, seed=0).equip(algorithm, seed=0))
    behaviour = Policy(build(seed=1), VOCAB)
    companions = Companions(policy, algorithm, behaviour, live_reference=False, precision="fp32")
    twin = companions.policies["target" if algo == "ilql" else "reference"]
    theirs, ours = dict(twin.named_parameters()), dict(policy.named_parameters())
    for name in theirs:
        assert (theirs[name] is ours[name]) != ours[name].requires_grad
    moved(policy, seed=2)
    assert not np.array_equal(logp(twin), logp(policy))
    companions.update(policy, step=1)
    if algo == "rebel":
        np.testing.assert_array_equal(logp(twin), logp(policy))
    expected = logp(twin)
    companions.save(tmp_path)
    (file,) = tmp_path.iterdir()
    assert set(load_file(file)) == {n for n in theirs if ours[n].requires_grad}
    moved(twin, seed=3)
    assert not np.array_equal(logp(twin), expected)
    companions.load(tmp_path)
    np.testing.assert_array_equal(logp(twin), expected)


@pytest.mark.parametrize("algo", algorithms.names())
def test_every_method_trains_adapters_and_nothing_else(algo: str, tmp_path: Path) -> None:
    record = play(settle(algo, tmp_path, lora="r=2", steps=2))
    assert record.status == "done" and record.data["lora"]["trainable"] < record.data["lora"]["of"]
    assert max(record.gaps.values()) < 1e-5, "what is sampled is what is scored"
    assert record.training[0].get("abs_w", 0.0) == pytest.approx(0.0, abs=1e-6)
    folder = tmp_path / record.run_id / "policy"
    if is_adapter(folder):
        assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("algo", "settings"),
    [("shiq", {"lora": "r=2,dropout=0.2"}), ("rebel", {"lora": "r=2", "refresh": 3}), ("ilql", {"lora": "r=2"})],
)
def test_an_interrupted_run_resumes_to_the_bit(algo: str, settings: dict[str, Any], tmp_path: Path) -> None:
    whole = play(settle(algo, tmp_path / "whole", **settings))
    cut = settle(algo, tmp_path / "cut", **settings)
    with pytest.raises(KeyboardInterrupt):
        play(cut, interrupt_at=2)
    assert comparable(play(cut, resume=True)) == comparable(whole)
    weights = [
        load_file(tmp_path / n / whole.run_id / "policy" / "adapter_model.safetensors") for n in ("whole", "cut")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_checkpoint_that_lacks_adapters_is_refused(tmp_path: Path) -> None:
    cut = settle("shiq", tmp_path, lora="r=2")
    with pytest.raises(KeyboardInterrupt):
        play(cut, interrupt_at=2)
    checkpoint = last_checkpoint(tmp_path / cut.spec.run_id / "checkpoints")
    assert checkpoint is not None
    file = checkpoint / "adapter_model.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    save_file({n: t for n, t in tensors.items() if n != first}, file)
    with pytest.raises(UserError, match="lacks adapters of the model"):
        play(cut, resume=True)


def test_adapters_are_no_model_to_begin_from(tmp_path: Path) -> None:
    with_adapters(Policy(build(), VOCAB), LORA, seed=0).model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds adapters"):
        fingerprint(tmp_path)


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
    if engine == "vllm":
        needs.vllm()
    base = build_served(tmp_path / "base", seed=0, tied=True)
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
        shutil.rmtree(tmp_path / "one")  # what is served was read when it was loaded
        assert gap(other) < 1e-4
        generator.load(base)
        assert gap(WithoutAdapters(policy)) < 1e-4
        if engine == "vllm":
            with pytest.raises(UserError, match="holds adapters, and no model"):
                make_generator(engine, tmp_path / "two", tokenizer_vocab=VOCABULARY, max_length=MAX_LENGTH)
            strange = {n.replace("down_proj", "strange_proj"): p for n, p in kept.items()}
            save_file(strange, tmp_path / "two" / "adapter_model.safetensors")
            with pytest.raises(UserError, match=r"cannot serve the adapters.*strange_proj") as caught:
                generator.load(tmp_path / "two")
            assert "\n" not in str(caught.value)
            assert gap(WithoutAdapters(policy)) < 1e-4
    finally:
        generator.close()
