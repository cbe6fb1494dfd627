"""Function calls that models write: read as they were written, or refused."""

from __future__ import annotations

import importlib.util
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from shiq_bench.api.trajectory import ToolCall
from shiq_bench.models.tool_calls import FORMATS, MAX_DEPTH, MAX_LENGTH, read_calls
from shiq_bench.records.errors import UserError
from tests.models.templates import FIRST, MISTRALS, SECOND, codec_of
from tests.models.test_chat import needs_templates, tokenizer, user

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
