"""Messages to ids: nothing tokenised twice, turns ended once, one BOS."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from shiq_bench.models.chat import ChatCodec
from shiq_bench.models.template import PLAIN_TEMPLATE, TINY_TEMPLATE
from shiq_bench.records.errors import UserError

TRL = importlib.util.find_spec("trl")
TEMPLATES = Path(TRL.origin).parent / "chat_templates" if TRL and TRL.origin else Path("absent")

needs_templates = pytest.mark.skipif(not TEMPLATES.is_dir(), reason="no chat templates here")

ROLE_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]


def tokenizer(template: str | None, specials: list[str] | None = None, **options: Any) -> Any:
    """Byte-level, with every marker of the template a token of its own."""
    if specials is None:
        marks = re.findall(r"<[|｜][^|｜<>\n']+[|｜]>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>", template or "")
        specials = sorted(set(marks))
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(["one two three four, said the user to the assistant"], trainer)
    # As most tokenizers do: a BOS on every text that is encoded with special tokens.
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    out = PreTrainedTokenizerFast(tokenizer_object=inner, **{"bos_token": "<bos>", "eos_token": "<eos>", **options})
    out.add_special_tokens({"additional_special_tokens": specials})
    out.chat_template = template
    return out


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def tool(text: str) -> dict[str, str]:
    return {"role": "tool", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def play(codec: ChatCodec, ended: bool = True) -> tuple[list[int], str]:
    """A dialogue of four turns as a stream of ids, and the template's own rendering of it."""
    messages: list[dict[str, str]] = [system("be brief"), user("one")]
    ids = codec.prompt(messages)
    for answer, following in (
        ("two", [user("three\nlines\n")]),
        ("f()", [tool("four"), tool("4")]),
        ("end", [user("x")]),
    ):
        said = codec.answer(answer)
        ids += (said if ended else said[:-1]) + codec.reply(following, ended)
        messages += [{"role": "assistant", "content": answer}, *following]
    return ids, codec._render(messages)


FAITHFUL = [
    "cohere", "cohere2", "gemma", "gemma3", "gemma4", "lfm2",
    "llama3", "llama3_1", "llama3_2", "phi3", "qwen2_5", "qwen3",
]  # fmt: skip


@needs_templates
@pytest.mark.parametrize("name", FAITHFUL)
def test_stream_equals_the_templates_rendering(name: str) -> None:
    text = tokenizer(template(name))
    codec = ChatCodec(text)
    ids, rendering = play(codec)
    assert text.decode(ids) == rendering
    assert ids.count(text.bos_token_id) == rendering.count("<bos>") <= 1
    assert "four" in rendering and "be brief" in rendering  # whatever roles the template knows
    # Cut off or ended, a turn is closed once, by the same token: here it is merely forced.
    assert play(codec, ended=False)[0] == ids


@needs_templates
@pytest.mark.parametrize("name", sorted(p.stem for p in TEMPLATES.glob("*.jinja") if "_training" not in p.stem))
def test_every_template_is_taken_or_refused_in_a_line(name: str) -> None:
    text = tokenizer(template(name))
    try:
        codec = ChatCodec(text)
    except UserError as error:
        assert "\n" not in str(error)
        assert "idefics" in name or "llava" in name or "smolvlm" in name  # they want pictures, not text
        return
    ids, _ = play(codec)
    assert ids.count(text.bos_token_id) <= 1
    decoded = text.decode(ids)
    for said in ("two", "f()", "end"):
        assert f"{said}{text.decode(codec.end_ids[:1])}" in decoded
        assert decoded.count(f"{said}{text.decode(codec.end_ids[:1])}") == 1
    assert not re.search(r"(<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<end_of_turn>)\s*\1", decoded)


@needs_templates
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("llama3", "<|eot_id|>"),
        ("qwen2_5", "<|im_end|>"),
        ("gemma3", "<end_of_turn>"),
        ("phi3", "<|end|>"),  # its template appends the eos to a finished dialogue: the turn's own end counts
        ("gptoss", "<|return|>"),  # closes the last answer; inside a dialogue it is <|end|>
        ("glm4moe", "<eos>"),  # closes nothing: the next heading does, which is not ours to emit
    ],
)
def test_end_of_turn_comes_from_the_template(name: str, end: str) -> None:
    text = tokenizer(template(name))
    codec = ChatCodec(text, end_ids=[5])
    assert text.convert_ids_to_tokens(codec.end_ids[0]) == end
    assert set(codec.end_ids) == {codec.end_ids[0], text.eos_token_id, 5}


@needs_templates
def test_end_inside_a_dialogue_may_be_another_token() -> None:
    text = tokenizer(template("gptoss"))
    codec = ChatCodec(text)
    assert text.decode(codec.reply([user("x")], ended=False)).startswith("<|end|><|start|>user")
    assert text.decode(codec.reply([user("x")], ended=True)).startswith("<|start|>user")


@needs_templates
def test_headings_are_not_taken_for_ends() -> None:
    text = tokenizer(template("glm4moe"))
    codec = ChatCodec(text)
    assert text.decode(codec.reply([user("x")], ended=True)).startswith("<|user|>")
    assert text.decode(codec.reply([user("x")], ended=False)).startswith("<eos><|user|>")


@needs_templates
def test_no_prompt_holds_todays_date() -> None:
    for name in ("llama3_2", "gptoss"):
        text = tokenizer(template(name))
        prompt = text.decode(ChatCodec(text).prompt([user("hello")]))
        assert "26 Jul 2024" in prompt or "2024-07-26" in prompt


@needs_templates
def test_roles_that_a_template_refuses_or_drops_come_as_user() -> None:
    text = tokenizer(template("gemma"))  # no system, no tool, no two users in a row
    codec = ChatCodec(text)
    assert text.decode(codec.prompt([system("be brief"), user("one")])).count("<start_of_turn>user") == 1
    assert "be brief\n\none" in text.decode(codec.prompt([system("be brief"), user("one")]))
    assert "<start_of_turn>user\nfour\n\n4<end_of_turn>" in text.decode(codec.reply([tool("four"), tool("4")], True))
    text = tokenizer(template("phi3"))  # drops tool messages without a word
    assert "<|user|>\nfour<|end|>" in text.decode(ChatCodec(text).reply([tool("four")], True))


def test_tiny_template() -> None:
    text = tokenizer(TINY_TEMPLATE, ROLE_TOKENS, eos_token="<|end|>", bos_token=None)
    codec = ChatCodec(text, tiny=True)
    assert codec.tiny and not codec.plain_template
    assert codec.end_ids == (text.convert_tokens_to_ids("<|end|>"),)
    ids, rendering = play(codec)
    assert text.decode(ids) == rendering
    assert rendering.startswith(
        "<|system|>be brief<|end|><|user|>one<|end|><|assistant|>two<|end|><|user|>three\nlines\n"
    )
    assert text.decode(codec.reply([tool("4")], True)) == "<|tool|>4<|end|><|assistant|>"
    assert text.decode(codec.reply([tool("4")], False)) == "<|end|><|tool|>4<|end|><|assistant|>"
    with pytest.raises(UserError, match="unknown role"):
        codec.prompt([{"role": "owl", "content": "hoo"}])


@pytest.mark.parametrize("text", ["f(x=1)", " a\n\nb ", "ünïcode ☃", ""])
def test_answers_come_back(text: str) -> None:
    inner = tokenizer(TINY_TEMPLATE, ROLE_TOKENS, eos_token="<|end|>", bos_token=None)
    codec = ChatCodec(inner)
    ids = codec.answer(text)
    assert ids[-1] == codec.end_ids[0] and ids.count(codec.end_ids[0]) == 1
    assert codec.text(ids) == codec.text(ids[:-1]) == text


def test_an_end_that_is_not_marked_special_is_no_text() -> None:
    inner = tokenizer(TINY_TEMPLATE, ROLE_TOKENS[:-1], bos_token=None)
    inner.add_tokens(["<|end|>", "[call]"])
    codec = ChatCodec(inner)
    assert inner.convert_ids_to_tokens(codec.end_ids[0]) == "<|end|>"
    assert codec.text(codec.answer("[call] f")) == "[call] f"


def test_what_was_sampled_is_kept() -> None:
    # The same text, cut into other tokens than the tokenizer would choose.
    inner = tokenizer(TINY_TEMPLATE, ROLE_TOKENS, eos_token="<|end|>", bos_token=None)
    codec = ChatCodec(inner)
    whole = codec.answer("one")[:-1]
    pieces = [inner.convert_tokens_to_ids(c) for c in "one"]
    assert whole != pieces and codec.text(pieces) == codec.text(whole) == "one"
    assert codec.reply([user("x")], True) == codec.reply([user("x")], True)  # knows nothing of the answer


def test_a_tokenizer_without_a_template_gets_the_plain_one() -> None:
    inner = tokenizer(None, [])
    codec = ChatCodec(inner)
    assert codec.plain_template and inner.chat_template == PLAIN_TEMPLATE
    ids, rendering = play(codec)
    assert inner.decode(ids) == rendering
    assert ids.count(inner.bos_token_id) == 1 and ids[0] == inner.bos_token_id
    assert codec.end_ids == (inner.eos_token_id,)
    assert inner.decode(codec.reply([user("x")], True)) == "\n\n### user\nx\n\n### assistant\n"
    with pytest.raises(UserError, match="neither"):
        ChatCodec(tokenizer(None, [], eos_token=None))


def test_doubled_bos_is_one() -> None:
    doubled = "{{ bos_token + bos_token }}" + TINY_TEMPLATE
    inner = tokenizer(doubled, ROLE_TOKENS)
    assert ChatCodec(inner).prompt([user("one")]).count(inner.bos_token_id) == 1


def test_templates_that_cannot_serve() -> None:
    for broken, message in (
        ("{{ raise_exception('no.\nnever') }}", "refuses roles user, assistant: no"),
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", "drops"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "nothing ends"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            ChatCodec(tokenizer(broken, [], eos_token=None))
        assert "\n" not in str(caught.value)
