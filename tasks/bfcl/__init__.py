"""BFCL-V3: seventeen categories of function calling, scored by the official checkers.

Patil et al. 2025, the Berkeley Function Calling Leaderboard, release bfcl-eval 2025.7.17. Verdicts are the official
ones; the way a model's text reaches official code is not (see ``parse``, ``decode`` and ``worker``).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import shiq_bench as sb
from shiq_bench.api.task import Examples, Measured
from shiq_bench.tasks.bfcl import data, fetch, oddities, score
from shiq_bench.tasks.bfcl.aggregate import SIZES, pooled_score, weights
from shiq_bench.tasks.bfcl.dialogue import Credit, Dialogue, credited
from shiq_bench.tasks.bfcl.executor import Executor, Outcome
from shiq_bench.tasks.bfcl.prompts import TEXT

#: The verdict on a single-turn entry whose prompt leaves no room for an answer, which might have been to do nothing.
UNFIT = {"valid": False, "error_type": "unfit", "partial": 0.0}

Payment = Literal["turn", "final"]
ToolFormat = Literal["auto", "prompt", "compact", "hermes", "llama3", "mistral", "cohere"]


@sb.task("bfcl")
@dataclass(frozen=True)
class Bfcl(sb.Task):
    """Function calling with official verdicts (BFCL-V3): single answers, and dialogues with simulated services.

    The reward of a turn is 1 when it passes the official checks of state and response; a turn without ground truth
    earns nothing and is no trial. A single-turn answer earns 1 when its official verdict is valid.

    Attributes:
        categories: official names and groups (all, live, non_live, multi_turn, single_turn, python, non_python),
            joined by commas.
        credit: ``prefix`` pays a turn only while all before it passed, ``independent`` whenever it passes.
        reward: ``turn`` pays at the last action token of each turn, ``final`` the same sum at the end of the episode.
        partial: pay single-turn answers for the share of their calls and arguments that is right, in [0, 1].
        tool_format: ``prompt`` (the official system prompt), ``compact`` (signatures), a chat template's own format,
            or ``auto``: compact for a codec marked ``tiny``, else the template's own where it has one, else prompt.
        max_steps: steps a turn, as the official loop counts them (it lets one more through).
        tool_chars: characters of a tool result that the compact format shows.
        timeout: seconds of wall clock for the calls of one step.
        workers: processes that execute calls; 0 is two a core.
    """

    categories: str = "multi_turn_base"
    credit: Credit = "prefix"
    reward: Payment = "turn"
    partial: bool = False
    tool_format: ToolFormat = "auto"
    max_steps: int = 20
    tool_chars: int = 200
    timeout: float = 10.0
    workers: int = field(default=0, metadata={"outcome": False})

    defaults: ClassVar[Mapping[str, Any]] = {
        "samples": 2, "groups_per_step": 2, "steps": 200, "learning_rate": 3e-4, "max_tokens": 96, "eval_samples": 2,
    }  # fmt: skip
    licence: ClassVar[str] = f"Apache-2.0, from bfcl-eval {fetch.VERSION} (Patil et al. 2025)"
    metrics: ClassVar[tuple[sb.Metric, ...]] = (
        sb.Metric("reward", "higher", "mean reward", headline=True),
        sb.Metric("turn_success", "higher", "turn success", percent=True, headline=True),
        sb.Metric("entry_accuracy", "higher", "entry accuracy (official)", percent=True, headline=True),
        *(sb.Metric(name, "higher", name, percent=True, optional=True) for name in (*data.CATEGORIES, *data.SCORES)),
        sb.Metric("length", "neither", "action tokens"),
        sb.Metric("forced_end", "lower", "forced ends", percent=True),
        sb.Metric("unfit", "lower", "entries that do not fit", percent=True),
        sb.Metric("unparsable", "neither", "answers with text and no readable call", percent=True),
        sb.Metric("refused", "lower", "refused calls", percent=True),
        sb.Metric("gamed", "lower", "passed, calling in an empty turn", percent=True),
        sb.Metric("unscored", "lower", "entries not scored", percent=True),
    )

    def __post_init__(self) -> None:
        for name, kind in {"credit": Credit, "reward": Payment, "tool_format": ToolFormat}.items():
            if (value := getattr(self, name)) not in get_args(kind):
                raise sb.UserError(f"bfcl has no {name} {value!r}{sb.suggest(str(value), get_args(kind))}")
        data.expand(self.categories)
        for name, low in {"max_steps": 1, "tool_chars": 1, "workers": 0}.items():
            if getattr(self, name) < low:
                raise sb.UserError(f"bfcl: {name} is {getattr(self, name)}; expected {low} or more")
        if not self.timeout > 0:
            raise sb.UserError(f"bfcl: timeout is {self.timeout}; expected a positive number of seconds")

    # cached_property writes to the instance's own dictionary, which a frozen dataclass allows.

    @functools.cached_property
    def root(self) -> Path:
        return fetch.locate()

    @functools.cached_property
    def entries(self) -> dict[str, data.Entry]:
        """Entries by id, in official order."""
        return data.entries(self.root, data.expand(self.categories))

    @functools.cached_property
    def executor(self) -> Executor:
        return Executor(self.root, self.workers, self.timeout)

    @functools.cached_property
    def largest_return(self) -> float:
        """One for every turn that has ground truth, in the entry with most of them, under either credit."""
        turns = (sum(map(bool, entry.gold[: len(entry.turns)])) for entry in self.entries.values() if entry.multi_turn)
        return float(max(turns, default=1))

    def prompts(self, split: str) -> list[str]:
        """Ids of a split: 40% ``start``, 40% ``rl``, 20% ``heldout`` of every category; ``all`` is everything.

        Raises:
            UserError: no such split.
        """
        return data.split_ids(self.entries, split)

    def score_lines(self, lines: Iterable[str], report: score.Report | None = None) -> sb.Scores:
        """Official verdicts on the answers of a file; see :func:`shiq_bench.tasks.bfcl.score.score`."""
        return score.score_lines(self.root, lines, self.executor, report)

    def resolved_options(self, codec: sb.Codec, spec: sb.RunSpec) -> Mapping[str, Any]:
        return {"tool_format": self.resolved_format(codec)}

    def resolved_format(self, codec: sb.Codec) -> str:
        """The tool format that ``auto`` stands for with this codec.

        Raises:
            UserError: the template has no tools, or writes them in another format than the one asked for.
        """
        own = getattr(codec, "tool_format", "")
        if self.tool_format == "auto":
            return "compact" if getattr(codec, "tiny", False) else own or "prompt"
        if self.tool_format not in TEXT and self.tool_format != own:
            has = f"writes tool calls as {own}" if own else "has no tool role, or writes calls in no format known here"
            raise sb.UserError(
                f"bfcl: the chat template {has}; expected {self.tool_format}: "
                f"--tool-format {own or 'prompt'} goes with it"
            )
        return self.tool_format

    def episodes(self, prompt_ids: Sequence[str], codec: sb.Codec, max_length: int) -> list[sb.Episode]:
        """Fresh dialogues.

        Raises:
            UserError: an id is unknown, or not one of the prompts fits into ``max_length``.
        """
        tool_format = self.resolved_format(codec)
        dialogues = []
        for prompt_id in prompt_ids:
            if prompt_id not in self.entries:
                raise sb.UserError(f"bfcl {self.categories} has no prompt {prompt_id!r}")
            entry = self.entries[prompt_id]
            session = self.executor.open(entry.request) if entry.multi_turn else None
            dialogues.append(Dialogue(self.root, entry, session, codec, tool_format, max_length))
        return list(dialogues)

    def step(self, episodes: Sequence[sb.Episode], completions: Sequence[sb.Completion]) -> None:
        """Feed one answer to each dialogue; the calls of all are executed side by side."""
        dialogues = [cast(Dialogue, episode) for episode in episodes]
        calls = [dialogue.answer(answer) for dialogue, answer in zip(dialogues, completions, strict=True)]
        steps = [(d.session, some) for d, some in zip(dialogues, calls, strict=True) if d.session is not None and some]
        outcomes = iter(self.executor.run(steps))
        for dialogue, some in zip(dialogues, calls, strict=True):
            if dialogue.waiting:
                dialogue.observe(next(outcomes) if some else Outcome(), self.max_steps, self.tool_chars)

    def demonstration(self, episode: sb.Episode) -> Sequence[int] | None:
        """The calls of this turn's ground truth in one answer; nothing, once they were made or where there are none."""
        return cast(Dialogue, episode).gold()

    def finish(self, episodes: Sequence[sb.Episode], source: str) -> list[tuple[sb.Trajectory, sb.Score]]:
        """Official verdicts, rewards and metrics; an entry that cannot be scored fails alone."""
        dialogues = [cast(Dialogue, episode) for episode in episodes]
        played = [(d.session, d.turns) for d in dialogues if d.session is not None]
        asked = [d for d in dialogues if d.session is None and not d.unfit]
        answered = [(d.entry.request | {"partial": self.partial}, d.said) for d in asked]
        many, single = iter(self.executor.judge(played)), iter(self.executor.judge_single(answered))
        return [
            self._played(d, next(many), source)
            if d.session is not None
            else self._answered(d, Outcome(UNFIT) if d.unfit else next(single), source)
            for d in dialogues
        ]

    def _played(self, dialogue: Dialogue, outcome: Outcome, source: str) -> tuple[sb.Trajectory, sb.Score]:
        errors = dialogue.errors(outcome)
        rewards = credited(errors, self.credit)
        error = outcome.error("entry")
        metrics = {
            "turn_success": errors.count(""),
            "turn_success/n": sum(error is not None for error in errors),
            "unparsable": dialogue.unparsable,
            "unparsable/n": dialogue.answers,
            "refused": dialogue.refused,
            "refused/n": dialogue.calls,
            "gamed": error == "" and dialogue.called_in_vain,
        }
        details = {
            "results": dialogue.results,
            "turns": [None if error is None else error == "" for error in errors],
            "turn_errors": errors,
            "positional_dropped": dialogue.positional,
            "overruns": dialogue.overruns,
        }
        return self._score(dialogue, source, rewards, error, metrics, details, scored=not outcome.failure)

    def _answered(self, dialogue: Dialogue, outcome: Outcome, source: str) -> tuple[sb.Trajectory, sb.Score]:
        """A single answer. Where no call is right, an answer without one is no fault."""
        value, error = outcome.value or {}, outcome.error("error_type")
        # Who said nothing at all, not even that the turn is over, has no token to be paid at.
        lost = outcome.failure or not dialogue.turn_end
        reward = 0.0 if lost else float(value["partial" if self.partial else "valid"])
        asks = "irrelevance" not in dialogue.entry.category
        metrics = {
            "unparsable": bool(value.get("unparsable")) and asks,
            "unparsable/n": dialogue.answers * asks,
            "refused": bool(value.get("refused")),
            "refused/n": dialogue.answers,
        }
        return self._score(dialogue, source, [reward], error, metrics, {}, scored=not outcome.failure)

    def _score(
        self,
        dialogue: Dialogue,
        source: str,
        rewards: Sequence[float],
        error: str,
        metrics: Mapping[str, float],
        details: Mapping[str, Any],
        *,
        scored: bool,
    ) -> tuple[sb.Trajectory, sb.Score]:
        """Rewards to where they are paid, and what every entry reports. A turn that was not answered earned nothing."""
        entry, transcript, valid = dialogue.entry, dialogue.transcript, error == ""
        if self.reward == "turn":
            positions = {dialogue.turn_end[turn]: reward for turn, reward in enumerate(rewards) if reward}
        else:
            positions = {transcript.last_action: sum(rewards)} if any(rewards) else {}
        trajectory = transcript.trajectory(entry.id, positions, source)
        values = {
            **metrics,
            "reward": sum(rewards),
            "entry_accuracy": valid,
            "length": sum(transcript.action_mask),
            "forced_end": dialogue.forced and not dialogue.unfit,
            "unfit": bool(dialogue.unfit),
            "unscored": not scored,
            # A category of several, also shown by itself; of one, it is the entry accuracy.
            **({entry.category: valid} if len(data.expand(self.categories)) > 1 else {}),
        }
        about = {
            "questions": ["\n\n".join(message["content"] for message in turn) for turn in entry.turns],
            "texts": dialogue.texts,
            "entry_error": error,
            "cut": dialogue.cut,
            **({"prompt_tokens": dialogue.unfit} if dialogue.unfit else {}),
            **details,
        }
        numbers = {name: float(value) for name, value in values.items()}
        return trajectory, sb.Score(sum(rewards), tuple(rewards), numbers, about, scored=scored)

    def aggregate(self, metrics: Measured, examples: Examples, reference: Examples = ()) -> Measured:
        """The official scores of the groups whose categories were all run, and the overall one if all were."""
        counts = SIZES | {name: int(metrics[name]["n"] or 0) for name in SIZES if name in metrics}
        return {
            name: pooled
            for name in data.SCORES
            if (pooled := pooled_score(weights(name, counts), metrics, examples)) is not None
        }

    def tiny(self) -> sb.TinyModel:
        """The embedded default; the signatures of each class are one token of its vocabulary."""
        groups = data.documents(self.root).values() if any(e.multi_turn for e in self.entries.values()) else ()
        blocks = tuple("\n".join(data.signature(document) for document in group) for group in groups)
        return sb.TinyModel(
            vocabulary=2048, width=192, layers=3, heads=3, steps=300, batch=8,
            learning_rate=2e-3, context_weight=0.1, phrases=blocks,
        )  # fmt: skip

    def notes(self) -> list[str]:
        """What was run of the benchmark, and the oddities that bear on it."""
        ran = data.expand(self.categories)
        found: list[str] = []
        if told := sum(name in data.MULTI_TURN for name in ran):
            found += [oddities.REFUSED_CALLS, *oddities.MULTI_TURN, *([oddities.RETOLD] if told > 1 else [])]
        if told < len(ran):
            found += [oddities.REFUSED_ANSWERS, *oddities.SINGLE_TURN]
        if hopeless := [entry for entry in oddities.UNSATISFIABLE if entry in self.entries]:
            found.append(f"no answer satisfies {', '.join(hopeless)}")
        if missing := [name for name in data.CATEGORIES if name not in ran]:
            found.append(f"no overall score: {len(missing)} of {len(data.CATEGORIES)} categories not run")
        return found

    def details(self) -> Mapping[str, Sequence[str]]:
        """Every category with its size, every entry that cannot be satisfied, and what is known of the checkers."""
        everything = data.entries(self.root, data.CATEGORIES)
        sizes = Counter(entry.category for entry in everything.values())
        return {
            f"categories ({len(everything)} entries)": [f"{name}: {size}" for name, size in sizes.items()],
            "groups": [f"{name}: {', '.join(members)}" for name, members in data.GROUPS.items()],
            "splits": [
                *(f"{name}: {share}% of each category" for name, share in data.SPLITS.items()),
                "all: everything",
            ],
            "entries that no answer satisfies": [f"{i}: {why}" for i, why in oddities.UNSATISFIABLE.items()],
            "entries that depend on the order of parallel calls": [", ".join(oddities.ORDER_DEPENDENT)],
            "the metric gamed": oddities.GAMED,
            "single-turn checkers": oddities.SINGLE_TURN,
            "multi-turn checkers": [*oddities.MULTI_TURN, oddities.RETOLD],
            "different here": [oddities.REFUSED_CALLS, oddities.REFUSED_ANSWERS, oddities.HELD_OUT],
            "questions, functions and ground truth": [str(self.root / "bfcl_eval" / "data")],
        }

    def close(self) -> None:
        if "executor" in self.__dict__:
            self.executor.close()
