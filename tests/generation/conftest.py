"""Small models built on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 300
MAX_LENGTH = 512


def build(folder: Path, seed: int, padding: int = 0, heads: int = 4, tied: bool = False) -> Path:
    """A two-layer Llama, wide enough in its weights for greedy choices to be clear."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY + padding,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.12,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    if padding:
        # Rows beyond the tokenizer that would win every draw, were they not masked.
        with torch.no_grad():
            model.lm_head.weight[VOCABULARY:] *= 3
    # What hub models carry and sampling must not follow: a penalty, a nucleus, an end of their own.
    model.generation_config.update(repetition_penalty=1.7, top_p=0.5, top_k=3, do_sample=True, eos_token_id=7)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and on a busy machine lose much to it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``old`` and ``new``: one architecture, two sets of weights; ``padded``: with rows beyond the tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return {
        "old": build(root / "old", seed=0),
        "new": build(root / "new", seed=1),
        "padded": build(root / "padded", seed=2, padding=84),
    }
