"""One live dialogue: the official loop over turns and steps, with the transcript it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

from shiq_bench.api import Codec, Episode
from shiq_bench.records import Completion, Transcript
from tasks.bfcl.data import Entry
from tasks.bfcl.executor import Outcome, Session
from tasks.bfcl.official import IN_VAIN
from tasks.bfcl.parse import ERROR, Call, Refusal, is_empty, parse_answer
from tasks.bfcl.prompts import Message, Style, tool_messages

#: Tokens that must be left for an answer, or the dialogue ends here.
ROOM = 1


class Dialogue(Episode):
    """A scenario being played.

    Attributes:
        turn: index of the current turn.
        texts: answers by turn, as the model gave them.
        turns: calls for the official checker by turn and step, steps without any left out.
        turn_end: position of the last action token of each turn that was answered.
        forced: a limit ended the dialogue (steps of a turn, or length).
        answers, unparsable, cut: answers in all; those that hold text but no calls; those cut by ``max_tokens``.
        calls, refused, positional: calls in all; those not executed; positional arguments dropped.
        overruns: calls stopped for their time or memory.
    """

    def __init__(
        self, entry: Entry, session: Session, codec: Codec, messages: Sequence[Message], style: Style, max_length: int
    ) -> None:
        super().__init__(entry.id, Transcript(codec.prompt(messages)))
        self.entry = entry
        self.session = session
        self.turn = 0
        self.texts: list[list[str]] = []
        self.turns: list[list[list[str]]] = []
        self.turn_end: dict[int, int] = {}
        self.forced = False
        self.answers = self.unparsable = self.cut = 0
        self.calls = self.refused = self.positional = self.overruns = 0
        self._codec = codec
        self._style = style
        self._max_length = max_length
        self._steps = 0
        self._ended = True
        self._pending: list[Call | Refusal] = []
        if len(self.transcript.token_ids) + ROOM > max_length:
            self._force()

    def answer(self, completion: Completion) -> list[str]:
        """Take the policy's answer.

        Returns:
            The calls to execute, to be followed by :meth:`observe` whenever the answer made any call; see
            :attr:`waiting`. An answer without calls has ended the turn.
        """
        self.transcript.act(completion)
        text = self._codec.text(completion.token_ids)
        if len(self.texts) == self.turn:
            self.texts.append([])
            self.turns.append([])
        self.texts[self.turn].append(text)
        if completion.token_ids:
            self.turn_end[self.turn] = len(self.transcript.token_ids) - 1
        self._ended = completion.finish == "stop"
        calls = parse_answer(text, self.entry.names)
        self.answers += 1
        self.cut += not self._ended
        self.unparsable += calls is None and not is_empty(text)
        self._pending = calls or []
        if not self._pending:
            self._next_turn()
        return [call.text for call in self._pending if isinstance(call, Call)]

    @property
    def waiting(self) -> bool:
        """Calls were made and their results not yet observed."""
        return bool(self._pending)

    def observe(self, outcome: Outcome, max_steps: int, tool_chars: int) -> None:
        """Take the results of the calls just returned (an empty outcome where none had to be executed)."""
        results, texts, judged = [], [], []
        executed = iter(outcome.value or [])
        for call in self._pending:
            self.calls += 1
            if isinstance(call, Refusal):
                self.refused += 1
                results.append(call.error)
                texts.append("")
                judged += [IN_VAIN] * call.unknown
                continue
            self.positional += call.dropped
            self.overruns += bool(outcome.failure)
            results.append(f"{ERROR}{outcome.failure}" if outcome.failure else next(executed))
            texts.append(call.text)
            judged.append(IN_VAIN if outcome.failure else call.text)
        self._pending = []
        if judged:
            self.turns[self.turn].append(judged)
        self._steps += 1
        # The official loop counts after executing and compares with "more than": one step more than its limit.
        if self._steps > max_steps:
            self._force()
        else:
            self._say(tool_messages(texts, results, self._style, tool_chars))

    def gold(self) -> str:
        """What the ground truth would answer now: the calls of this turn in one answer, then nothing."""
        calls = [] if self._steps else self.entry.gold_calls(self.turn)
        return f"[{', '.join(call.text for call in calls)}]" if calls else ""

    def _next_turn(self) -> None:
        self.turn += 1
        self._steps = 0
        if self.turn == len(self.entry.turns):
            self.done = True
        else:
            self._say(self.entry.turns[self.turn])

    def _say(self, messages: Sequence[Message]) -> None:
        ids = self._codec.reply(messages, self._ended)
        if len(self.transcript.token_ids) + len(ids) + ROOM > self._max_length:
            self._force()
        else:
            self.transcript.observe(ids)

    def _force(self) -> None:
        self.forced = self.done = self.transcript.truncated = True
