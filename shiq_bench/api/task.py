"""One task: prompts, episodes, scoring, and the exact optimum where there is one; and the codec it talks through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.trajectory import Completion, Preference, Score, ToolCall, Trajectory, Transcript
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import Metric
from shiq_bench.records.spec import RunSpec

if TYPE_CHECKING:
    from shiq_bench.tabular.world import World


#: Metric -> {mean, n, stderr}.
Measured = Mapping[str, Mapping[str, float | None]]

#: Scored episodes, as in ``Evaluation.examples``.
Examples = Sequence[Mapping[str, Any]]

#: What is said in a dialogue, ``{"role": ..., "content": ...}`` each.
Messages = Sequence[Mapping[str, Any]]

#: ``{"type": "function", "function": {"name", "description", "parameters"}}`` each, the parameters as a JSON schema.
Tools = Sequence[Mapping[str, Any]]


class Codec(Protocol):
    """Messages to token ids and back, through one model's tokenizer and chat template."""

    end_ids: tuple[int, ...]

    @property
    @abstractmethod
    def tool_format(self) -> str:
        """Format in which the chat template writes function calls; "" where it has no tools that can be read."""

    @abstractmethod
    def prompt(self, messages: Messages, tools: Tools | None = None) -> list[int]:
        """Ids of the messages, up to where the policy begins to answer."""

    @abstractmethod
    def reply(self, messages: Messages, ended: bool, calls: Sequence[ToolCall] | None = None) -> list[int]:
        """Ids between an answer and the next one; ``ended`` when the policy closed its own turn.

        ``calls`` are those the answer made, as :meth:`calls` read them; the first messages are then
        their results, one a call, in order, with role ``tool``. Empty: it made none, but had tools.
        """

    @abstractmethod
    def answer(self, text: str) -> list[int]:
        """Ids of an answer with its end-of-turn token."""

    @abstractmethod
    def answer_calls(self, calls: Sequence[ToolCall], format: str) -> list[int]:
        """Ids of an answer that makes calls, with its end-of-turn token."""

    @abstractmethod
    def calls(self, token_ids: Sequence[int], format: str) -> list[ToolCall] | None:
        """Calls an answer makes, one or more; None where it makes none, or one that cannot be read."""

    @abstractmethod
    def text(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, special tokens left out."""


class TextCodec(Codec):
    """A codec without a format of its own for tool calls, and without turns; for others to derive from."""

    tool_format = ""

    def reply(self, messages: Messages, ended: bool, calls: Sequence[ToolCall] | None = None) -> list[int]:
        """The messages alone."""
        return self.prompt(messages)

    def answer_calls(self, calls: Sequence[ToolCall], format: str) -> list[int]:
        """Refused.

        Raises:
            UserError: always.
        """
        raise UserError("this model has no format of its own for tool calls: write them as text")

    def calls(self, token_ids: Sequence[int], format: str) -> list[ToolCall] | None:
        """None: it makes none."""
        return None


class Episode:
    """One live dialogue: a transcript, and whether it is over. Tasks derive their own.

    ``max_new_tokens`` caps the next answer, in tokens, where the task itself limits it.
    """

    def __init__(self, prompt_id: str, transcript: Transcript, max_new_tokens: int | None = None) -> None:
        self.prompt_id = prompt_id
        self.transcript = transcript
        self.max_new_tokens = max_new_tokens
        self.done = False


@dataclass(frozen=True)
class TinyModel:
    """The embedded default of a task: a Llama small enough to be trained on the spot.

    ``words`` fixes the vocabulary (one token a word); otherwise a byte-level BPE of ``vocabulary``
    tokens is trained on the task's demonstrations, of at most ``max_length`` tokens. With ``steps``
    0 the weights stay random, with ``logit_scale`` as the standard deviation of the logits.
    """

    vocabulary: int = 2048
    words: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    width: int = 256
    layers: int = 4
    heads: int = 4
    steps: int = 500
    batch: int = 8
    learning_rate: float = 2e-3
    context_weight: float = 0.1
    logit_scale: float = 1.0
    max_length: int = 4096


@dataclass(frozen=True)
class Scores:
    """What became of a file of answers (:meth:`Task.score_lines`).

    Attributes:
        results: one JSON object for every good line, in order.
        problems: what is wrong with each bad line, behind its number.
        table: headings, then rows to print.
        groups: index of the first row that sums others up.
        notes: lines to print below.
    """

    results: Sequence[Mapping[str, Any]]
    problems: Sequence[str]
    table: Sequence[Sequence[str]]
    groups: int
    notes: Sequence[str] = ()


class Task(ABC):
    """One task: prompts, episodes, scoring, and the exact optimum where there is one.

    A frozen dataclass of options. Splits are ``start`` (fits a starting policy), ``rl`` (trained
    on) and ``heldout``: the same for every algorithm and seed, and disjoint, unless the task is one of few prompts that
    are all of it, as a table is.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: Licence and source of the task's data, the licence's SPDX identifier first: ``MIT, from ...``.
    licence: ClassVar[str] = ""

    @property
    def largest_return(self) -> float:
        """What the return of an episode cannot exceed; methods that want returns in [0, 1] divide by it."""
        return 1.0

    def defaults_for(self, model: str | None) -> Mapping[str, Any]:
        """Settings this task starts from, given the model asked for (None: not said).

        A key ``algorithm.x`` applies to algorithms that have a field ``x``, unless the field's
        metadata say ``advised: False``.
        """
        return self.defaults

    def world(self, seed: int) -> World | None:
        """The task as tables, where it is one: instance number ``seed``. Else None."""
        return None

    @abstractmethod
    def prompts(self, split: str) -> list[str]:
        """Ids of the prompts of a split, in a fixed order."""

    @abstractmethod
    def episodes(self, prompt_ids: Sequence[str], codec: Codec, max_length: int) -> list[Episode]:
        """Fresh dialogues, one for every id given (an id may repeat)."""

    @abstractmethod
    def step(self, episodes: Sequence[Episode], completions: Sequence[Completion]) -> None:
        """Feed one answer to each live episode: execute, observe, perhaps end.

        Where an answer was cut (``completion.finish == "length"``) and that ends the episode, the task says so by
        ``episode.transcript.truncated = True``, which tables count.
        """

    @abstractmethod
    def finish(self, episodes: Sequence[Episode], source: str) -> list[tuple[Trajectory, Score]]:
        """Score ended episodes."""

    def demonstration(self, episode: Episode) -> str | Sequence[int] | None:
        """What the task's own ground truth would answer now, as text or as ids; None where there is none."""
        return None

    def resolved_options(self, codec: Codec, spec: RunSpec) -> Mapping[str, Any]:
        """What options left open and the model decides, for the record; counts of data that were left out.

        Raises:
            UserError: the options do not go with the model.
        """
        return {}

    def prepare(self, report: Callable[[str, int, int], None]) -> None:  # noqa: B027 (most tasks need nothing)
        """Do what takes long before the first episode is scored; ``report(what, done, total)`` is told of it."""

    def fingerprint(self) -> str:
        """Hash of what decides scores beside code and options, such as a reward model's weights; "" for nothing."""
        return ""

    def validate_run(self, spec: RunSpec, algorithm: Algorithm, fresh: bool) -> Sequence[str]:
        """What a reader must know of how this task serves this run, checked before anything is loaded.

        Args:
            fresh: every update learns from the current policy's own samples.

        Raises:
            UserError: it cannot, with what to type instead.
        """
        return ()

    def aggregate(self, metrics: Measured, examples: Examples, reference: Examples = ()) -> Measured:
        """Further metrics of an evaluation.

        Args:
            metrics: its means.
            examples: its episodes.
            reference: the reference's episodes on the same prompts; none where it is itself evaluated.
        """
        return {}

    def trajectories(self, split: str, codec: Codec, spec: RunSpec) -> list[Trajectory]:
        """Data the task supplies ready-made, beside what is sampled, within the run's limits of length."""
        return []

    def preferences(self, split: str) -> list[Preference]:
        """Pairs of answers that somebody has judged, where the task has them: what reward models are fitted to."""
        return []

    def tiny(self) -> TinyModel | None:
        """How to build the embedded default model, or None."""
        return None

    def notes(self) -> list[str]:
        """Facts about the task that a reader of its tables should know."""
        return []

    def details(self) -> Mapping[str, Sequence[str]]:
        """All that is known of the task, in lines by title, for whoever asks for it."""
        return {"notes": self.notes()}

    def score_lines(self, lines: Iterable[str], report: Callable[[str, int, int], None] | None = None) -> Scores:
        """Judge the answers in a file, line by line, whoever gave them.

        Raises:
            UserError: the task cannot do that.
        """
        raise UserError(f"task {type(self).__module__.rpartition('.')[2]} cannot score a file")

    def close(self) -> None:  # noqa: B027 (most tasks hold nothing)
        """Free worker processes."""
