"""Messages to token ids and back, through one tokenizer and its chat template.

A dialogue is a stream of ids: a prompt, an answer exactly as it was sampled, the ids between that
answer and the next one, and so on. What was sampled is never turned into text and tokenised
again, so a transcript is what the model saw. The ids between two answers come from rendering the
template around a placeholder answer and keeping the text behind it. Function calls work the same
way: what the template writes for them is found out by rendering placeholders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from shiq_bench.api.trajectory import ToolCall
from shiq_bench.models.tool_calls import FORMATS, read_calls
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
_ANSWER = "AnswerPlaceholder7f3c"
_OTHER = "OtherPlaceholder9b1e"
_TOOL = "ToolPlaceholder5d2a"

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "Looks up a word.",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string", "description": "the word"}},
                "required": ["word"],
            },
        },
    }
]

# What one family demands of the ids of calls, and the others do not mind.
_CALL_ID = re.compile("[A-Za-z0-9]{9}")

# Some templates print today's date. Prompts, and with them every cache and run, would change overnight.
_TODAY = datetime(2024, 7, 26)


class ChatCodec:
    """The codec of any tokenizer with a chat template (and of one without: :data:`PLAIN_TEMPLATE`).

    Roles are ``system``, ``user``, ``assistant`` and ``tool``. A template that refuses tool or
    system messages, or silently drops them, gets them as user messages; one that refuses two user
    messages in a row gets them joined by an empty line.

    Content is rendered as the template would render it: a special token spelt out in a message
    becomes that token.

    Function calls are those of the template: :attr:`tool_format` says in which format it writes
    them. A tokenizer with several templates speaks its ``tool_use`` one where tools or calls are
    given. A template that describes the tools ahead of the last question keeps them, here, ahead of
    the first: a stream only grows.

    Attributes:
        end_ids: ids that end an answer; the first is the one :meth:`answer` appends.
        plain_template: the tokenizer had no template and was given the plain one.
        tiny: the model behind it is one of our own tiny ones.
    """

    end_ids: tuple[int, ...]

    def __init__(
        self,
        tokenizer: Any,
        *,
        tiny: bool = False,
        end_ids: Iterable[int] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Learn from a few renderings what the template accepts and how it ends a turn.

        Args:
            tokenizer: a transformers tokenizer; one without a template is given the plain one.
            tiny: see the attribute.
            end_ids: further ids that end an answer, such as those of a generation config.
            template_options: variables for the template, such as ``enable_thinking``.

        Raises:
            UserError: the template cannot render a question and an answer, or nothing ends a turn.
        """
        self.tokenizer = tokenizer
        self.tiny = tiny
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

        question: dict[str, Any] = {"role": "user", "content": "hello"}
        answer: dict[str, Any] = {"role": "assistant", "content": _ANSWER}
        self._around = [question, answer]
        self._keeps_tool = self._shows([question, answer, {"role": "tool", "content": _OTHER}])
        self._keeps_system = self._shows([{"role": "system", "content": _OTHER}, question])
        self._keeps_neighbours = self._shows([question, {"role": "user", "content": _OTHER}])

        # An answer is closed as the template closes the last one of a dialogue. Inside a dialogue
        # it may be closed by another token (one template writes "return" last and "end" before) or
        # by none; a token that opens a turn must not be taken for one that closes it.
        self._specials = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        last = self._first_special(self._behind([], generation=False))
        after = self._behind([{"role": "user", "content": _OTHER}])
        inside = self._first_special(after)
        closes_users = self._first_special(after.partition(_OTHER)[2])
        if inside is not None and inside != last:
            opening = self._encode(self._generation_prompt())
            if last is None or inside in opening or inside != closes_users:
                inside = None
        self._inside = inside
        end = last if last is not None else tokenizer.eos_token_id
        if end is None:
            raise UserError(
                "nothing ends an answer: the chat template shows no end-of-turn token and eos_token is not set"
            )
        self.end_ids = tuple(dict.fromkeys(i for i in (end, tokenizer.eos_token_id, *end_ids) if i is not None))

    # --- the calls of a codec

    @cached_property
    def tool_format(self) -> str:
        """Which of :data:`shiq_bench.models.tool_calls.FORMATS` the template writes calls in.

        It is "" where the template shows no tools, no calls or no results, or writes calls in
        another format: found out by rendering one of each and reading the call back.
        """
        probe = [ToolCall(_TOOL, {"word": _ANSWER})]
        try:
            shows_tools = _TOOL in self._render(self._around[:1], tools=_TOOLS)
            shows_results = _OTHER in self.tokenizer.decode(self._behind_calls(_results([_OTHER]), probe)[1])
            if shows_tools and shows_results:
                return next((f for f in FORMATS if self.calls(self._written(probe, f), f) == probe), "")
        except UserError:  # no tools, no tool role, or none behind a call
            pass
        return ""

    def prompt(
        self, messages: Sequence[Mapping[str, str]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Ids of the messages and of the heading behind which an answer begins, one BOS at most.

        Args:
            messages: what is said so far.
            tools: ``{"type": "function", "function": {"name", "description", "parameters"}}`` each,
                the parameters as a JSON schema.

        Raises:
            UserError: the template refuses the messages, or has no tools that could be called.
        """
        if tools is not None and not self.tool_format:
            raise UserError(
                "the chat template describes no tools, or writes calls in no format known here: "
                f"expected one of {', '.join(FORMATS)}; describe the tools in a message"
            )
        ids = self._encode(self._render(messages, tools=tools))
        bos = self.tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def reply(
        self, messages: Sequence[Mapping[str, str]], ended: bool, calls: Sequence[ToolCall] | None = None
    ) -> list[int]:
        """Ids between an answer and the next one.

        The end-of-turn token comes first unless the policy emitted it (``ended``); here it is
        forced, and no action.

        Args:
            messages: results of the calls, one each and in their order, then anything else.
            ended: whether the policy closed its turn.
            calls: what the answer called, as it was read: names and ids count, arguments do not. An
                empty sequence says that it called nothing though it had tools.

        Raises:
            UserError: the template refuses the messages.
            ValueError: not one tool message a call.
        """
        if calls:
            forced, ids = self._after_calls(messages, calls)
        else:
            ids = self._encode(self._behind(messages, calling=calls is not None))
            at = self._special_at(ids)
            if at is not None and ids[at] == self._inside:
                ids = ids[at + 1 :]
            forced = self.end_ids[0] if self._inside is None else self._inside
        return ids if ended else [forced, *ids]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer and its end-of-turn token."""
        return [*self._encode(text), self.end_ids[0]]

    def answer_calls(self, calls: Sequence[ToolCall], format: str) -> list[int]:
        """Ids of an answer that makes calls, as the template writes it, and its end-of-turn token.

        A template that numbers calls through a dialogue starts at the first call's id (a number;
        else 0). Several calls of a template that takes one a message stand behind semicolons, as
        the models of that family write them.

        Raises:
            UserError: it is not the template's format, or cannot hold these calls: what it writes
                must read back as the same calls.
            ValueError: no calls.
        """
        if not calls:
            raise ValueError("an answer that makes calls makes one at least")
        if format != self.tool_format:
            writes = f"writes calls in {self.tool_format} format" if self.tool_format else "writes no calls"
            raise UserError(f"the chat template {writes}; asked for {format!r}")
        try:
            plain = [ToolCall(c.name, json.loads(json.dumps(dict(c.arguments), allow_nan=False)), c.id) for c in calls]
        except (TypeError, ValueError) as error:
            raise UserError(f"arguments of a tool call are no JSON: {error}") from error
        try:
            ids = self._written(plain, format)
        except UserError:
            if len(plain) == 1 or FORMATS[format].fields:
                raise
            one, *others = (self._written([call], format) for call in plain)
            ids = one
            for other in others:
                ids = [*ids[:-1], *self._encode("; "), *other]
        if self.calls(ids, format) != plain:
            raise UserError(
                f"the chat template cannot write a call of {', '.join(c.name for c in calls)} with these arguments: "
                "a marker of its own is spelt out in them"
            )
        return ids

    def calls(self, token_ids: Sequence[int], format: str) -> list[ToolCall] | None:
        """Calls an answer makes, in order.

        What stands inside a model's reasoning is no call.

        Returns:
            One call or more; None where there is none, or one that cannot be read (:meth:`text` says
            whether there was anything).

        Raises:
            UserError: no such format.
        """
        # A heading may open the reasoning that an answer continues.
        return read_calls(self._heading + self._decode(token_ids, skip=False), format)

    def text(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without the token that ended it and without special tokens."""
        return self._decode(token_ids, skip=True)

    # --- rendering

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _decode(self, token_ids: Sequence[int], skip: bool) -> str:
        # What no vocabulary holds has no text; the decoder takes 32 bits.
        ids = [i for i in token_ids if 0 <= i < 1 << 31]
        # The end-of-turn token of some vocabularies is not marked special: decoding would show it.
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        text: str = self.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        return text

    def _apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        generation: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        calling: bool = False,
    ) -> str:
        templates, template = self.tokenizer.chat_template, None
        if calling and isinstance(templates, dict) and "tool_use" in templates:
            # Written for tools alone, it may not do without; which they are matters to a prompt only.
            template, tools = templates["tool_use"], tools or []
        text: str = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            tools=None if tools is None else [dict(t) for t in tools],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=generation,
            **self._options,
        )
        return text

    def _shows(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template takes the messages and prints the second placeholder."""
        try:
            return _OTHER in self._apply(messages, generation=True)
        except Exception:  # a template is code that came with a model, and raises what it likes
            return False

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        generation: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        calling: bool = False,
    ) -> str:
        try:
            return self._apply(self._acceptable(messages, calling), generation, tools, calling)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the chat template refuses roles {', '.join(m['role'] for m in messages)}: {reason}"
            ) from error

    def _acceptable(self, messages: Sequence[Mapping[str, Any]], calling: bool) -> list[dict[str, Any]]:
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

    def _behind(self, messages: Sequence[Mapping[str, str]], generation: bool = True, calling: bool = False) -> str:
        """What the template prints behind an answer that ``messages`` follow."""
        _, found, suffix = self._render([*self._around, *messages], generation, calling=calling).partition(_ANSWER)
        if not found:
            raise UserError("the chat template drops the assistant's answers: give the model another template")
        return suffix

    # --- function calls: what comes before, instead of and behind them

    def _written(self, calls: Sequence[ToolCall], format: str) -> list[int]:
        """Ids of an answer that makes the calls; empty where the template writes nothing of the format."""
        before, known = _before(calls, format), FORMATS[format]
        prompt = self._render(before, calling=True)
        text = self._render([*before, _calling(calls)], generation=False, calling=True)
        opening = re.compile(known.opening).search(text, text.rfind(_OTHER) + len(_OTHER))
        # Braces alone are a format only if nothing else introduces them.
        if not opening or (not known.fields and text[: opening.start()] != prompt):
            return []
        # Reasoning is left out, unless the heading has begun it: then it is closed, as the template does if it does.
        lead = ""
        thought = known.fields.get("reasoning")
        if thought and self._heading.rfind(thought["open"]) > self._heading.rfind(thought["close"]):
            lead = text[len(prompt) : opening.start()] if text.startswith(prompt) else thought["close"]
        ids = self._encode(lead + text[opening.start() :])
        end, stop, _ = self._turn_end(ids)
        return [*ids[:stop], end]

    def _behind_calls(
        self, messages: Sequence[Mapping[str, str]], calls: Sequence[ToolCall], generation: bool = True
    ) -> tuple[int, list[int]]:
        """The token that ends an answer with these calls, and the ids of ``messages`` behind it."""
        asked = [ToolCall(call.name, {"word": _ANSWER}, call.id) for call in calls]
        named = [
            {**message, "name": call.name, "tool_call_id": call_id}
            for message, call, call_id in zip(messages, calls, _call_ids(calls), strict=False)
        ]
        before = _before(calls, self.tool_format if calls[0].id else "")
        text = self._render([*before, _calling(asked), *named, *messages[len(calls) :]], generation, calling=True)
        _, found, suffix = text.rpartition(_ANSWER)
        if not found:
            raise UserError("the chat template drops the assistant's tool calls: give the model another template")
        ids = self._encode(suffix)
        end, _, start = self._turn_end(ids)
        return end, ids[start:]

    def _after_calls(self, messages: Sequence[Mapping[str, str]], calls: Sequence[ToolCall]) -> tuple[int, list[int]]:
        results = next((n for n, m in enumerate(messages) if m["role"] != "tool"), len(messages))
        if results != len(calls):
            raise ValueError(f"{len(calls)} tool calls are followed by {results} results")
        try:
            return self._behind_calls(messages, calls)
        except UserError:
            rest = messages[results:]
            if results == 1 and not rest:
                raise
        # Refused together (several calls in a message, a question straight after a result), they come one by one.
        ids: list[int] = []
        for n, call in enumerate(calls):
            last = n + 1 == results and not rest
            end, more = self._behind_calls([messages[n]], [call], generation=last)
            ids += more
        return end, ids + (self.reply(rest, ended=True, calls=[]) if rest else [])

    def _turn_end(self, ids: Sequence[int]) -> tuple[int, int, int]:
        """The token that ends the turn ``ids`` begin in, where that turn stops and where the next starts."""
        opening = self._specials.intersection(self._encode(self._heading))
        for n, i in enumerate(ids):
            if i in self.end_ids or i == self._inside:
                return i, n, n + 1
            if i in opening:  # nothing ends it
                return self.end_ids[0], n, n
        return self.end_ids[0], len(ids), len(ids)

    @cached_property
    def _heading(self) -> str:
        return self._generation_prompt()

    def _generation_prompt(self) -> str:
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


def _results(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": "tool", "content": text} for text in texts]


def _call_ids(calls: Sequence[ToolCall]) -> list[str]:
    """Ids the template can refer to: the answer's own where they will do."""
    return [call.id if _CALL_ID.fullmatch(call.id) else f"call{n:05}" for n, call in enumerate(calls)]


def _calling(calls: Sequence[ToolCall]) -> dict[str, Any]:
    """An assistant message that makes calls."""
    made = [
        {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call, call_id in zip(calls, _call_ids(calls), strict=True)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def _before(calls: Sequence[ToolCall], format: str) -> list[dict[str, Any]]:
    """A question, and as many calls as came before where the format numbers them through a dialogue."""
    question = {"role": "user", "content": _OTHER}
    first = calls[0].id
    earlier = int(first) if format == "cohere" and re.fullmatch("[1-9][0-9]{0,2}", first) else 0
    if not earlier:
        return [question]
    made = [ToolCall(_TOOL, {}, f"past{n:05}") for n in range(earlier)]
    return [question, _calling(made), {"role": "tool", "content": _OTHER, "name": _TOOL, "tool_call_id": "past00000"}]
