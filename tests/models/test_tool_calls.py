"""Function calls: what templates write is read back, what models write is read or refused, streams only grow."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from shiq_bench.api.trajectory import Completion, ToolCall, Transcript
from shiq_bench.models.chat import ChatCodec
from shiq_bench.models.template import PLAIN_TEMPLATE, TINY_TEMPLATE
from shiq_bench.models.tool_calls import FORMATS, MAX_DEPTH, MAX_LENGTH, read_calls
from shiq_bench.records.errors import UserError
from tests.models.test_chat import ROLE_TOKENS, TEMPLATES, needs_templates, system, template, tokenizer, tool, user

# The two ways in which Command R models are told to call, as small templates of our own: no
# installed package carries one with tools. The newer numbers calls through the whole dialogue; the
# older closes a call by no token, and tells the model what to do ahead of every answer.
COHERE_NEW = (
    "{%- macro number(id) %}{% set n = namespace(at=0) %}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{% if c.id == id %}{{ n.at }}{% endif %}{% set n.at = n.at + 1 %}{% endfor %}{% endfor %}{% endmacro -%}"
    "{%- set made = namespace(n=0) -%}"
    "{{ bos_token }}{% if tools %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ tools|tojson }}<|END_OF_TURN_TOKEN|>"
    "{% endif %}"
    "{% for m in messages %}<|START_OF_TURN_TOKEN|>"
    "{% if m.role == 'tool' %}<|SYSTEM_TOKEN|><|START_TOOL_RESULT|>"
    '{"tool_call_id": "{{ number(m.tool_call_id) }}", "results": {{ m.content|tojson }}}'
    "<|END_TOOL_RESULT|>"
    "{% elif m.tool_calls %}<|CHATBOT_TOKEN|><|START_ACTION|>[\n"
    "{% for c in m.tool_calls %}"
    '    {"tool_call_id": "{{ made.n }}", "tool_name": "{{ c.function.name }}", '
    '"parameters": {{ c.function.arguments|tojson }}}{{ "" if loop.last else "," }}\n'
    "{% set made.n = made.n + 1 %}{% endfor %}]<|END_ACTION|>"
    "{% elif m.role == 'assistant' %}<|CHATBOT_TOKEN|>{{ m.content }}"
    "{% else %}<|{{ m.role|upper }}_TOKEN|>{{ m.content }}{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
_TEXT_ONLY = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|START_OF_TURN_TOKEN|><|{{ 'CHATBOT' if m.role == 'assistant' else m.role|upper }}_TOKEN|>{{ m.content }}"
    "<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
_FENCED = (
    "{{ bos_token }}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{% for t in tools %}{{ t|tojson }}{% endfor %}"
    "<|END_OF_TURN_TOKEN|>{% for m in messages %}"
    "<|START_OF_TURN_TOKEN|>{% if m.role == 'tool' %}<|SYSTEM_TOKEN|><results>\n{{ m.content }}</results>"
    "<|END_OF_TURN_TOKEN|>"
    "{% elif m.tool_calls %}<|CHATBOT_TOKEN|>\nAction:\n```json\n[\n{% for c in m.tool_calls %}"
    '    {"tool_name": "{{ c.function.name }}", "parameters": {{ c.function.arguments|tojson(indent=4) }}}'
    '{{ "" if loop.last else ",\n" }}{% endfor %}\n]```\n'
    "{% else %}<|{{ 'CHATBOT' if m.role == 'assistant' else m.role|upper }}_TOKEN|>{{ m.content }}"
    "<|END_OF_TURN_TOKEN|>{% endif %}{% endfor %}"
    "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Write 'Action:' and a list:\n```json\n[]```<|END_OF_TURN_TOKEN|>"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
COHERE_OLD = {"default": _TEXT_ONLY, "tool_use": _FENCED}

MARKS = {
    "hermes": ["<tool_call>", "</tool_call>", "<think>", "</think>"],
    "llama3": ["<|python_tag|>"],
    "mistral": [],
    "cohere": ["<|START_ACTION|>", "<|END_ACTION|>"],
}

SPELL = {
    "type": "function",
    "function": {
        "name": "spell",
        "description": "Spells a word.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "which"}},
            "required": ["word"],
        },
    },
}


def mistral(version: str) -> str:
    """A template of Mistral's, as their own package makes it; ``v3`` or ``v3-spm`` (with spaces)."""
    module = pytest.importorskip("mistral_common.integrations.chat_templates.chat_templates")
    base = pytest.importorskip("mistral_common.tokens.tokenizers.base")
    number, _, spaced = version.partition("-")
    effort = number == "v15"
    return str(
        module.generate_chat_template(
            spm=bool(spaced),
            tokenizer_version=base.TokenizerVersion(number),
            image_support=False,
            audio_support=False,
            thinking_support=False,
            default_system_prompt=None,
            plain_thinking_support=False,
            use_special_token_variables=True,
            model_settings_fields=None,
            reasoning_effort_values=("none", "high") if effort else None,
            reasoning_effort_default="none" if effort else None,
        )
    )


def codec_of(name: str, **options: Any) -> ChatCodec:
    if name.startswith("mistral-"):
        text = mistral(name.removeprefix("mistral-"))
        return ChatCodec(tokenizer(text, sorted(set(re.findall(r"\[/?[A-Z_]+\]", text)))), **options)
    if name in ("cohere-new", "cohere-old"):
        both = COHERE_NEW + _FENCED + _TEXT_ONLY
        roles = [f"<|{role}_TOKEN|>" for role in ("SYSTEM", "USER", "CHATBOT")]
        inner = tokenizer(COHERE_NEW, [*sorted(set(re.findall(r"<\|[A-Z_]+\|>", both))), *roles])
        if name == "cohere-old":
            inner.chat_template = COHERE_OLD
        return ChatCodec(inner, **options)
    inner = tokenizer(template(name))
    inner.add_special_tokens({"additional_special_tokens": [*MARKS["hermes"], *MARKS["llama3"]]}, False)
    return ChatCodec(inner, **options)


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def makes(calls: Sequence[ToolCall], stem: str = "call") -> dict[str, Any]:
    functions = [{"name": c.name, "arguments": dict(c.arguments)} for c in calls]
    made = [{"id": f"{stem}{n:05}", "type": "function", "function": f} for n, f in enumerate(functions)]
    return {"role": "assistant", "content": "", "tool_calls": made}


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


MISTRALS = ["v2", "v2-spm", "v3", "v3-spm", "v7", "v7-spm", "v11", "v13", "v15"]


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

FIRST = [ToolCall("spell", {"word": "one", "n": 1}), ToolCall("add_2", {"x": [1.5, None, True], "y": {"ü": "☃"}})]
SECOND = [ToolCall("spell", {})]


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
    rendering = codec._apply(messages, generation=True, tools=[SPELL], calling=True)
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


# --- reading -------------------------------------------------------------------------------------


def wrap(format: str, name: str, arguments: str) -> str:
    """A call as the family writes it, its arguments as given."""
    return {
        "hermes": f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>',
        "llama3": f'{{"name": {name}, "parameters": {arguments}}}',
        "mistral": f'[TOOL_CALLS] [{{"name": {name}, "arguments": {arguments}}}]',
        "named": f"[TOOL_CALLS]{name[1:-1]}[ARGS]{arguments}",
        "cohere": f'<|START_ACTION|>[{{"tool_name": {name}, "parameters": {arguments}}}]<|END_ACTION|>',
        "fenced": f'Action:\n```json\n[{{"tool_name": {name}, "parameters": {arguments}}}\n]```',
    }[format]


WRAPPERS = {
    "hermes": "hermes",
    "llama3": "llama3",
    "mistral": "mistral",
    "named": "mistral",
    "cohere": "cohere",
    "fenced": "cohere",
}

ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"a": 1, "b": -2.5e-7, "c": True, "d": None, "e": "x"},
    {"nested": {"list": [[], {}, [{"deep": [1]}]]}},
    {"text": 'quotes " and \\ and {braces} ; [brackets], \n\t lines, ü ☃ 🐈'},
    {"": "", "with space": 10**30},
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=range(len(ARGUMENTS)))
@pytest.mark.parametrize("ascii_only", [True, False])
def test_calls_are_read(wrapper: str, arguments: dict[str, Any], ascii_only: bool) -> None:
    text = wrap(wrapper, '"f.g_2"', json.dumps(arguments, ensure_ascii=ascii_only))
    call = ToolCall("f.g_2", arguments)
    assert read_calls(text, WRAPPERS[wrapper]) == [call]
    assert read_calls(f"I call:\n{text}", WRAPPERS[wrapper]) == [call]


def test_several_calls_are_read_in_order() -> None:
    f, g = ToolCall("f", {"a": ";"}), ToolCall("g", {})
    for format, text in (
        ("hermes", wrap("hermes", '"f"', '{"a": ";"}') + "\nand\n" + wrap("hermes", '"g"', "{}") + " bye"),
        ("llama3", '<|python_tag|>{"name": "f", "parameters": {"a": ";"}}; {"name": "g", "arguments": {}}'),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": ";"}}, {"name": "g", "arguments": {}}]'),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": ";"}[TOOL_CALLS]g[CALL_ID]abcdefghi[ARGS]{}'),
        (
            "cohere",
            '<|START_ACTION|>[{"tool_name": "f", "parameters": {"a": ";"}}, {"tool_name": "g", "parameters": {}}]'
            "<|END_ACTION|>",
        ),
    ):
        assert read_calls(text, format) == [f, g], text


DEEP = "[" * 5000 + "]" * 5000

BROKEN_ARGUMENTS = [
    "",
    "null",
    "[]",
    "[1]",
    "1",
    "true",
    '"{}"',
    "\"__import__('os').system('id')\"",
    "__import__('os').system('id')",
    "{'a': 1}",
    "{a: 1}",
    '{"a": 1,}',
    '{"a": }',
    '{"a"}',
    '{"a": NaN}',
    '{"a": Infinity}',
    '{"a": [-Infinity]}',
    '{"a": 1e999}',
    '{"a": {"b": [1e400]}}',
    '{"a": ' + "9" * 5000 + "}",
    '{"a": "\\ud800"}',
    '{"\\udfff": 1}',
    '{"a": "line\nbreak"}',
    '{"a": "\x00"}',
    '{"a": open("x")}',
    '{"a": 0x10}',
    '{"a": 01}',
    '{"a": 1} {"b": 2}',
    '{"a": ' + DEEP + "}",
    '{"a": ' + "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2) + "}",
    "[" * 20000,
    '{"a":' * 4000,
    '{"a": "' + "x" * MAX_LENGTH + '"}',
    "{",
    '{"a": "',
    "${7*7}",
    "{{7*7}}",
    "{% for x in y %}",
]
BROKEN_NAMES = ["null", "1", "[]", "{}", '""', '"\\ud83d"', "true", "f", "os.system", '["f"]']


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_nothing_hostile_is_a_call(wrapper: str) -> None:
    texts = [wrap(wrapper, '"f"', arguments) for arguments in BROKEN_ARGUMENTS]
    if wrapper == "named":  # a name is text there
        texts += [f"[TOOL_CALLS]{name}[ARGS]{{}}" for name in ("", " ", "[", "{", "a b", "]f", "\ud800")]
    else:
        texts += [wrap(wrapper, name, "{}") for name in BROKEN_NAMES]
    good = wrap(wrapper, '"f"', "{}")
    assert read_calls(good, WRAPPERS[wrapper])
    # One call that cannot be read, and none is made.
    texts += [good + text if wrapper != "fenced" else good + "\n" + text for text in texts if len(text) < 200]
    fits = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    for arguments in (f'{{"a": {fits[2:-2]}}}', '{"a": "' + "x" * (MAX_LENGTH - 200) + '"}'):
        assert read_calls(wrap(wrapper, '"f"', arguments), WRAPPERS[wrapper])
    assert len(texts) >= 60
    for text in texts:
        assert read_calls(text, WRAPPERS[wrapper]) is None, text[:200]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_call_is_none(format: str) -> None:
    others = [wrap(w, '"f"', "{}") for w, of in WRAPPERS.items() if of != format and "llama3" not in (format, of)]
    for text in [
        "", " \n", "Done.", "the set {1, 2}", '{"answer": 42}', "f(x=1)", "[f(x=1)]", "{}", "[]", "[TOOL_CALLS]",
        "[TOOL_CALLS][]", "[TOOL_CALLS]f", "[TOOL_CALLS][ARGS]{}", "[TOOL_CALLS] [[]]", "[ARGS]{}", "<tool_call>",
        "</tool_call>", "<tool_call></tool_call>", "<tool_call>[]</tool_call>", "<tool_call>{}</tool_call>",
        "<|python_tag|>", '<|python_tag|>brave_search.call(query="x")', "<|START_ACTION|>", "<|END_ACTION|>",
        "<|START_ACTION|>[]<|END_ACTION|>", "<|START_ACTION|>[[{}]]<|END_ACTION|>", "Action: ```json```", "Action:",
        '{"name": "f"}', '{"parameters": {}}', '{"name": "f", "parameters": {}', "\x00", "\ud800", "{\ud800", *others,
    ]:  # fmt: skip
        assert read_calls(text, format) is None, text


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "piece",
    [
        "a", " ", "\n", "{", "}", "[", "]", "<", '"', "\\", ";", ":", "`", "<tool_call>", "</tool_call>", "<think>",
        "<tool_call", "[TOOL_CALLS]", "[TOOL_CALLS]a", "[ARGS]", "[TOOL_CALLS]f[ARGS]", "[TOOL_CALLS]f[ARGS]{}",
        "<|python_tag|>", "<|START_ACTION|>", "<|END_ACTION|>", "Action:", "Action: ", "```json", "Action:```json",
        '{"a":', "{}", "{} ", "[]", '{"name":"f","arguments":{}}', '<tool_call>{"name":"f","arguments":{}}</tool_call>',
        "[TOOL_CALLS]" + "a" * 15000, "Action:" + " " * 15000, "[CALL_ID]", "[TOOL_CALLS] ", "1", "9", "-",
    ],
)  # fmt: skip
def test_reading_is_linear(format: str, piece: str) -> None:
    text = (piece * (30000 // len(piece) + 1))[:30000]
    started = time.perf_counter()
    for hostile in (text, FORMATS_OPEN[format] + text, "<tool_call>[TOOL_CALLS]f" + text):
        read_calls(hostile[:MAX_LENGTH], format)
    assert time.perf_counter() - started < 3  # the three together; the slowest takes some 0.1 s


FORMATS_OPEN = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "cohere": "Action: ```json", "llama3": "{"}


def test_unknown_format() -> None:
    with pytest.raises(UserError, match="did you mean 'hermes'"):
        read_calls("", "herms")


@needs_templates
@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "mistral-v3", "mistral-v13", "cohere-new"])
def test_no_ids_raise(name: str) -> None:
    codec = codec_of(name)
    draw = random.Random(0)
    size = len(codec.tokenizer)
    for ids in [[], [size], [size + 10**6], [2**31], [2**40], [-1], [codec.end_ids[0]] * 3, list(range(size))]:
        assert codec.calls(ids, codec.tool_format) is None
    specials = [*codec._specials]
    made = 0
    for _ in range(300):
        ids = codec.answer_calls(FIRST[:1], codec.tool_format)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(ids))
            ids[at : at + draw.randrange(3)] = draw.choices([*range(size), *specials], k=draw.randrange(3))
        made += codec.calls(ids, codec.tool_format) is not None
    assert made < 300


@needs_templates
def test_markers_that_are_special_are_seen() -> None:
    codec = codec_of("qwen3")
    ids = codec.answer_calls(SECOND, "hermes")
    assert codec.tokenizer.convert_tokens_to_ids("<tool_call>") in ids
    assert "<tool_call>" not in codec.text(ids) and "spell" in codec.text(ids)
    assert codec.calls(ids, "hermes") == codec.calls(ids[:-1], "hermes") == SECOND


@needs_templates
@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "llama3_2", *(f"mistral-{v}" for v in MISTRALS), "cohere-new", "cohere-old"]
)
def test_what_is_written_is_read_back(name: str) -> None:
    codec = codec_of(name)
    for arguments in ARGUMENTS:
        calls = [ToolCall("f.g", arguments), ToolCall("h", {"x": arguments})]
        for some in (calls[:1], calls):
            ids = codec.answer_calls(some, codec.tool_format)
            assert codec.calls(ids, codec.tool_format) == some
            assert ids[-1] in codec.end_ids and not set(ids[:-1]) & set(codec.end_ids)
    assert codec.calls(codec.answer_calls([ToolCall("f", {"t": (1, 2)})], codec.tool_format), codec.tool_format) == [
        ToolCall("f", {"t": [1, 2]})
    ]
    for bad in ({"x": float("nan")}, {"x": float("inf")}, {"x": {1, 2}}, {"x": object()}):
        with pytest.raises(UserError, match="no JSON"):
            codec.answer_calls([ToolCall("f", bad)], codec.tool_format)
    with pytest.raises(UserError, match="cannot write a call of"):
        codec.answer_calls([ToolCall('f"[', {})], codec.tool_format)
    close = codec.tokenizer.decode(codec.end_ids[:1])
    with pytest.raises(UserError, match="cannot write a call of f with these arguments"):
        codec.answer_calls([ToolCall("f", {"x": close})], codec.tool_format)


# --- peers ---------------------------------------------------------------------------------------

PEER = {
    "hermes": [
        wrap("hermes", '"f"', '{"x": 1}'),
        "a" + wrap("hermes", '"f"', '{"x": [1, "é"]}') + "\n" + wrap("hermes", '"g"', "{}") + "bye",
        '<tool_call>{"name": "f", "arguments": {}}',
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>f(x=1)</tool_call>",
        wrap("hermes", '"f"', "{}") + "<tool_call>bad</tool_call>",
        "no call",
        "",
    ],
    "llama3": [
        wrap("llama3", '"f"', '{"x": 1}'),
        '{"name": "f", "parameters": {"a": ";"}}; {"name": "g", "arguments": {}}',
        '<|python_tag|>{"name": "f", "parameters": {"a": "{"}};{"name": "g", "parameters": {"b": {"c": 1}}}',
        'sure: {"name": "f", "parameters": {}} there',
        '{"name": "f"}',
        '{"name": "f", "parameters": {}} {bad}',
        "the set {1, 2}",
        '<|python_tag|>search.call(query="x")',
        "",
    ],
    "mistral": [
        wrap("mistral", '"f"', '{"x": 1}'),
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": "é"}, "id": "abcdefghi"}, {"name": "g", "arguments": {}}]',
        'well [TOOL_CALLS][{"name": "f", "arguments": {}}]',
        '[TOOL_CALLS]{"name": "f", "arguments": {}}',
        "[TOOL_CALLS]",
        "[TOOL_CALLS] f(x=1)",
        "no call",
        "",
    ],
    "named": ['[TOOL_CALLS]f[ARGS]{"x": 1}', "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{\"y\": [2]}", "no call", ""],
}  # fmt: skip

# What the peer executes and we do not.
STRICTER = {
    "hermes": [wrap("hermes", '"f"', a) for a in ('{"x": NaN}', "[1]", '"{}"')],
    "llama3": [wrap("llama3", '"f"', a) for a in ('{"x": Infinity}', "null")],
    "mistral": [wrap("mistral", '"f"', '"{}"'), wrap("mistral", '"f"', "{}") + " and so on"],
    "named": ["[TOOL_CALLS]f[ARGS][1]", "[TOOL_CALLS]f[ARGS]{bad}"],
}


@pytest.fixture(scope="module")
def peers() -> dict[str, Callable[[str], list[ToolCall] | None]]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
    from vllm.tool_parsers.llama_tool_parser import Llama3JsonToolParser
    from vllm.tool_parsers.mistral_tool_parser import MistralToolParser

    listed = tokenizer(None, ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"])
    request = ChatCompletionRequest(
        model="m", messages=[user("x")], tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
    )

    def reader(parser: Any) -> Callable[[str], list[ToolCall] | None]:
        def read(text: str) -> list[ToolCall] | None:
            made = parser.extract_tool_calls(text, request).tool_calls
            return [ToolCall(c.function.name, c.function.arguments) for c in made] or None

        return read

    return {
        "hermes": reader(Hermes2ProToolParser(listed)),
        "llama3": reader(Llama3JsonToolParser(listed)),
        "mistral": reader(MistralToolParser(listed)),
        "named": reader(MistralToolParser(tokenizer(None, ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"]))),
    }


@pytest.mark.parametrize("format", PEER)
def test_vllm_reads_the_same(peers: dict[str, Callable[[str], list[ToolCall] | None]], format: str) -> None:
    read = 0
    for text in PEER[format]:
        theirs = peers[format](text)
        decoded = theirs and [ToolCall(c.name, json.loads(str(c.arguments))) for c in theirs]
        assert read_calls(text, WRAPPERS[format]) == decoded, text
        read += bool(decoded)
    assert read >= 2
    for text in STRICTER[format]:
        assert peers[format](text) and read_calls(text, WRAPPERS[format]) is None, text


def test_coheres_own_parser_reads_the_same() -> None:
    melody = pytest.importorskip("cohere_melody", reason="what vllm reads Command R with is not installed")
    for text in [
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "f", "parameters": {"x": "é"}}\n]<|END_ACTION|>',
        '<|START_THINKING|>so [<|END_THINKING|><|START_ACTION|>[{"tool_call_id": "3", "tool_name": "f", "parameters": '
        '{"x": [1, {}]}}, {"tool_call_id": "4", "tool_name": "g", "parameters": {"y": null}}]<|END_ACTION|>',
        "<|START_RESPONSE|>no call<|END_RESPONSE|>",
    ]:
        theirs = melody.PyFilter.cmd3().process_full_text(text).tool_calls or []
        ours = read_calls(text, "cohere")
        assert (ours or []) == [ToolCall(c.name, json.loads(c.arguments)) for c in theirs]
        assert [c.id for c in ours or []] == [c.id for c in theirs]
