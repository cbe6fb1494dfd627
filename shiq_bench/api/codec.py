"""Messages to token ids and back, as tasks see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shiq_bench.api.trajectory import ToolCall
from shiq_bench.records.errors import UserError


class Codec(Protocol):
    """Messages to token ids and back, through one model's tokenizer and chat template."""

    end_ids: tuple[int, ...]

    @property
    def tool_format(self) -> str:
        """Format in which the chat template writes function calls; "" where it has no tools that can be read."""

    def prompt(
        self, messages: Sequence[Mapping[str, str]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Ids of the messages, up to where the policy begins to answer.

        ``tools`` are descriptions ``{"type": "function", "function": {name, description, parameters}}``.
        """

    def reply(
        self, messages: Sequence[Mapping[str, str]], ended: bool, calls: Sequence[ToolCall] | None = None
    ) -> list[int]:
        """Ids between an answer and the next one; ``ended`` when the policy closed its own turn.

        ``calls`` are those the answer made, as :meth:`calls` read them; the first messages are then
        their results, one a call, in order, with role ``tool``. Empty: it made none, but had tools.
        """

    def answer(self, text: str) -> list[int]:
        """Ids of an answer with its end-of-turn token."""

    def answer_calls(self, calls: Sequence[ToolCall], format: str) -> list[int]:
        """Ids of an answer that makes calls, with its end-of-turn token."""

    def calls(self, token_ids: Sequence[int], format: str) -> list[ToolCall] | None:
        """Calls an answer makes, one or more; None where it makes none, or one that cannot be read."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, special tokens left out."""


class TextCodec:
    """What a codec without a format of its own for tool calls says of them; for others to derive from."""

    tool_format = ""

    def answer_calls(self, calls: Sequence[ToolCall], format: str) -> list[int]:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError("this model has no format of its own for tool calls: write them as text")

    def calls(self, token_ids: Sequence[int], format: str) -> list[ToolCall] | None:
        """None: it makes none."""
        return None
