"""One live dialogue: the official loop over turns and steps, with the transcript it leaves behind."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from shiq_bench import Codec, Completion, Episode, ToolCall, Transcript, UserError
from shiq_bench.tasks.bfcl.data import Entry
from shiq_bench.tasks.bfcl.decode import gold_calls, gold_text
from shiq_bench.tasks.bfcl.executor import Outcome, Session
from shiq_bench.tasks.bfcl.official import IN_VAIN
from shiq_bench.tasks.bfcl.parse import ERROR, Call, Refusal, is_empty, parse_answer
from shiq_bench.tasks.bfcl.prompts import TEXT, Message, next_turn, opening, tool_messages

Credit = Literal["prefix", "independent"]

#: Tokens that must be left for an answer, or the dialogue ends here.
ROOM = 1

#: Behind the last of these a reasoning model answers, as the official handlers of such models take it.
THOUGHT = "</think>"

#: Characters of a call's result that are kept beside the answers.
KEPT = 1000


class Dialogue(Episode):
    """An entry being played; a single-turn one is over after one answer.

    Attributes:
        session: the simulated services of a multi-turn entry.
        texts: answers by turn, as the model gave them.
        results: what the calls of each turn and step returned, cut to what somebody reads.
        turns: calls for the official checker by turn and step, steps without any left out.
        said: the answer to a single-turn entry as it is judged: ``{"text"}``, or ``{"calls"}`` of a template's own
            format (None where it has none).
        turn_end: position of the last action token of each turn that was answered.
        unfit: tokens of a prompt that leaves no room for an answer; 0 where it does.
        forced: a limit ended the dialogue (steps of a turn, or length).
        answers, unparsable, cut: answers in all; those that hold text but no readable call, which is also how a turn
            is honestly closed; those cut by ``max_tokens``.
        calls, refused, positional: calls in all; those not executed; positional arguments dropped.
        overruns: calls stopped for their time or memory.
    """

    def __init__(
        self, root: Path, entry: Entry, session: Session | None, codec: Codec, tool_format: str, max_length: int
    ) -> None:
        messages, tools = opening(root, entry, tool_format)
        super().__init__(entry.id, Transcript(codec.prompt(messages, tools)))
        self.entry = entry
        self.session = session
        self.turn = 0
        self.texts: list[list[str]] = []
        self.results: list[list[list[str]]] = []
        self.turns: list[list[list[str]]] = []
        self.said: dict[str, Any] = {"text": ""}
        self.turn_end: dict[int, int] = {}
        self.unfit = 0
        self.forced = False
        self.answers = self.unparsable = self.cut = 0
        self.calls = self.refused = self.positional = self.overruns = 0
        self._root = root
        self._codec = codec
        self._format = tool_format
        self._max_length = max_length
        self._names = entry.names
        self._steps = 0
        self._ended = True
        self._pending: list[Call | Refusal] = []
        self._made: list[ToolCall] = []  # by the last answer, in the template's own format
        length = len(self.transcript.token_ids)
        if length + ROOM > max_length:
            self.unfit = length
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
            self.results.append([])
            self.turns.append([])
        self.texts[self.turn].append(text)
        if completion.token_ids:
            self.turn_end[self.turn] = len(self.transcript.token_ids) - 1
        self._ended = completion.finish == "stop"
        self.answers += 1
        self.cut += not self._ended
        spoken = text.rpartition(THOUGHT)[2]
        made = None if self._format in TEXT else self._codec.calls(completion.token_ids, self._format)
        if not self.entry.multi_turn:
            # Decoded where it is judged: three languages have decoders, and a worker can be killed.
            if self._format in TEXT:
                self.said = {"text": spoken}
            else:
                self.said = {"calls": None if made is None else [{call.name: dict(call.arguments)} for call in made]}
            self.done = True
            return []
        self._made = made or []
        if self._format in TEXT:
            calls = parse_answer(spoken, self._names)
        else:
            calls = None if made is None else [self._typed(call) for call in made]
        self.unparsable += calls is None and not is_empty(spoken)
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
        results, names, judged = [], [], []
        executed = iter(outcome.value or [])
        for call in self._pending:
            self.calls += 1
            if isinstance(call, Refusal):
                self.refused += 1
                results.append(call.error)
                names.append("")
                judged.append(IN_VAIN)
                continue
            self.positional += call.dropped
            self.overruns += bool(outcome.failure)
            results.append(f"{ERROR}{outcome.failure}" if outcome.failure else next(executed))
            names.append(call.text if self._format in TEXT else call.name)
            judged.append(IN_VAIN if outcome.failure else call.text)
        self._pending = []
        self.results[self.turn].append([result[:KEPT] for result in results])
        self.turns[self.turn].append(judged)
        self._steps += 1
        # The official loop counts after executing and compares with "more than": one step more than its limit.
        if self._steps > max_steps:
            self._force()
        else:
            self._say(tool_messages(names, results, self._format, tool_chars))

    def gold(self) -> list[int] | None:
        """Ids of what the ground truth would answer now: the calls of this turn in one answer, then nothing.

        None where the template's format cannot say it, such as an argument that spells out one of its markers.
        """
        if not self.entry.multi_turn:
            calls = [ToolCall(name, arguments) for call in gold_calls(self.entry) for name, arguments in call.items()]
            text = gold_text(self.entry)
        else:
            found = [] if self._steps else self.entry.gold_calls(self.turn)
            calls = [ToolCall(call.name, call.arguments) for call in found]
            text = f"[{', '.join(call.text for call in found)}]" if found else ""
        if calls and self._format not in TEXT:
            numbered = [replace(call, id=str(self.calls + n)) for n, call in enumerate(calls)]
            try:
                return self._codec.answer_calls(numbered, self._format)
            except UserError:
                return None
        return self._codec.answer(text)

    def errors(self, outcome: Outcome) -> list[str | None]:
        """Error type of every turn that was to be played: "" where it passes, None where there is no ground truth.

        An entry with more answers than turns counts the turns that exist.
        """
        gold = self.entry.gold[: len(self.entry.turns)]
        reached: list[str | None] = [] if outcome.failure else outcome.value["turns"]
        missing = "unscored" if outcome.failure else "not reached"
        return [
            None if not calls else reached[turn] if turn < len(reached) else missing for turn, calls in enumerate(gold)
        ]

    @property
    def called_in_vain(self) -> bool:
        """Whether calls were made in a turn whose ground truth is to make none, which the official checker forgives."""
        return any(calls and not gold for calls, gold in zip(self.turns, self.entry.gold, strict=False))

    def _typed(self, call: ToolCall) -> Call | Refusal:
        """A template's tool call as one that can be executed: its arguments are JSON, hence literals."""
        if call.name not in self._names:
            return Refusal(f"{ERROR}name '{call.name[:80]}' is not defined")
        if bad := [key for key in call.arguments if not _is_name(key)]:
            return Refusal(f"{ERROR}'{bad[0][:80]}' is no name of an argument")
        return Call(call.name, call.arguments)

    def _next_turn(self) -> None:
        self.turn += 1
        self._steps = 0
        if self.turn == len(self.entry.turns):
            self.done = True
        else:
            self._say(next_turn(self._root, self.entry, self.turn, self._format))

    def _say(self, messages: Sequence[Message]) -> None:
        ids = self._codec.reply(messages, self._ended, None if self._format in TEXT else self._made)
        if len(self.transcript.token_ids) + len(ids) + ROOM > self._max_length:
            self._force()
        else:
            self.transcript.observe(ids)

    def _force(self) -> None:
        self.forced = self.done = self.transcript.truncated = True


def credited(errors: Sequence[str | None], credit: Credit) -> list[float]:
    """Reward of each turn; a turn without ground truth earns nothing and breaks no prefix."""
    rewards, intact = [], True
    for error in errors:
        intact = intact and not error
        rewards.append(float(error == "" and (intact or credit == "independent")))
    return rewards


def _is_name(key: str) -> bool:
    """Whether Python reads a name as it is written: it folds some characters into others."""
    return key.isidentifier() and not keyword.iskeyword(key) and unicodedata.normalize("NFKC", key) == key
