"""Acting by two models: what is sampled is what :class:`ActingPolicy` scores, ragged prompts and caches included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, Dense, LossOutput, Stats
from shiq_bench.api.needs import QHeads, ValueHead
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.generation.opening import make_generator
from shiq_bench.records.errors import UserError
from shiq_bench.training.policy import ActingPolicy, Policy
from shiq_bench.training.reference import model_inputs, over_actions
from tests.generation.conftest import MAX_LENGTH, VOCABULARY
from tests.training.conftest import VOCAB, build

PROMPTS = [[5], [9, 8, 7, 6], list(range(4, 34)), [9, 8, 7, 6], list(range(20, 30)) * 3]


@dataclass(frozen=True)
class Tilted(Algorithm):
    needs = (QHeads(2), ValueHead())

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        raise NotImplementedError

    def act(self, dense: Dense) -> Tensor:
        base = dense.behaviour if dense.behaviour is not None else dense.logits
        tilt = torch.stack(dense.q).amin(0) if dense.q else 0.0
        return base.log_softmax(-1) + 3 * dense.logits.softmax(-1) + tilt


def guided(trained: Any, behaviour: Any, folder: Path, vocab: int) -> tuple[ActingPolicy, Any]:
    policy = Policy(trained, vocab).equip(Tilted(), seed=1)
    with torch.no_grad():
        for weight in policy.heads.q if policy.heads is not None else ():
            weight.mul_(5)
    other = Policy(behaviour, vocab) if behaviour is not None else None
    acting = ActingPolicy(policy, other, Tilted()).eval()
    return acting, make_generator("hf", folder, tokenizer_vocab=vocab, max_length=MAX_LENGTH, guide=acting)


def scored(acting: ActingPolicy, prompts: list[list[int]], completions: list[Any]) -> float:
    """Largest gap between what the sampler said and what scoring says, in nats."""
    trajectories = [
        Trajectory("p", (*p, *c.token_ids), (False,) * len(p) + (True,) * len(c.token_ids),
                   (0.0,) * (len(p) + len(c.token_ids)))
        for p, c in zip(prompts, completions, strict=True)
    ]  # fmt: skip
    columns = over_actions(trajectories, acting, lambda inputs: [acting(**model_inputs(inputs))["logp"]])
    return max(float(np.abs(logp - np.array(c.logps)).max()) for (logp,), c in zip(columns, completions, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampled_is_what_is_scored(models: dict[str, Path], temperature: float) -> None:
    trained, behaviour = (AutoModelForCausalLM.from_pretrained(models[k], dtype=torch.float32) for k in ("new", "old"))
    acting, generator = guided(trained, behaviour, models["old"], VOCABULARY)
    options: Any = {"temperature": temperature, "max_tokens": 12, "stop_ids": [7, 11]}
    drawn = generator.generate(PROMPTS, seeds=range(len(PROMPTS)), **options)
    assert scored(acting, PROMPTS, drawn) < 1e-5
    # The guide has a say: without it the same seeds draw other answers.
    generator.guide = None
    alone = generator.generate(PROMPTS, seeds=range(len(PROMPTS)), **options)
    assert scored(acting, PROMPTS, alone) > 0.1


@pytest.mark.parametrize("with_behaviour", [True, False])
def test_a_trained_model_with_a_scaled_head(tmp_path: Path, with_behaviour: bool) -> None:
    """Its hidden states and its logits both come through the cache; without a behaviour it acts by itself."""
    behaviour = build("plain", seed=2)
    behaviour.save_pretrained(tmp_path)
    acting, generator = guided(build("scaled"), behaviour if with_behaviour else None, tmp_path, VOCAB)
    drawn = generator.generate(PROMPTS, temperature=1.0, max_tokens=10, seeds=range(len(PROMPTS)), stop_ids=[3])
    assert scored(acting, PROMPTS, drawn) < 1e-5


def test_one_batch_or_many(models: dict[str, Path]) -> None:
    """A guide starts anew with every batch, and a row does not feel its neighbours' padding."""
    trained, behaviour = (AutoModelForCausalLM.from_pretrained(models[k], dtype=torch.float32) for k in ("new", "old"))
    _, generator = guided(trained, behaviour, models["old"], VOCABULARY)
    options: Any = {"temperature": 1.0, "max_tokens": 8, "stop_ids": []}
    together = generator.generate(PROMPTS, seeds=range(len(PROMPTS)), **options)
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generator.generate([prompt], seeds=[i], **options)
        assert alone.token_ids == together[i].token_ids
        np.testing.assert_allclose(alone.logps, together[i].logps, atol=3e-5)


def test_vllm_cannot_be_guided(models: dict[str, Path]) -> None:
    behaviour = AutoModelForCausalLM.from_pretrained(models["old"], dtype=torch.float32)
    acting = ActingPolicy(Policy(behaviour, VOCABULARY), None, Tilted())
    with pytest.raises(UserError, match=r"use engine hf|not installed"):
        make_generator("vllm", models["old"], tokenizer_vocab=VOCABULARY, max_length=MAX_LENGTH, guide=acting)
