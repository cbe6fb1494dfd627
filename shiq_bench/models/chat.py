"""Messages to token ids and back, through one tokenizer and its chat template.

What was sampled is never turned into text and tokenised again, so a transcript is what the model
saw. The ids between two answers come from rendering the template around a placeholder answer and
keeping the text behind it; what the template writes for function calls is found out the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from shiq_bench.api.task import Messages, Tools
from shiq_bench.api.trajectory import ToolCall
from shiq_bench.models.template import ANSWER, OTHER, TOOL, TOOLS, Template
from shiq_bench.models.tool_calls import FORMATS, read_calls
from shiq_bench.records.errors import UserError

# What one family demands of the ids of calls, and the others do not mind.
_CALL_ID = re.compile("[A-Za-z0-9]{9}")


class ChatCodec(Template):
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
        tiny: the model behind it is one of our own tiny ones.
    """

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
            tokenizer: of transformers.
            end_ids: further ids that end an answer, such as those of a generation config.
            template_options: variables for the template, such as ``enable_thinking``.

        Raises:
            UserError: the template cannot render a question and an answer, or nothing ends a turn.
        """
        super().__init__(tokenizer, template_options)
        self.tiny = tiny
        # An answer is closed as the template closes the last one of a dialogue. Inside a dialogue
        # it may be closed by another token (one template writes "return" last and "end" before) or
        # by none; a token that opens a turn must not be taken for one that closes it.
        last = self._first_special(self._behind([], generation=False))
        after = self._behind([{"role": "user", "content": OTHER}])
        inside = self._first_special(after)
        closes_users = self._first_special(after.partition(OTHER)[2])
        if inside is not None and inside != last:
            opening = self._encode(self._heading)
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
        probe = [ToolCall(TOOL, {"word": ANSWER})]
        try:
            shows_tools = TOOL in self._render(self._around[:1], tools=TOOLS)
            result = {"role": "tool", "content": OTHER}
            shows_results = OTHER in self.tokenizer.decode(self._behind_calls([result], probe)[1])
            if shows_tools and shows_results:
                return next((f for f in FORMATS if self.calls(self._written(probe, f), f) == probe), "")
        except UserError:  # no tools, no tool role, or none behind a call
            pass
        return ""

    def prompt(self, messages: Messages, tools: Tools | None = None) -> list[int]:
        """Ids of the messages and of the heading behind which an answer begins, one BOS at most.

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

    def reply(self, messages: Messages, ended: bool, calls: Sequence[ToolCall] | None = None) -> list[int]:
        """Ids between an answer and the next one.

        The end-of-turn token comes first unless the policy emitted it (``ended``); here it is
        forced, and no action. Of ``calls``, names and ids count, arguments do not.

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
            ids, *others = (self._written([call], format) for call in plain)
            for other in others:
                ids = [*ids[:-1], *self._encode("; "), *other]
        if self.calls(ids, format) != plain:
            raise UserError(
                f"the chat template cannot write a call of {', '.join(c.name for c in calls)} with these arguments: "
                "a marker of its own is spelt out in them"
            )
        return ids

    def calls(self, token_ids: Sequence[int], format: str) -> list[ToolCall] | None:
        """Calls an answer makes outside its reasoning, in order; None where none, or one that cannot be read.

        Raises:
            UserError: no such format.
        """
        # A heading may open the reasoning that an answer continues.
        return read_calls(self._heading + self._decode(token_ids, skip=False), format)

    def text(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without the token that ended it and without special tokens."""
        return self._decode(token_ids, skip=True)

    # --- function calls: what comes before, instead of and behind them

    def _written(self, calls: Sequence[ToolCall], format: str) -> list[int]:
        """Ids of an answer that makes the calls; empty where the template writes nothing of the format."""
        before, known = _before(calls, format), FORMATS[format]
        prompt = self._render(before, calling=True)
        text = self._render([*before, _calling(calls)], generation=False, calling=True)
        opening = re.compile(known.opening).search(text, text.rfind(OTHER) + len(OTHER))
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
        self, messages: Messages, calls: Sequence[ToolCall], generation: bool = True
    ) -> tuple[int, list[int]]:
        """The token that ends an answer with these calls, and the ids of ``messages`` behind it."""
        asked = [ToolCall(call.name, {"word": ANSWER}, call.id) for call in calls]
        named = [
            {**message, "name": call.name, "tool_call_id": call_id}
            for message, call, call_id in zip(messages, calls, _call_ids(calls), strict=False)
        ]
        before = _before(calls, self.tool_format if calls[0].id else "")
        text = self._render([*before, _calling(asked), *named, *messages[len(calls) :]], generation, calling=True)
        _, found, suffix = text.rpartition(ANSWER)
        if not found:
            raise UserError("the chat template drops the assistant's tool calls: give the model another template")
        ids = self._encode(suffix)
        end, _, start = self._turn_end(ids)
        return end, ids[start:]

    def _after_calls(self, messages: Messages, calls: Sequence[ToolCall]) -> tuple[int, list[int]]:
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
    question = {"role": "user", "content": OTHER}
    first = calls[0].id
    earlier = int(first) if format == "cohere" and re.fullmatch("[1-9][0-9]{0,2}", first) else 0
    if not earlier:
        return [question]
    made = [ToolCall(TOOL, {}, f"past{n:05}") for n in range(earlier)]
    return [question, _calling(made), {"role": "tool", "content": OTHER, "name": TOOL, "tool_call_id": "past00000"}]
