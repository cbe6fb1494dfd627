"""One tokenizer's chat template: what it accepts, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from shiq_bench.api.task import Messages, Tools
from shiq_bench.records.errors import UserError

#: Template of our own tiny models: ``<|role|>content<|end|>``, answers begin behind ``<|assistant|>``.
TINY_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] not in ('system', 'user', 'assistant', 'tool') %}"
    "{{ raise_exception('unknown role ' + m['role']) }}"
    "{% endif %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

#: Template given to a tokenizer that has none: a heading a turn, in plain text, and the
#: end-of-sequence token behind every answer.
PLAIN_TEMPLATE = (
    "{{ bos_token if plain_bos else '' }}"
    "{% for m in messages %}"
    "{{ '### ' + m['role'] + '\n' + m['content'] + (eos_token if m['role'] == 'assistant' else '') + '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)

# Letters and digits alone: nothing that a template trims, splits or escapes.
ANSWER = "AnswerPlaceholder7f3c"
OTHER = "OtherPlaceholder9b1e"
TOOL = "ToolPlaceholder5d2a"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Looks up a word.",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string", "description": "the word"}},
                "required": ["word"],
            },
        },
    }
]

# Some templates print today's date. Prompts, and with them every cache and run, would change overnight.
_TODAY = datetime(2024, 7, 26)


class Template:
    """Renderings of a chat template, and of the plain one where a tokenizer has none.

    Attributes:
        end_ids: ids that end an answer.
        plain_template: the tokenizer had no template and was given :data:`PLAIN_TEMPLATE`.
    """

    end_ids: tuple[int, ...]

    def __init__(self, tokenizer: Any, template_options: Mapping[str, Any] | None = None) -> None:
        """Learn from a few renderings which messages the template accepts.

        Raises:
            UserError: the tokenizer has neither a template nor a token that ends an answer.
        """
        self.tokenizer = tokenizer
        self.plain_template = tokenizer.chat_template is None
        self._options = {"strftime_now": _TODAY.strftime, **(template_options or {})}
        if self.plain_template:
            if tokenizer.eos_token is None:
                raise UserError(
                    "the tokenizer has neither a chat template nor an end-of-sequence token: add one of them"
                )
            tokenizer.chat_template = PLAIN_TEMPLATE
        if tokenizer.chat_template == PLAIN_TEMPLATE:
            begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
            self._options["plain_bos"] = begins and tokenizer.bos_token is not None

        question = {"role": "user", "content": "hello"}
        self._around = [question, {"role": "assistant", "content": ANSWER}]
        # Nothing is rewritten until it is known what has to be.
        self._keeps_tool = self._keeps_system = self._keeps_neighbours = True
        self._keeps_tool = self._shows([*self._around, {"role": "tool", "content": OTHER}])
        self._keeps_system = self._shows([{"role": "system", "content": OTHER}, question])
        self._keeps_neighbours = self._shows([question, {"role": "user", "content": OTHER}])
        self._specials = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _decode(self, token_ids: Sequence[int], skip: bool) -> str:
        # What no vocabulary holds has no text; the decoder takes 32 bits.
        ids = [i for i in token_ids if 0 <= i < 1 << 31]
        # The end-of-turn token of some vocabularies is not marked special: decoding would show it.
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        return self.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)

    def _shows(self, messages: Messages) -> bool:
        """Whether the template takes the messages and prints the second placeholder."""
        try:
            return OTHER in self._render(messages)
        except UserError:
            return False

    def _render(
        self, messages: Messages, generation: bool = True, tools: Tools | None = None, calling: bool = False
    ) -> str:
        templates, template = self.tokenizer.chat_template, None
        if calling and isinstance(templates, dict) and "tool_use" in templates:
            # Written for tools alone, it may not do without; which they are matters to a prompt only.
            template, tools = templates["tool_use"], tools or []
        try:
            return self.tokenizer.apply_chat_template(
                self._acceptable(messages, calling),
                tools=None if tools is None else [dict(t) for t in tools],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generation,
                **self._options,
            )
        except Exception as error:  # a template is code that came with a model, and raises what it likes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the chat template refuses roles {', '.join(m['role'] for m in messages)}: {reason}"
            ) from error

    def _acceptable(self, messages: Messages, calling: bool) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for message in messages:
            role = message["role"]
            if (role == "tool" and not (self._keeps_tool or calling)) or (role == "system" and not self._keeps_system):
                role = "user"
            if role == "user" and out and out[-1]["role"] == "user" and not self._keeps_neighbours:
                out[-1]["content"] += "\n\n" + message["content"]
            else:
                out.append({**message, "role": role})
        return out

    def _behind(self, messages: Messages, generation: bool = True, calling: bool = False) -> str:
        """What the template prints behind an answer that ``messages`` follow."""
        _, found, suffix = self._render([*self._around, *messages], generation, calling=calling).partition(ANSWER)
        if not found:
            raise UserError("the chat template drops the assistant's answers: give the model another template")
        return suffix

    @cached_property
    def _heading(self) -> str:
        """What the template prints to open an answer."""
        plain, opened = self._render(self._around[:1], generation=False), self._render(self._around[:1])
        return opened.removeprefix(plain)

    def _special_at(self, ids: Sequence[int]) -> int | None:
        """Index of a special token that only white space precedes."""
        for n, i in enumerate(ids):
            if i in self._specials:
                return n
            if self.tokenizer.decode([i]).strip():
                return None
        return None

    def _first_special(self, text: str) -> int | None:
        ids = self._encode(text)
        at = self._special_at(ids)
        return None if at is None else ids[at]
