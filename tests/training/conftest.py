"""Small random models, one with a head that is a plain matrix and one whose logits are scaled, and ragged data."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from shiq_bench.api.trajectory import Trajectory

VOCAB = 40


@pytest.fixture(params=["plain", "scaled", "capped", "biased"])
def any_model(request: pytest.FixtureRequest) -> Any:
    """A Llama with rows beyond the vocabulary, a Cohere, whose logits are scaled, a Gemma 2, whose logits are capped
    (and which attends to windows), and a Phi, whose head has a bias."""
    return build(request.param)


def build(kind: str = "plain", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {**sizes, "num_key_value_heads": 4, "initializer_range": 0.2}
    if kind == "scaled":
        return CohereForCausalLM(CohereConfig(vocab_size=VOCAB, logit_scale=0.25, **common)).eval()
    if kind == "capped":
        return Gemma2ForCausalLM(
            Gemma2Config(vocab_size=VOCAB, head_dim=8, final_logit_softcapping=2.0, **common)
        ).eval()
    if kind == "biased":
        model = PhiForCausalLM(PhiConfig(vocab_size=VOCAB, **common)).eval()
        torch.nn.init.normal_(model.lm_head.bias)
        return model
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB + 3, tie_word_embeddings=True, **common)).eval()


def ragged(prompts: int = 4, each: int = 3, seed: int = 0) -> list[Trajectory]:
    """Answers of different lengths, tool tokens between actions, returns of 0, one half and 1."""
    rng = random.Random(seed)
    made = []
    for prompt in range(prompts):
        for k in range(each):
            n = rng.randint(5, 16)
            mask = (False, False, *(rng.random() < 0.7 for _ in range(n - 3)), True)
            rewards = (0.0,) * (n - 1) + (k % 3 / 2,)
            made.append(Trajectory(f"p{prompt}", tuple(rng.randrange(VOCAB) for _ in range(n)), mask, rewards))
    return made
