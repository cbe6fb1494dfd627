"""Fitting to pairs and judging: the loss by hand, what is saved, the same weights again, and known figures."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from shiq_bench.api.trajectory import Preference
from shiq_bench.records.errors import UserError
from shiq_bench.rewards import fit
from shiq_bench.rewards.fit import calibration_error, fit_reward_model, judge_pairs
from shiq_bench.rewards.model import RewardModel
from tests.models.test_chat import tokenizer
from tests.rewards.conftest import LLAMA, SHAPE, llama, llama_tokenizer, qwen, says

WORDS = ["one", "two", "three", "four", "said", "the", "user", "to", "assistant"]


def pairs(count: int, seed: int) -> list[Preference]:
    """The answer that says "four" is the better one, whatever its length."""
    rng = random.Random(seed)
    out = []
    for n in range(count):
        answers = [rng.choices([w for w in WORDS if w != "four"], k=rng.randint(2, 8)) for _ in range(2)]
        answers[0][rng.randrange(len(answers[0]))] = "four"
        question = {"role": "user", "content": " ".join(rng.choices(WORDS, k=3))}
        out.append(Preference(f"p{seed}-{n // 2}", (question,), " ".join(answers[0]), " ".join(answers[1])))
    return out


def causal(folder: Path, text: Any) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(text), tie_word_embeddings=True, **SHAPE))
    model.save_pretrained(folder)
    text.save_pretrained(folder)
    return folder


QUICK: dict[str, Any] = {"epochs": 3, "learning_rate": 3e-3, "batch": 16}


def test_a_fitted_model_tells_answers_apart(tmp_path: Path) -> None:
    base, out = causal(tmp_path / "base", llama_tokenizer()), tmp_path / "new" / "rm"
    equal = Preference("equal", ({"role": "user", "content": "one"},), "two ", "two")  # the template trims
    train, heldout = [*pairs(240, 0), equal], pairs(80, 1)
    out.mkdir(parents=True)  # empty, it may be there
    seen: list[tuple[int, int]] = []
    done = fit_reward_model(base, train, out, **QUICK, report=lambda what, *counts: seen.append(counts))
    assert done == fit.Fit(pairs=240, equal=1, cut=0, steps=45)
    assert seen == [(n, 45) for n in range(1, 46)]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["rm"]  # no scratch left
    weights = load_file(out / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32} and weights["score.weight"].shape == (1, 32)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    # What it was fitted with is what it reads with, and others that read its folder do alike.
    text = AutoTokenizer.from_pretrained(out)
    assert text.chat_template == LLAMA and text.pad_token == "<|pad|>"
    assert json.loads((out / "config.json").read_text())["pad_token_id"] == text.pad_token_id
    assert len(weights["model.embed_tokens.weight"]) == len(text)

    judged = judge_pairs(RewardModel(str(out)), heldout)
    assert judged.accuracy.mean is not None and judged.accuracy.mean > 0.9
    assert judged.accuracy.n == 80 and judged.accuracy.units == 40
    assert judged.longer.mean is not None and 0.3 < judged.longer.mean < 0.7
    assert judged.brier is not None and judged.brier < 0.15
    # Before, it knew nothing.
    unfitted = judge_pairs(RewardModel(str(llama(tmp_path / "random", llama_tokenizer()))), heldout)
    assert unfitted.accuracy.mean is not None and unfitted.accuracy.mean < 0.75


def test_the_loss_is_that_of_bradley_and_terry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-ln sigma(r_c - r_r), by the scores of the model that training starts from."""
    base, few = llama(tmp_path / "base", llama_tokenizer()), pairs(6, 0)
    model = RewardModel(str(base))
    expected = []
    for pair in few:
        chosen, rejected = model.score([says(pair.messages[0]["content"], a) for a in (pair.chosen, pair.rejected)])
        expected.append(math.log1p(math.exp(rejected - chosen)))
    losses: list[float] = []
    compute = fit._PairTrainer.compute_loss

    def watched(self: Any, *arguments: Any, **named: Any) -> Any:
        loss = compute(self, *arguments, **named)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(fit._PairTrainer, "compute_loss", watched)
    fit_reward_model(base, few, tmp_path / "rm", batch=6)
    assert losses == [pytest.approx(sum(expected) / 6, abs=1e-5)]


def test_a_seed_gives_the_same_weights(tmp_path: Path) -> None:
    base, train = causal(tmp_path / "base", llama_tokenizer()), pairs(40, 0)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(seed)  # whatever was drawn before
        fit_reward_model(base, train, tmp_path / name, **QUICK, seed=seed)
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert one == same != other


def test_bfloat16_fits_as_well(tmp_path: Path) -> None:
    out = tmp_path / "rm"
    fit_reward_model(causal(tmp_path / "base", llama_tokenizer()), pairs(240, 0), out, **QUICK, precision="bf16")
    assert {w.dtype for w in load_file(out / "model.safetensors").values()} == {torch.float32}
    judged = judge_pairs(RewardModel(str(out)), pairs(80, 1))
    assert judged.accuracy.mean is not None and judged.accuracy.mean > 0.9


def test_a_pad_that_no_dialogue_holds_is_kept(tmp_path: Path) -> None:
    fit_reward_model(qwen(tmp_path / "base"), pairs(4, 0), tmp_path / "rm")
    assert AutoTokenizer.from_pretrained(tmp_path / "rm").pad_token == "<|endoftext|>"
    text = llama_tokenizer(eos_token="<|eot|>")
    text.pad_token = "<|eot|>"
    fit_reward_model(llama(tmp_path / "llama", text), pairs(4, 0), tmp_path / "rm2")
    assert AutoTokenizer.from_pretrained(tmp_path / "rm2").pad_token == "<|pad|>"


def test_a_head_that_does_not_fit_is_replaced(tmp_path: Path) -> None:
    fit_reward_model(llama(tmp_path / "base", llama_tokenizer(), labels=3), pairs(4, 0), tmp_path / "rm")
    assert len(RewardModel(str(tmp_path / "rm")).score([says("one", "two")])) == 1


def test_plain_text_stays_plain_text(tmp_path: Path) -> None:
    base = causal(tmp_path / "base", tokenizer(None, []))
    fit_reward_model(base, pairs(4, 0), tmp_path / "rm")
    before, after = (
        RewardModel(str(folder)) for folder in (llama(tmp_path / "m", tokenizer(None, [])), tmp_path / "rm")
    )
    assert after.plain_template and after.encode(says("one", "two")) == before.encode(says("one", "two"))


def test_long_dialogues_are_cut_and_counted(tmp_path: Path) -> None:
    few = [Preference("p", ({"role": "user", "content": "one " * 30},), "two", "three")]
    base = causal(tmp_path / "base", llama_tokenizer())
    assert fit_reward_model(base, few, tmp_path / "rm", max_length=20).cut == 2
    # Cut so far that nothing but the end of the turn is left, they are the same.
    with pytest.raises(UserError, match="no pair to learn from: 1 given, 1 with answers that read the same"):
        fit_reward_model(base, few, tmp_path / "rm2", max_length=2)


def test_what_cannot_be_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, few = causal(tmp_path / "base", llama_tokenizer()), pairs(4, 0)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    for message, arguments in {
        "taken is not empty": (base, few, tmp_path / "taken", {}),
        "epochs is 0; expected 1 or more": (base, few, tmp_path / "rm", {"epochs": 0}),
        "learning_rate is nan": (base, few, tmp_path / "rm", {"learning_rate": math.nan}),
        "no pair to learn from: 0 given": (base, [], tmp_path / "rm", {}),
        "holds no model": (tmp_path / "empty", few, tmp_path / "rm", {}),
        "the loss is not finite at update 1": (base, few, tmp_path / "rm", {"learning_rate": 1e30, "batch": 2}),
    }.items():
        *positional, options = arguments
        with pytest.raises(UserError, match=message) as caught:
            fit_reward_model(*positional, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before  # not half a model


class Fixed:
    """Scores that are known: an answer's is the number it says."""

    cut = 0

    def score(self, dialogues: list[list[dict[str, str]]], report: Any = None) -> list[float]:
        return [float(d[-1]["content"].split()[0]) for d in dialogues]


def test_figures_by_hand() -> None:
    """Margins 2, -1, 0 and 1 on three prompts."""
    asked = ({"role": "user", "content": "?"},)
    judged = judge_pairs(
        Fixed(),  # type: ignore[arg-type]
        [
            Preference("a", asked, "3 long long", "1"),
            Preference("a", asked, "1", "2"),
            Preference("b", asked, "1", "1 long"),
            Preference("c", asked, "2", "1 long"),
        ],
    )
    assert judged.accuracy.mean == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    # Cochran's linearised error over prompts: influences -0.25, -0.125 and 0.375, over 4 pairs.
    assert judged.accuracy.stderr == pytest.approx(math.sqrt(3 / 2 * (0.25**2 + 0.125**2 + 0.375**2)) / 4)
    assert judged.longer.mean == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert judged.margin == pytest.approx(0.5)
    sigma = [1 / (1 + math.exp(-m)) for m in (2, -1, 0, 1)]
    assert judged.brier == pytest.approx(sum((1 - s) ** 2 for s in sigma) / 4)
    # One pair a bin.
    gaps = [1 - sigma[0], sigma[3], 0.0, 1 - sigma[3]]
    assert judged.calibration_error == pytest.approx(sum(gaps) / 4)
    # Ranks of 3 1 1 2 1 1 2 1 against lengths 11 1 1 1 1 6 1 6.
    score_ranks = np.array([8, 3, 3, 6.5, 3, 3, 6.5, 3])
    length_ranks = np.array([8, 3, 3, 3, 3, 6.5, 3, 6.5])
    assert judged.length_correlation == pytest.approx(np.corrcoef(score_ranks, length_ranks)[0, 1])


def test_nothing_to_judge_is_undefined() -> None:
    judged = judge_pairs(Fixed(), [])  # type: ignore[arg-type]
    assert judged.accuracy.mean is None and judged.accuracy.n == 0
    assert judged.margin is judged.calibration_error is judged.brier is judged.length_correlation is None
    asked = ({"role": "user", "content": "?"},)
    flat = judge_pairs(Fixed(), [Preference("a", asked, "1", "1")])  # type: ignore[arg-type]
    assert flat.accuracy.mean == 0.5 and flat.length_correlation is None and flat.calibration_error == 0


def test_calibration_error_of_a_calibrated_and_an_overconfident_model() -> None:
    rng = np.random.default_rng(0)
    strength = rng.exponential(1.5, 20_000)
    signs = np.where(rng.random(20_000) < 1 / (1 + np.exp(-strength)), 1, -1)
    right, sure = calibration_error(strength * signs), calibration_error(strength * signs * 5)
    assert right is not None and sure is not None
    assert right < 0.012 and sure > 0.1
