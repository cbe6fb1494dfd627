"""Preference data, whatever their schema, as questions with judged answers; and one question being answered.

Four schemas are recognised, by their columns:

* ``HuggingFaceH4/ultrafeedback_binarized``: ``prompt`` (text), ``chosen`` and ``rejected`` (messages),
  ``score_chosen`` and ``score_rejected`` from 1 to 10;
* ``trl-lib/ultrafeedback_binarized``: the same without ``prompt``, which is what the messages share;
* ``openbmb/UltraFeedback``: ``instruction`` and four ``completions`` with scores (Cui et al. 2023, arXiv 2310.01377);
* plain pairs: ``prompt``, ``chosen`` and ``rejected`` as text; scores beside them or under ``metadata``, if any.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shiq_bench import Codec, Completion, Episode, Trajectory, Transcript, UserError
from shiq_bench.records.hashing import stable_hash
from shiq_bench.tasks.ultrafeedback.files import _hub, _local, _path, is_hub

#: Percent of the questions in each split.
SPLITS: Mapping[str, int] = {"start": 40, "rl": 40, "heldout": 20}

#: Tokens an answer must at least have room for: with less, a prompt fills the budget and is left out.
ROOM = 16

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a question.

    Attributes:
        rank: higher is preferred; comparable with the other answers to the question only.
        score: the dataset's own, divided by the largest there can be: in [0, 1]. None where it has none.
    """

    text: str
    rank: float
    score: float | None


@dataclass(frozen=True, slots=True)
class Question:
    """A dialogue that waits for an answer, and the answers that were judged, best first."""

    id: str
    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Corpus:
    """A dataset: its schema by name, its questions by id, and how many rows were left out, by reason."""

    schema: str
    questions: Mapping[str, Question]
    rows: int
    dropped: Mapping[str, int]

    @property
    def scored(self) -> bool:
        """Whether every answer has a score of the dataset's own."""
        return all(a.score is not None for q in self.questions.values() for a in q.answers)

    @property
    def contradictions(self) -> int:
        """Questions of which a preferred answer has the lower score of two."""
        return sum(
            any(a.rank > b.rank and a.score < b.score for a in q.answers for b in q.answers)  # type: ignore[operator]
            for q in self.questions.values()
            if all(a.score is not None for a in q.answers)
        )

    @property
    def digest(self) -> str:
        """Hash of all that was read and kept."""
        return stable_hash([[q.id, [[a.text, a.rank, a.score] for a in q.answers]] for q in self.questions.values()])

    def split(self, name: str) -> list[str]:
        """Ids of a split, in the order of the data; a question's own hash decides, not what else there is."""
        if name == "all":
            return list(self.questions)
        names = list(SPLITS)
        low = sum(SPLITS[n] for n in names[: names.index(name)])
        return [i for i in self.questions if low <= int(i, 16) % 100 < low + SPLITS[name]]


# --- answering ------------------------------------------------------------------------------------


class Answering(Episode):
    """One question being answered; ``unfit`` is the tokens of a prompt that leaves no room for an answer, else 0."""

    def __init__(self, question: Question, codec: Codec, max_length: int) -> None:
        super().__init__(question.id, Transcript(codec.prompt(question.messages)))
        self.question = question
        self.codec = codec
        self.text = ""
        length = len(self.transcript.token_ids)
        self.left = max_length - length
        self.unfit = length if self.left < ROOM else 0
        self.done = bool(self.unfit)


def dialogue(question: Question, answer: str) -> list[Mapping[str, str]]:
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


# --- reading -------------------------------------------------------------------------------------


def read(name: str, revision: str = "") -> Corpus:
    """The dataset at a path, or of that name on the hub.

    Raises:
        UserError: it cannot be had or read, or is of none of the schemas.
    """
    return parse(_hub(name, revision) if is_hub(name) else _local(_path(name)), name)


# --- schemas -------------------------------------------------------------------------------------

#: Columns of each schema, the most particular first.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "openbmb/UltraFeedback": ("instruction", "completions"),
    "HuggingFaceH4/ultrafeedback_binarized": ("prompt", "chosen", "rejected", "prompt_id"),
    "plain pairs": ("prompt", "chosen", "rejected"),
    "trl-lib/ultrafeedback_binarized": ("chosen", "rejected"),
}
#: Largest score of the binarized schemas, of a completion's aspects, and of its critique.
LARGEST, ASPECT, CRITIQUE = 10.0, 5.0, 10.0


def parse(rows: Iterable[Mapping[str, Any]], name: str) -> Corpus:
    """Questions of a dataset's rows; what cannot teach anything is dropped and counted.

    Dropped: an empty answer (of a pair: the pair), equal answers, a row without text, a question asked before.

    Raises:
        UserError: the columns are those of none of the schemas, or nothing is left.
    """
    schema, count = "", 0
    dropped: Counter[str] = Counter()
    questions: dict[str, Question] = {}
    for row in rows:
        count += 1
        schema = schema or _schema(row, name)
        messages, answers = _judged(row, schema)
        reason = ""
        if not messages or any(not _said(m) for m in messages):
            reason = "no prompt, or prompts that differ"
        elif not any(m["content"].strip() for m in messages):
            reason = "an empty prompt"
        elif not all(map(_sound, (*(m["content"] for m in messages), *(a.text for a in answers)))):
            reason = "text with half a character"
        elif any(a.score is not None and not 0 <= a.score <= 1 for a in answers):
            reason = "a score that is no number from 0 to 10"
        else:
            kept = [a for a in answers if a.text.strip()]
            texts: dict[str, Answer] = {}
            for answer in kept:
                texts.setdefault(answer.text, answer)
            if len(kept) < 2:
                reason = "an empty answer"
            elif len(texts) < 2:
                reason = "equal answers"
            answers = tuple(sorted(texts.values(), key=lambda a: -a.rank))
        identity = stable_hash([dict(m) for m in messages])[:16]
        if not reason and identity in questions:
            reason = "a question asked before"
        if reason:
            dropped[reason] += 1
            continue
        questions[identity] = Question(identity, messages, answers)
    if not questions:
        why = ", ".join(f"{n} with {reason}" for reason, n in dropped.items()) or "it has no rows"
        raise UserError(f"{name} holds no two answers to compare: {why}")
    return Corpus(schema, questions, count, dict(dropped))


def _schema(row: Mapping[str, Any], name: str) -> str:
    for schema, columns in COLUMNS.items():
        if all(column in row for column in columns):
            return schema
    expected = "; ".join(f"{', '.join(columns)} ({schema})" for schema, columns in COLUMNS.items())
    raise UserError(f"{name} is of no known schema: its columns are {', '.join(row)}; expected one of {expected}")


def _judged(row: Mapping[str, Any], schema: str) -> tuple[tuple[Message, ...], tuple[Answer, ...]]:
    """What was said, and the answers; no messages where the row has none that its answers share."""
    if "completions" in COLUMNS[schema]:
        asked = row.get("instruction")
        said = ({"role": "user", "content": asked},) if isinstance(asked, str) else ()
        judged = (_completion(c) for c in row.get("completions") or [] if isinstance(c, dict))
        return said, tuple(answer for answer in judged if answer.score is not None)  # others cannot be ranked
    chosen, rejected = row.get("chosen"), row.get("rejected")
    before = [said[:-1] for said in (chosen, rejected) if isinstance(said, list)]  # a list ends with the answer
    told = [m for m in map(_messages, (row.get("prompt"), *before)) if m]
    if any(m != told[0] for m in told[1:]):
        return (), ()
    texts = [_text(chosen), _text(rejected)]
    scores = [_score(row, "score_chosen"), _score(row, "score_rejected")]
    answers = [Answer(t, float(1 - i), s) for i, (t, s) in enumerate(zip(texts, scores, strict=True))]
    return (told[0] if told else ()), tuple(answers)


def _completion(completion: Mapping[str, Any]) -> Answer:
    """The mean over aspects where it is there: the critique's score is known to lose its decimal point at times."""
    aspects, critique = _finite(completion.get("fine-grained_score")), _finite(completion.get("overall_score"))
    score = aspects / ASPECT if aspects is not None else None if critique is None else critique / CRITIQUE
    if score is not None and not 0 <= score <= 1:
        score = None
    text = completion.get("response")
    return Answer(text if isinstance(text, str) else "", score or 0.0, score)


def _messages(said: Any) -> tuple[Message, ...]:
    """A prompt, as text or as messages."""
    if isinstance(said, str):
        return ({"role": "user", "content": said},)
    messages = [m for m in said if isinstance(m, dict)] if isinstance(said, list) else []
    return tuple({"role": m.get("role", ""), "content": m.get("content", "")} for m in messages)


def _text(said: Any) -> str:
    if isinstance(said, list):
        said = said[-1].get("content") if said and isinstance(said[-1], dict) else None
    return said if isinstance(said, str) else ""


def _score(row: Mapping[str, Any], key: str) -> float | None:
    about = row.get("metadata")
    given = row.get(key, about.get(key) if isinstance(about, dict) else None)
    found = _finite(given)
    return None if given is None else math.nan if found is None else found / LARGEST


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _sound(text: str) -> bool:
    """Whether it can be encoded: a surrogate alone cannot."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _said(message: Message) -> bool:
    return isinstance(message["content"], str) and message["role"] in ("system", "user", "assistant")
