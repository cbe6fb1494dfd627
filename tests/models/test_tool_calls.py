"""Function calls in the streams of a dialogue: which format a template writes, and that streams only grow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from shiq_bench.api.trajectory import Completion, ToolCall, Transcript
from shiq_bench.models.chat import ChatCodec
from shiq_bench.models.template import PLAIN_TEMPLATE, TINY_TEMPLATE
from shiq_bench.models.tool_calls import read_calls
from shiq_bench.records.errors import UserError
from tests.models.templates import FIRST, MISTRALS, SECOND, SPELL, codec_of, makes, says
from tests.models.test_chat import ROLE_TOKENS, TEMPLATES, needs_templates, system, template, tokenizer, tool, user

# --- detection -----------------------------------------------------------------------------------

WRITES = {
    "llama3_1": "llama3",
    "llama3_2": "llama3",
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_instruct_2507": "hermes",
    "qwen3_vl": "hermes",
}  # every other template of trl's: no tools, or another format (XML, Python, channels)


@needs_templates
@pytest.mark.parametrize("name", sorted(p.stem for p in TEMPLATES.glob("*.jinja") if "_training" not in p.stem))
def test_format_of_every_template(name: str) -> None:
    try:
        codec = ChatCodec(tokenizer(template(name)))
    except UserError:
        return  # wants pictures: see test_chat
    assert codec.tool_format == WRITES.get(name, "")
    if not codec.tool_format:
        with pytest.raises(UserError, match="no tools, or writes calls in no format known") as caught:
            codec.prompt([user("one")], [SPELL])
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="asked for 'hermes'"):
            codec.answer_calls([ToolCall("f", {})], "hermes")


@pytest.mark.parametrize("version", MISTRALS)
def test_format_of_mistral(version: str) -> None:
    assert codec_of(f"mistral-{version}").tool_format == "mistral"


def test_format_of_the_others() -> None:
    assert codec_of("mistral-v1").tool_format == ""
    assert codec_of("cohere-new").tool_format == "cohere"
    assert codec_of("cohere-old").tool_format == "cohere"
    for own in (TINY_TEMPLATE, PLAIN_TEMPLATE):
        assert ChatCodec(tokenizer(own, ROLE_TOKENS, eos_token="<|end|>")).tool_format == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{%- for tool in tools %}", "{%- for tool in [] %}"),  # drops the descriptions
        ("{{- message.content }}\n        {{- '\\n</tool_response>' }}", "{{- '\\n</tool_response>' }}"),  # the results
        ("{{- tool_call.arguments | tojson }}", "{{- '{}' }}"),  # the arguments
        ('message.role == "tool"', 'message.role == "owl"'),
        ("<tool_call>", "<a_call>"),
        ('"arguments": \'', '"options": \''),
    ],
)
@needs_templates
def test_a_template_that_lacks_a_part_writes_no_format(old: str, new: str) -> None:
    text = template("qwen2_5")
    assert old in text
    assert ChatCodec(tokenizer(text.replace(old, new))).tool_format == ""


@needs_templates
def test_braces_are_a_format_only_where_nothing_introduces_them() -> None:
    text = template("llama3_1")
    assert """'{"name": "' + tool_call.name""" in text
    assert ChatCodec(tokenizer(text)).tool_format == "llama3"
    text = text.replace("""'{"name": "' + tool_call.name""", """'<function>{"name": "' + tool_call.name""")
    assert ChatCodec(tokenizer(text)).tool_format == ""


# --- streams -------------------------------------------------------------------------------------


#: What is answered, calls or text, and what follows it.
Rounds = list[tuple[Sequence[ToolCall] | str, list[dict[str, str]]]]


def play(codec: ChatCodec, rounds: Rounds, ended: bool = True) -> tuple[Transcript, list[int], list[dict[str, Any]]]:
    """A dialogue as a stream, the ids that were answered, and its messages."""
    messages: list[dict[str, Any]] = [system("be brief"), user("one")]
    transcript = Transcript(codec.prompt(messages, [SPELL]))
    answered: list[int] = []
    for said, following in rounds:
        before = list(transcript.token_ids)
        ids = codec.answer(said) if isinstance(said, str) else codec.answer_calls(said, codec.tool_format)
        ids = ids if ended else ids[:-1]
        # What the calls are for the reply is what they were read as.
        calls = codec.calls(ids, codec.tool_format)
        assert calls == (None if isinstance(said, str) else said)
        transcript.act(Completion(tuple(ids), (0.0,) * len(ids), "stop"))
        transcript.observe(codec.reply(following, ended, calls))
        assert transcript.token_ids[: len(before)] == before
        answered += ids
        # Whoever numbers calls through a dialogue goes by their ids; others print them.
        asked = makes(calls or [], f"c{len(messages):03}" if codec.tool_format == "cohere" else "call")
        messages.append(asked if calls else says(str(said)))
        for n, message in enumerate(following):
            made = asked["tool_calls"][n : n + 1]
            messages.append(
                {**message, **({"name": calls[n].name, "tool_call_id": made[0]["id"]} if calls and made else {})}
            )
    return transcript, answered, messages


def agree(codec: ChatCodec, transcript: Transcript, answered: list[int], messages: list[dict[str, Any]]) -> str:
    templates = codec.tokenizer.chat_template
    rendering = codec.tokenizer.apply_chat_template(
        messages, [SPELL], chat_template=templates.get("tool_use") if isinstance(templates, dict) else None,
        tokenize=False, add_generation_prompt=True, **codec._options,
    )  # fmt: skip
    assert codec.tokenizer.decode(transcript.token_ids) == rendering
    assert transcript.token_ids == codec._encode(rendering)
    assert [i for i, mine in zip(transcript.token_ids, transcript.action_mask, strict=True) if mine] == answered
    return rendering


FAITHFUL = [
    *("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "llama3_1", "llama3_2"),
    *("mistral-v13", "mistral-v15", "cohere-new"),
]


@needs_templates
@pytest.mark.parametrize("name", FAITHFUL)
def test_stream_equals_the_templates_rendering(name: str) -> None:
    codec = codec_of(name)
    single = codec.tool_format == "llama3"  # its template takes one call a message
    # An answer says which number its first call has: one family numbers them through.
    later = [ToolCall(c.name, c.arguments, "1" if single else "2") for c in SECOND]
    rounds: Rounds = [
        (FIRST[:1] if single else FIRST, [tool("four"), tool("4")][: 1 if single else 2]),
        (later, [tool("five\nlines")]),
        ("end", [user("x")]),
    ]
    transcript, answered, messages = play(codec, rounds)
    rendering = agree(codec, transcript, answered, messages)
    assert "spell" in rendering and "be brief" in rendering and "five" in rendering
    assert transcript.token_ids.count(codec.tokenizer.bos_token_id) == rendering.count("<bos>") <= 1
    # Cut off or ended, a turn is closed once, by the same token: here it is merely forced.
    forced, fewer, _ = play(codec, rounds, ended=False)
    assert forced.token_ids == transcript.token_ids and len(fewer) == len(answered) - 3


@pytest.mark.parametrize("version", ["v3", "v3-spm", "v7", "v7-spm", "v11"])
def test_stream_of_older_mistral_equals_the_rendering_of_a_turn(version: str) -> None:
    # These move tools (and v3 the system message) ahead of the last question: the first turn is theirs.
    codec = codec_of(f"mistral-{version}")
    rounds: Rounds = [(FIRST, [tool("four"), tool("f")]), (SECOND, [tool("five")])]
    rendering = agree(codec, *play(codec, rounds))
    assert "be brief" in rendering and rendering.count("call00000") == 4
    transcript, _, _ = play(codec, [*rounds, ("end", [user("x")])])
    assert codec.tokenizer.decode(transcript.token_ids).startswith(rendering)


def test_results_name_the_ids_that_the_model_made_up() -> None:
    for version in ("v3", "v7", "v11"):
        codec = codec_of(f"mistral-{version}")
        calls = [ToolCall("f", {}, "aB3dE6gH9"), ToolCall("g", {}, "too short")]
        said = codec.tokenizer.decode(codec.reply([tool("four"), tool("five")], True, calls))
        assert "aB3dE6gH9" in said and "call00001" in said and "too short" not in said
        read = codec.calls(codec.answer_calls(calls, "mistral"), "mistral")
        assert read is not None and [c.id for c in read] == ["aB3dE6gH9", "call00001"]
    codec = codec_of("cohere-new")
    said = codec.tokenizer.decode(
        codec.reply([tool("a"), tool("b")], True, [ToolCall("f", {}, "11"), ToolCall("g", {})])
    )
    assert '"tool_call_id": "11"' in said and '"tool_call_id": "12"' in said
    for absurd in ("9" * 64, "-1", "٣", "x", "0x1"):
        said = codec.tokenizer.decode(codec.reply([tool("a")], True, [ToolCall("f", {}, absurd)]))
        assert '"tool_call_id": "0"' in said


def test_older_cohere_closes_a_call_by_no_token() -> None:
    codec = codec_of("cohere-old")
    text = codec.tokenizer
    assert "spell" in text.decode(codec.prompt([user("one")], [SPELL]))
    assert "Action:" not in text.decode(codec.prompt([user("one")]))  # without tools, the template without them
    ids = codec.answer_calls(FIRST, "cohere")
    assert text.decode(ids).startswith("Action:\n```json\n[") and ids[-1] == codec.end_ids[0]
    assert text.decode(ids[:-1]).endswith("]```\n")
    said = text.decode(codec.reply([tool("four"), tool("five")], True, FIRST))
    assert said.startswith("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>\nfour</results>")
    assert said.endswith("<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")
    assert text.decode(codec.reply([tool("four")], False, SECOND)).startswith("<|END_OF_TURN_TOKEN|><|START_OF_TURN")
    # With tools the model is told before every answer, whatever the last one was.
    assert "Write 'Action:'" in text.decode(codec.reply([user("x")], True, []))
    assert "Write 'Action:'" not in text.decode(codec.reply([user("x")], True))


@needs_templates
@pytest.mark.parametrize("name", ["llama3_1", "mistral-v2", "mistral-v3", "mistral-v13", "qwen3", "cohere-new"])
def test_what_a_template_refuses_together_comes_one_by_one(name: str) -> None:
    codec = codec_of(name)
    ids = codec.answer_calls(FIRST, codec.tool_format)
    assert codec.calls(ids, codec.tool_format) == FIRST
    assert sum(i in codec.end_ids for i in ids) == 1
    # Two results, and a new question without an answer in between: some templates refuse either.
    said = codec.tokenizer.decode(codec.reply([tool("four"), tool("five"), user("six"), user("seven")], True, FIRST))
    at = [said.find(word) for word in ("four", "five", "six", "seven")]
    assert at == sorted(at) and min(at) >= 0 and all(said.count(w) == 1 for w in ("four", "five", "six", "seven"))
    assert said.endswith(codec._heading) and said.count(codec._heading or "seven") == 1
    assert not re.search(r"(<\|im_end\|>|<\|eot_id\|>|<eos>)\s*\1", said)
    # The reply knows the names, not the arguments.
    bare = [ToolCall(c.name, {}) for c in FIRST]
    assert codec.reply([tool("four"), tool("five")], True, bare) == codec.reply(
        [tool("four"), tool("five")], True, FIRST
    )


@needs_templates
def test_results_and_calls_come_in_pairs() -> None:
    codec = codec_of("qwen3")
    for messages in ([], [tool("a")], [tool("a"), tool("b"), tool("c")], [tool("a"), user("b"), tool("c")]):
        with pytest.raises(ValueError, match="2 tool calls are followed by"):
            codec.reply(messages, True, FIRST)
    assert codec.reply([tool("a")], True, []) == codec.reply([tool("a")], True)
    with pytest.raises(ValueError, match="one at least"):
        codec.answer_calls([], "hermes")


@needs_templates
def test_reasoning_is_no_part_of_answers_and_holds_no_calls() -> None:
    for options in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        codec = codec_of("qwen3", template_options=options)
        assert codec.tool_format == "hermes"
        ids = codec.answer_calls(SECOND, "hermes")
        assert codec.tokenizer.decode(ids) == '<tool_call>\n{"name": "spell", "arguments": {}}\n</tool_call><|im_end|>'
        assert codec.calls(ids, "hermes") == SECOND
        empty = "<think>\n\n</think>\n\n"
        said = codec.tokenizer.decode(codec.reply([tool("a")], True, SECOND))
        assert said.endswith("assistant\n" + empty if options.get("enable_thinking") is False else "assistant\n")
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    codec = codec_of("qwen3")
    assert codec.calls(codec.answer(f"<think>{call}</think>"), "hermes") is None
    assert codec.calls(codec.answer(f"<think>{call}"), "hermes") is None
    assert codec.calls(codec.answer(f"<think>bad <tool_call></think>{call}"), "hermes") == [ToolCall("f", {})]
    # A heading may open the reasoning; the answer begins inside it.
    prefilled = template("qwen3").replace(
        r"{{- '<|im_start|>assistant\n' }}", r"{{- '<|im_start|>assistant\n<think>\n' }}"
    )
    assert prefilled != template("qwen3")
    codec = ChatCodec(tokenizer(prefilled, ["<|im_start|>", "<|im_end|>"]))
    assert codec.tool_format == "hermes"
    ids = codec.answer_calls(SECOND, "hermes")
    assert codec.text(ids) == '\n</think>\n\n<tool_call>\n{"name": "spell", "arguments": {}}\n</tool_call>'
    assert codec.calls(ids, "hermes") == SECOND
    assert codec.calls(codec.answer(call), "hermes") is None
    assert codec.calls(codec.answer(f"{call}</think>\n{call}{call}"), "hermes") == [ToolCall("f", {})] * 2
    assert read_calls("[THINK][TOOL_CALLS]f[ARGS]{}[/THINK]x", "mistral") is None
    assert read_calls("<|START_THINKING|><|START_ACTION|>[]<|END_THINKING|>x", "cohere") is None
