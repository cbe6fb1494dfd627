"""Function calls in the text of an answer, in the formats that chat templates write.

Three of the four formats put their calls between markers, and are read by transformers' own response
parser. Llama's calls have no marker but the braces of their JSON, several of them stand in a row behind
semicolons that also occur inside strings, and that parser cuts by regular expressions alone: they are
decoded one after the other by :mod:`json`, accepting what vLLM's parser accepts.

Reading is all or nothing: an answer with one call that cannot be read has none to be executed. As
everywhere, a closing marker spelt out inside an argument closes the call.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from shiq_bench.api.trajectory import ToolCall
from shiq_bench.records.errors import UserError, suggest

#: Longest text in which calls are looked for, in characters.
MAX_LENGTH = 32768

#: Deepest nesting of arguments: whoever walks or prints them next recurses too.
MAX_DEPTH = 64

_HALF = re.compile("[\ud800-\udfff]")
_ID = re.compile("[A-Za-z0-9]{1,64}")
_DECODER = json.JSONDecoder()

# A call runs to its closing marker, to the next call, or to the end of a text that was cut.
_JSON = {"content": "json", "repeats": True}


@dataclass(frozen=True)
class Format:
    """How one family writes calls.

    Attributes:
        opening: regular expression of what a call begins with.
        name: key of the function's name.
        arguments: keys under which the arguments may stand.
        id: key of the call's own id, or "".
        idle: functions that stand for making no call.
        fields: fields of a transformers response template; none for bare JSON objects.
    """

    opening: str
    name: str = "name"
    arguments: tuple[str, ...] = ("arguments",)
    id: str = ""
    idle: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


#: In the order in which a template is tried: bare objects come last, for they also stand between markers.
FORMATS: dict[str, Format] = {
    "hermes": Format(
        opening=r"<tool_call>",
        fields={
            "reasoning": {"open": "<think>", "close": "</think>"},
            "calls": {**_JSON, "open": "<tool_call>", "close": "</tool_call>"},
        },
    ),
    "mistral": Format(
        opening=r"\[TOOL_CALLS\]",
        id="id",
        fields={
            "reasoning": {"open": "[THINK]", "close": "[/THINK]"},
            # The longer opening wins where both match.
            "listed": {**_JSON, "open": "[TOOL_CALLS]", "close_pattern": r"(?=\[TOOL_CALLS\])"},
            "named": {
                **_JSON,
                "open_pattern": r"\[TOOL_CALLS\]\s*+(?P<name>[^\[\]{}\s]++)(?:\[CALL_ID\])?+(?P<id>\w*+)\[ARGS\]",
                "close_pattern": r"(?=\[TOOL_CALLS\])",
                "transform": {"name": "{name}", "id": "{id}", "arguments": "{content}"},
            },
        },
    ),
    "cohere": Format(
        opening=r"<\|START_ACTION\|>|Action:\s*```json",
        name="tool_name",
        arguments=("parameters",),
        id="tool_call_id",
        idle=("directly-answer", "directly_answer"),
        fields={
            "reasoning": {"open": "<|START_THINKING|>", "close": "<|END_THINKING|>"},
            "acted": {**_JSON, "open": "<|START_ACTION|>", "close": "<|END_ACTION|>"},
            "fenced": {**_JSON, "open_pattern": r"Action:\s*+```json", "close": "```"},
        },
    ),
    "llama3": Format(opening=r"<\|python_tag\|>|\{", arguments=("arguments", "parameters")),
}


def read_calls(text: str, name: str) -> list[ToolCall] | None:
    """The calls in an answer's text, special tokens spelt out, in order; None where none, or one that cannot be read.

    Raises:
        UserError: no such format; the nearest is suggested.
    """
    if name not in FORMATS:
        raise UserError(f"no tool-call format is called {name!r}{suggest(name, list(FORMATS))}")
    format = FORMATS[name]
    if len(text) > MAX_LENGTH:
        return None
    # Outside of what is caught: a library that lacks the parser must not look like a model that makes no calls.
    parser = _response_parser(name) if format.fields else _bare_objects
    try:
        calls = [_call(value, format) for value in parser(text)]
        return [call for call in calls if call.name not in format.idle] or None
    except Exception:  # whatever a parser makes of a model's text, it is no call
        return None


@cache
def _response_parser(name: str) -> Callable[[str], list[Any]]:
    from transformers.utils.chat_parsing import parse_response
    from transformers.utils.chat_parsing.response_templates import load_response_template

    calls = [key for key in FORMATS[name].fields if key != "reasoning"]
    # The anchor matters to prompts alone, and none is given.
    template = load_response_template({"start_anchor": "assistant", "fields": dict(FORMATS[name].fields)})

    def between_markers(text: str) -> list[Any]:
        parsed = parse_response(text, template, prefix="")
        regions = [region for key in calls for region in parsed.get(key, [])]
        return [value for region in regions for value in (region if isinstance(region, list) else [region])]

    return between_markers


def _bare_objects(text: str) -> list[Any]:
    """Every JSON object of a text that stands in no other; raises where the first brace opens none."""
    out = []
    at = text.find("{")
    while at >= 0:
        value, end = _DECODER.raw_decode(text, at)
        out.append(value)
        at = text.find("{", end)
    return out


def _call(value: Any, format: Format) -> ToolCall:
    """A decoded value as a call; raises ValueError where it is none."""
    if not isinstance(value, dict):
        raise ValueError("a call is an object")
    name, identity = value.get(format.name), value.get(format.id, "")
    arguments = next((value[key] for key in format.arguments if key in value), None)
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        raise ValueError("a call has a name and an object of arguments")
    if not _sound([name, arguments]):
        raise ValueError("a call holds finite numbers and text")
    return ToolCall(name, arguments, identity if isinstance(identity, str) and _ID.fullmatch(identity) else "")


def _sound(value: Any, depth: int = 0) -> bool:
    """Whether a decoded value can be encoded again: finite numbers, no halves of characters, no abyss."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, dict):
        return all(_sound(k, depth) and _sound(v, depth + 1) for k, v in value.items())
    if isinstance(value, list):
        return all(_sound(v, depth + 1) for v in value)
    if isinstance(value, str):
        return not _HALF.search(value)
    return not isinstance(value, float) or math.isfinite(value)
