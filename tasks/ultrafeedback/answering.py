"""One question being answered, and what its answer is paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shiq_bench import Codec, Completion, Episode, Trajectory, Transcript
from shiq_bench.tasks.ultrafeedback import data

#: Tokens an answer must at least have room for: with less, a prompt fills the budget and is left out.
ROOM = 16


class Answering(Episode):
    """One question being answered.

    Attributes:
        question: with the answers that the dataset holds.
        text: the policy's answer.
        unfit: tokens of a prompt that leaves no room for an answer; else 0.
    """

    def __init__(self, question: data.Question, codec: Codec, max_length: int) -> None:
        super().__init__(question.id, Transcript(codec.prompt(question.messages)))
        self.question = question
        self.codec = codec
        self.text = ""
        length = len(self.transcript.token_ids)
        self.left = max_length - length
        self.unfit = length if self.left < ROOM else 0
        self.done = bool(self.unfit)


def dialogue(question: data.Question, answer: str) -> list[Mapping[str, str]]:
    """The question's messages and an answer to it."""
    return [*question.messages, {"role": "assistant", "content": answer}]


def cut(ids: Sequence[int], limit: int) -> Completion:
    """An answer as it would have been sampled under a limit: whole with its end of turn, or cut without."""
    kept = tuple(ids[:limit])
    return Completion(kept, (0.0,) * len(kept), "stop" if len(kept) == len(ids) else "length")


def paid_trajectory(episode: Answering, reward: float, source: str) -> Trajectory:
    """An answered question, its reward at the last token."""
    transcript = episode.transcript
    # Who said nothing at all has no token to be paid at.
    paid = {transcript.last_action: reward} if transcript.last_action >= 0 else {}
    return transcript.trajectory(episode.prompt_id, paid, source)


def beats(mine: float, theirs: float) -> float:
    """1, 0, or one half where they are equal."""
    return 0.5 if mine == theirs else float(mine > theirs)
