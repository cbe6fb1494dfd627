"""BFCL-V3, multi-turn: dialogues with simulated services, scored by the official checkers.

Patil et al. 2025, the Berkeley Function Calling Leaderboard, release bfcl-eval 2025.7.17. Verdicts are the official
ones; the way a model's text reaches official code is not (see ``parse`` and ``worker``).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

from shiq_bench.api import Codec, Episode, Metric, Task, TinyModel, suggest, task
from shiq_bench.records import Completion, Score, Trajectory, UserError
from tasks.bfcl import data, fetch
from tasks.bfcl.dialogue import Dialogue
from tasks.bfcl.executor import Executor, Outcome
from tasks.bfcl.prompts import Style, opening

Credit = Literal["prefix", "independent"]
AnyStyle = Literal["auto", "official", "compact"]


@task("bfcl")
@dataclass(frozen=True)
class Bfcl(Task):
    """Multi-turn function calling with official verdicts (BFCL-V3).

    The reward of a turn is 1 when it passes the official checks of state and response, credited at the last action
    token of the turn; a turn without ground truth earns nothing and is no trial.

    Attributes:
        category: which scenarios.
        credit: ``prefix`` pays a turn only while all before it passed, ``independent`` whenever it passes.
        style: ``official`` prompts, ``compact`` signatures, or ``auto``: compact for a codec marked ``tiny``.
        max_steps: steps a turn, as the official loop counts them (it lets one more through).
        tool_chars: characters of a tool result that the compact style shows.
        timeout: seconds of wall clock for the calls of one step.
        workers: processes that execute calls; 0 is one a core.
    """

    category: str = "multi_turn_base"
    credit: Credit = "prefix"
    style: AnyStyle = "auto"
    max_steps: int = 20
    tool_chars: int = 200
    timeout: float = 10.0
    workers: int = field(default=0, metadata={"outcome": False})

    defaults: ClassVar[Mapping[str, Any]] = {
        "samples": 2, "groups_per_step": 2, "steps": 200, "learning_rate": 3e-4, "max_tokens": 96, "eval_samples": 2,
    }  # fmt: skip
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("reward", "higher", "mean reward", headline=True),
        Metric("turn_success", "higher", "turn success", percent=True, headline=True),
        Metric("entry_accuracy", "higher", "entry accuracy (official)", percent=True, headline=True),
        Metric("length", "neither", "action tokens"),
        Metric("forced_end", "lower", "forced ends", percent=True),
        Metric("unparsable", "lower", "unparsable answers", percent=True),
        Metric("refused", "lower", "refused calls", percent=True),
        Metric("gamed", "lower", "passed, calling in an empty turn", percent=True),
        Metric("unscored", "lower", "entries not scored", percent=True),
    )

    def __post_init__(self) -> None:
        for name, known in {
            "category": data.CATEGORIES, "credit": get_args(Credit), "style": get_args(AnyStyle),
        }.items():  # fmt: skip
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"bfcl has no {name} {value!r}{suggest(str(value), known)}")
        for name, low in {"max_steps": 1, "tool_chars": 1, "workers": 0}.items():
            if getattr(self, name) < low:
                raise UserError(f"bfcl: {name} is {getattr(self, name)}; expected {low} or more")
        if not self.timeout > 0:
            raise UserError(f"bfcl: timeout is {self.timeout}; expected a positive number of seconds")

    # cached_property writes to the instance's own dictionary, which a frozen dataclass allows.

    @functools.cached_property
    def root(self) -> Path:
        """Folder of the official package."""
        return fetch.locate()

    @functools.cached_property
    def entries(self) -> dict[str, data.Entry]:
        """Scenarios by id, in official order."""
        return data.entries(self.root, self.category)

    @functools.cached_property
    def executor(self) -> Executor:
        """The pool of workers."""
        return Executor(self.root, self.workers, self.timeout)

    @functools.cached_property
    def largest_return(self) -> float:
        """One for every turn that has ground truth, in the scenario with most of them, under either credit."""
        return float(max(sum(map(bool, entry.gold[: len(entry.turns)])) for entry in self.entries.values()))

    def prompts(self, split: str) -> list[str]:
        """Ids of a split: 40% ``start``, 40% ``rl``, 20% ``heldout``.

        Raises:
            UserError: no such split.
        """
        if split not in data.SPLITS:
            raise UserError(f"bfcl has no split {split!r}{suggest(split, list(data.SPLITS))}")
        return data.split_ids(list(self.entries), split)

    def episodes(self, prompt_ids: Sequence[str], codec: Codec, max_length: int) -> list[Episode]:
        """Fresh dialogues.

        Raises:
            UserError: an id is unknown, or not one of the prompts fits into ``max_length``.
        """
        style = cast(Style, self.style)
        if self.style == "auto":
            style = "compact" if getattr(codec, "tiny", False) else "official"
        dialogues = []
        for prompt_id in prompt_ids:
            if prompt_id not in self.entries:
                raise UserError(f"bfcl {self.category} has no prompt {prompt_id!r}")
            entry = self.entries[prompt_id]
            messages = opening(self.root, entry, style)
            dialogues.append(Dialogue(entry, self.executor.open(entry.request), codec, messages, style, max_length))
        if dialogues and all(dialogue.done for dialogue in dialogues):
            shortest = min(len(dialogue.transcript.token_ids) for dialogue in dialogues)
            raise UserError(
                f"bfcl: the shortest prompt in {style} style takes {shortest} tokens and max_length is {max_length}: "
                "raise max_length" + (", or take style=compact" if style == "official" else "")
            )
        return list(dialogues)

    def step(self, episodes: Sequence[Episode], completions: Sequence[Completion]) -> None:
        """Feed one answer to each dialogue; the calls of all are executed side by side."""
        dialogues = [cast(Dialogue, episode) for episode in episodes]
        calls = [dialogue.answer(answer) for dialogue, answer in zip(dialogues, completions, strict=True)]
        busy = [i for i, some in enumerate(calls) if some]
        outcomes = dict(zip(busy, self.executor.run([(dialogues[i].session, calls[i]) for i in busy]), strict=True))
        for i, dialogue in enumerate(dialogues):
            if dialogue.waiting:
                dialogue.observe(outcomes.get(i, Outcome()), self.max_steps, self.tool_chars)

    def demonstration(self, episode: Episode) -> str:
        """The calls of this turn's ground truth in one answer; nothing, once they were made or where there are none."""
        return cast(Dialogue, episode).gold()

    def finish(self, episodes: Sequence[Episode], source: str) -> list[tuple[Trajectory, Score]]:
        """Official verdicts, rewards and metrics; a dialogue that cannot be scored fails alone."""
        dialogues = [cast(Dialogue, episode) for episode in episodes]
        outcomes = self.executor.judge([(dialogue.session, dialogue.turns) for dialogue in dialogues])
        return [self._score(dialogue, outcome, source) for dialogue, outcome in zip(dialogues, outcomes, strict=True)]

    def _score(self, dialogue: Dialogue, outcome: Outcome, source: str) -> tuple[Trajectory, Score]:
        entry, transcript = dialogue.entry, dialogue.transcript
        errors = _turn_errors(dialogue, outcome)
        rewards = credited(errors, self.credit)
        entry_error = f"unscored: {outcome.failure}" if outcome.failure else outcome.value["entry"]
        positions = {dialogue.turn_end[turn]: reward for turn, reward in enumerate(rewards) if reward}
        trajectory = transcript.trajectory(entry.id, positions, source)
        metrics = {
            "reward": sum(rewards),
            "turn_success": errors.count(""),
            "turn_success/n": sum(error is not None for error in errors),
            "entry_accuracy": entry_error == "",
            "length": sum(transcript.action_mask),
            "forced_end": dialogue.forced,
            "unparsable": dialogue.unparsable,
            "unparsable/n": dialogue.answers,
            "refused": dialogue.refused,
            "refused/n": dialogue.calls,
            "gamed": entry_error == "" and _called_in_vain(dialogue),
            "unscored": bool(outcome.failure),
        }
        details: Mapping[str, Any] = {
            "texts": dialogue.texts,
            "turns": [None if error is None else error == "" for error in errors],
            "turn_errors": errors,
            "entry_error": entry_error,
            "positional_dropped": dialogue.positional,
            "cut": dialogue.cut,
            "overruns": dialogue.overruns,
        }
        values = {name: float(value) for name, value in metrics.items()}
        return trajectory, Score(sum(rewards), tuple(rewards), values, details, scored=not outcome.failure)

    def tiny(self) -> TinyModel:
        """The embedded default; the signatures of each class are one token of its vocabulary."""
        groups = data.documents(self.root).values()
        blocks = tuple("\n".join(data.signature(document) for document in group) for group in groups)
        return TinyModel(
            vocabulary=2048, width=192, layers=3, heads=3, steps=300, batch=8,
            learning_rate=2e-3, context_weight=0.1, phrases=blocks,
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Oddities of the official data and checkers, which are reported and not mended."""
        return [
            "multi_turn_base_154 has 5 turns and 6 answers, so nobody scores more than 199 of 200.",
            "Three turns (one of 167, two of 180) have no ground truth: the official checker skips them.",
            "verify_traveler_information depends on today's date.",
            "Extra read-only calls, and positional arguments (the official decoder drops them), go unpunished.",
            "Calls outside the grammar (arithmetic, bare names, nested calls) are refused; officially they run.",
        ]

    def close(self) -> None:
        """Stop the workers, if any were started."""
        if "executor" in self.__dict__:
            self.executor.close()


def _turn_errors(dialogue: Dialogue, outcome: Outcome) -> list[str | None]:
    """Error type of every turn that was to be played: "" where it passes, None where there is no ground truth.

    A scenario with more answers than turns counts the turns that exist.
    """
    gold = dialogue.entry.gold[: len(dialogue.entry.turns)]
    reached: list[str | None] = [] if outcome.failure else outcome.value["turns"]
    missing = "unscored" if outcome.failure else "not reached"
    return [None if not calls else reached[turn] if turn < len(reached) else missing for turn, calls in enumerate(gold)]


def _called_in_vain(dialogue: Dialogue) -> bool:
    """Whether calls were made in a turn whose ground truth is to make none, which the official checker forgives."""
    return any(calls and not gold for calls, gold in zip(dialogue.turns, dialogue.entry.gold, strict=False))


def credited(errors: Sequence[str | None], credit: Credit) -> list[float]:
    """Reward of each turn; a turn without ground truth earns nothing and breaks no prefix."""
    rewards, intact = [], True
    for error in errors:
        intact = intact and not error
        rewards.append(float(error == "" and (intact or credit == "independent")))
    return rewards
