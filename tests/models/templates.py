"""Chat templates that write calls, as codecs and as messages: those of packages, and small ones of our own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from shiq_bench.api.trajectory import ToolCall
from shiq_bench.models.chat import ChatCodec
from tests.models.test_chat import template, tokenizer

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


MISTRALS = ["v2", "v2-spm", "v3", "v3-spm", "v7", "v7-spm", "v11", "v13", "v15"]
FIRST = [ToolCall("spell", {"word": "one", "n": 1}), ToolCall("add_2", {"x": [1.5, None, True], "y": {"ü": "☃"}})]
SECOND = [ToolCall("spell", {})]


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
