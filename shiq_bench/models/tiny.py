"""The embedded tiny models: tokenizer, configuration and codec."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from shiq_bench.api.task import Messages, TextCodec, TinyModel, Tools
from shiq_bench.models.template import TINY_TEMPLATE
from shiq_bench.records.errors import UserError

#: Raise it when the recipe below changes, so that cached models of the old one are not used.
TINY_VERSION = 2


class WordCodec(TextCodec):
    """One token a word, and no turns: the codec of models built from :attr:`TinyModel.words`."""

    MARK = "{# words #}"
    end_ids: tuple[int, ...] = ()
    tiny = True

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def prompt(self, messages: Messages, tools: Tools | None = None) -> list[int]:
        return [i for m in messages for i in self.answer(m["content"])]

    def answer(self, text: str) -> list[int]:
        words = text.split()
        ids = list(self.tokenizer.convert_tokens_to_ids(words))
        if None in ids:
            raise UserError(f"{words[ids.index(None)]!r} is not among the words of the task's tiny model: add it")
        return ids

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join(self.tokenizer.convert_ids_to_tokens(list(token_ids)))


class Recorder(TextCodec):
    """A codec over bytes that remembers every text it was given: the corpus a tokenizer is trained on."""

    end_ids: tuple[int, ...] = (0,)
    tiny = True

    def __init__(self) -> None:
        self.texts: list[str] = []

    def prompt(self, messages: Messages, tools: Tools | None = None) -> list[int]:
        self.texts += [m["content"] for m in messages]
        return [b for m in messages for b in m["content"].encode()] or [0]

    def answer(self, text: str) -> list[int]:
        self.texts.append(text)
        return [*text.encode(), 0]

    def text(self, token_ids: Sequence[int]) -> str:
        return bytes(b for b in token_ids if b).decode(errors="replace")


def llama_config(recipe: TinyModel, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=16 * math.ceil(recipe.width * 8 / 3 / 16),
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=bool(recipe.steps),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


@torch.no_grad()
def scale_logits(model: Any, scale: float) -> None:
    ids = torch.arange(model.config.vocab_size)[:, None]
    model.eval()
    model.lm_head.weight.mul_(scale / model(ids).logits.std())


def word_tokenizer(words: Sequence[str]) -> Any:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = WordCodec.MARK
    return tokenizer


def train_tokenizer(recipe: TinyModel, texts: Sequence[str]) -> Any:
    special = ["<|pad|>", "<|end|>", *(f"<|{role}|>" for role in ("system", "user", "assistant", "tool"))]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.add_tokens(list(recipe.phrases))
    tokenizer.chat_template = TINY_TEMPLATE
    return tokenizer
