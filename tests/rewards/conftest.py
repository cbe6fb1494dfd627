"""Reward models of two families, built on the spot with random weights, and a cache of the tests' own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, Qwen2Config, Qwen2ForSequenceClassification

from tests.models.test_chat import tokenizer

#: Writes its own BOS, as Llama's does.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
#: No BOS, and a line break behind the end of a turn, as Qwen's.
QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def llama_tokenizer(**options: Any) -> Any:
    return tokenizer(LLAMA, ["<|start|>", "<|eot|>"], **options)


def qwen_tokenizer() -> Any:
    out = tokenizer(QWEN, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], bos_token=None, eos_token="<|im_end|>")
    out.pad_token = "<|endoftext|>"
    return out


def save(folder: Path, model: Any, text: Any) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
            parameter.mul_(0.3)
    model.save_pretrained(folder)
    text.save_pretrained(folder)
    return folder


def llama(folder: Path, text: Any, labels: int = 1, **options: Any) -> Path:
    config = LlamaConfig(vocab_size=len(text), num_labels=labels, **{**SHAPE, **options})
    return save(folder, LlamaForSequenceClassification(config), text)


def qwen(folder: Path) -> Path:
    text = qwen_tokenizer()
    return save(folder, Qwen2ForSequenceClassification(Qwen2Config(vocab_size=len(text), num_labels=1, **SHAPE)), text)


def says(*contents: str) -> list[dict[str, str]]:
    """A dialogue, user and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


#: Of many lengths, so that batches are padded.
DIALOGUES: Sequence[list[dict[str, str]]] = [
    says("one", "two"),
    says("one two three", "said the user to the assistant"),
    says("four", "one " * 11),
    says("one", "two", "three", "four"),
    says("x", ""),
    says("to the user", "é☃"),
    says("three " * 9, "2"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "rewards"
