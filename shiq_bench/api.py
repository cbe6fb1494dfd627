"""The two things a user adds, an :class:`Algorithm` and a :class:`Task`, and the registry of both.

Importing this module imports neither torch nor any algorithm or task.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from shiq_bench.records import (
    Completion,
    Preference,
    RunSpec,
    Score,
    ToolCall,
    Trajectory,
    Transcript,
    UserError,
    stable_hash,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from shiq_bench.batch import Batch, Dense, LossOutput, Stats
    from shiq_bench.exact import Exact
    from shiq_bench.world import World


# --- needs: what an algorithm asks of the engine -------------------------------------------------


@dataclass(frozen=True)
class Need:
    """Base of everything an algorithm may declare; the engine supplies exactly what is declared."""


N = TypeVar("N", bound=Need)


@dataclass(frozen=True)
class Reference(Need):
    """Token statistics of the starting policy, as ``stats.reference``.

    With ``refresh`` N the reference becomes a copy of the policy after every N updates; 0 is never.
    """

    refresh: int = 0


@dataclass(frozen=True)
class Rewards(Need):
    """Rewards with a scale: ``center_rewards`` applies, and a task must be able to score.

    ``unit`` asks for returns in [0, 1]: the engine divides by the task's ``largest_return`` and
    refuses what still lies outside.
    """

    unit: bool = False


@dataclass(frozen=True)
class Pairs(Need):
    """Preference pairs inside each prompt group, as ``batch.pairs`` and ``batch.pair_weight``.

    ``ties`` says whether pairs of equal return are dropped (and counted) or kept.
    """

    ties: Literal["drop", "keep"] = "drop"


@dataclass(frozen=True)
class Labels(Need):
    """Whether each trajectory is desirable, judged against its prompt's mean return, as ``batch.label``."""


@dataclass(frozen=True)
class Mismatched(Need):
    """Policy and reference on each prompt with another prompt's answer, as ``stats.mismatched``."""


@dataclass(frozen=True)
class Support(Need):
    """The loss only finds its fixed point where the data cover what the reference may do; a gap is warned of."""


@dataclass(frozen=True)
class ValueHead(Need):
    """A learned V(s_t), zero at the start, as ``stats.value``."""


@dataclass(frozen=True)
class QHeads(Need):
    """Learned Q(s_t, .) over the vocabulary, independently initialised, as ``stats.q``."""

    count: int = 2


@dataclass(frozen=True)
class TargetNetwork(Need):
    """A Polyak average of everything trained, ``tau`` of the new at every update, as ``stats.target``."""

    tau: float = 0.005


@dataclass(frozen=True)
class BehaviourModel(Need):
    """A model of the data fitted beforehand by maximum likelihood, frozen, as ``stats.behaviour``.

    ``start`` makes it the starting point of the policy as well.
    """

    start: bool = False


@dataclass(frozen=True)
class SumLogits(Need):
    """Sum of the policy's logits over the vocabulary, as ``stats.sum_logits``."""


@dataclass(frozen=True)
class MaxRatio(Need):
    """max_a pi_target(a|s_t) / pi_behaviour(a|s_t) over actions whose behaviour is at least ``floor``,
    as ``stats.max_ratio``; needs a target network and a behaviour model."""

    floor: float = 0.01


@dataclass(frozen=True)
class OnPolicy(Need):
    """Fresh samples of the current policy at every update, ``samples`` a prompt."""

    samples: int = 8


class Algorithm(ABC):
    """One method: a frozen dataclass of hyperparameters, declared needs, and a pure ``loss``.

    Class attributes:
        logp_reduction: how a completion's log-probability is made from its tokens'.
        couples_groups: True where the loss holds an estimate over the whole batch, so that prompt
            groups do not add up.
        deviations: where the method departs from its paper; every record says so.
    """

    logp_reduction: ClassVar[Literal["sum", "mean"]] = "sum"
    couples_groups: ClassVar[bool] = False
    deviations: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the engine must supply; most methods override it with a plain class attribute."""
        return ()

    @abstractmethod
    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        """Tensors in, tensors out: no optimiser, no logger, no I/O, no data-dependent shapes."""

    def count(self, batch: Batch) -> Tensor:
        """What ``loss(...).total`` is a sum over, as a 0-dim tensor; by default trajectory weights."""
        return batch.weight.sum()

    def act(self, dense: Dense) -> Tensor:
        """Logits of the policy that is sampled and judged, from those that were trained. ``[..., V]``"""
        return dense.logits

    def fixed_point(self, exact: Exact) -> np.ndarray | None:
        """Log-probabilities of the policy (as it acts) that training converges to. ``[S, A]``

        The contract tests hold the method to it on worlds small enough to be solved. None says
        that there is no finite one, or that none is known.
        """
        return None

    @property
    def reweights(self) -> bool:
        """Whether it acts otherwise than by softmax of its logits."""
        return type(self).act is not Algorithm.act

    def need(self, kind: type[N]) -> N | None:
        """The declared need of this kind, or None."""
        return next((n for n in self.needs if isinstance(n, kind)), None)


# --- tasks ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A number a task reports, and which way is better."""

    name: str
    better: Literal["higher", "lower", "neither"]
    title: str
    percent: bool = False
    headline: bool = False  # shown with its difference to the reference
    exact: bool = False  # computed from a whole table, so no single episode has it
    optional: bool = False  # of some kinds of episodes only, or pooled from other metrics
    own: bool = False  # measured against a target of the method's own: no number of another's is comparable


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


class Episode:
    """One live dialogue: a transcript, and whether it is over. Tasks derive their own.

    ``room`` caps the next answer, in tokens, where the task itself limits it.
    """

    def __init__(self, prompt_id: str, transcript: Transcript, room: int | None = None) -> None:
        self.prompt_id = prompt_id
        self.transcript = transcript
        self.room = room
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
    on) and ``heldout``: disjoint, and the same for every algorithm and seed.
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
        """Feed one answer to each live episode: execute, observe, perhaps end."""

    @abstractmethod
    def finish(self, episodes: Sequence[Episode], source: str) -> list[tuple[Trajectory, Score]]:
        """Score ended episodes."""

    def demonstration(self, episode: Episode) -> str | Sequence[int] | None:
        """What the task's own ground truth would answer now, as text or as ids; None where there is none."""
        return None

    def settled(self, codec: Codec, spec: RunSpec) -> Mapping[str, Any]:
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

    def vet(self, spec: RunSpec, algorithm: Algorithm, fresh: bool) -> Sequence[str]:
        """What a reader must know of how this task serves this run, checked before anything is loaded.

        Args:
            fresh: every update learns from the current policy's own samples.

        Raises:
            UserError: it cannot, with what to type instead.
        """
        return ()

    def aggregate(
        self,
        metrics: Mapping[str, Mapping[str, float | None]],
        examples: Sequence[Mapping[str, Any]],
        reference: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, dict[str, float | None]]:
        """Further metrics of an evaluation, each as {mean, n, stderr}.

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
        raise UserError(f"task {type(self).__module__.removeprefix('tasks.')} cannot score a file")

    def close(self) -> None:  # noqa: B027 (most tasks hold nothing)
        """Free worker processes."""


# --- registry ------------------------------------------------------------------------------------

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to classes, imported only when asked for.

    A built-in is a module of ``package``; third parties come through the entry-point group
    ``shiq_bench.<package>`` or :func:`load_plugin`.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._classes: dict[str, type[T]] = {}

    def add(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator.

        Raises:
            UserError: the name is taken by another class.
        """

        def register(cls: type[T]) -> type[T]:
            built_in = self._module(name)
            if built_in and not f"{cls.__module__}.".startswith(f"{built_in}."):
                raise UserError(f"two {self.kind}s are called {name!r}: {built_in} and {cls.__module__}")
            have = self._classes.setdefault(name, cls)
            if (have.__module__, have.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UserError(f"two {self.kind}s are called {name!r}: {have.__module__} and {cls.__module__}")
            self._classes[name] = cls
            return cls

        return register

    def _module(self, name: str) -> str | None:
        """The built-in module of a name, imported or not."""
        stem = name.replace("-", "_")
        module = f"{self.package}.{stem}"
        return module if stem.isidentifier() and importlib.util.find_spec(module) else None

    def _load_all(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=f"shiq_bench.{self.package}"):
            try:
                point.load()
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"plugin {point.value} cannot be imported: {type(error).__name__}: {error}") from error

    def names(self) -> list[str]:
        """Every registered name, sorted; imports every module."""
        self._load_all()
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class of a name.

        Raises:
            UserError: no such name; the nearest is suggested.
        """
        if name not in self._classes:
            if module := self._module(name):
                importlib.import_module(module)
            if name not in self._classes:
                names = self.names()
                if name not in self._classes:
                    raise UserError(f"no {self.kind} is called {name!r}{suggest(name, names)}")
        return self._classes[name]


algorithms: Registry[Algorithm] = Registry("algorithm", "algorithms")
tasks: Registry[Task] = Registry("task", "tasks")
algorithm = algorithms.add
task = tasks.add


def suggest(name: str, names: Sequence[str]) -> str:
    """``: did you mean X? (known: ...)`` for an error line."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return (f": did you mean {near[0]!r}?" if near else ";") + f" known: {', '.join(names)}"


def load_plugin(path: Path) -> ModuleType:
    """Import one file that registers algorithms or tasks.

    Raises:
        UserError: no such file, or it cannot be imported.
    """
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"no plugin file at {path}")
    name = f"shiq_bench_plugin_{path.stem}_{stable_hash(str(path))[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: a plugin ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"plugin {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
