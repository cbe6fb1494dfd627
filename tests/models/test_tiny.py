"""Tiny models of a few words."""

from __future__ import annotations

import pytest

from shiq_bench.models.tiny import WordCodec
from shiq_bench.records.errors import UserError
from tests.models.test_chat import tokenizer


def test_a_word_that_the_model_has_not_is_named() -> None:
    codec = WordCodec(tokenizer("{# words #}", ["yes", "no"]))
    assert codec.text(codec.answer("yes no yes")) == "yes no yes"
    with pytest.raises(UserError, match="'perhaps' is not among the words"):
        codec.answer("no perhaps")
