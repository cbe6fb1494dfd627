"""What turns earn, and how official verdicts on categories become one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, Literal

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.dialogue import Dialogue
from shiq_bench.tasks.bfcl.executor import Outcome

Credit = Literal["prefix", "independent"]


def turn_errors(dialogue: Dialogue, outcome: Outcome) -> list[str | None]:
    """Error type of every turn that was to be played: "" where it passes, None where there is no ground truth.

    An entry with more answers than turns counts the turns that exist.
    """
    gold = dialogue.entry.gold[: len(dialogue.entry.turns)]
    reached: list[str | None] = [] if outcome.failure else outcome.value["turns"]
    missing = "unscored" if outcome.failure else "not reached"
    return [None if not calls else reached[turn] if turn < len(reached) else missing for turn, calls in enumerate(gold)]


def called_in_vain(dialogue: Dialogue) -> bool:
    """Whether calls were made in a turn whose ground truth is to make none, which the official checker forgives."""
    return any(calls and not gold for calls, gold in zip(dialogue.turns, dialogue.entry.gold, strict=False))


def credited(errors: Sequence[str | None], credit: Credit) -> list[float]:
    """Reward of each turn; a turn without ground truth earns nothing and breaks no prefix."""
    rewards, intact = [], True
    for error in errors:
        intact = intact and not error
        rewards.append(float(error == "" and (intact or credit == "independent")))
    return rewards


def pooled_score(
    weights: Mapping[str, float],
    metrics: Mapping[str, Mapping[str, float | None]],
    examples: Sequence[Mapping[str, Any]],
) -> dict[str, float | None] | None:
    """A weighted mean of categories' accuracies; None where one of them was not run.

    The four multi-turn categories retell the same scenarios, so the scenario is the unit of the error, which is
    otherwise as in :func:`shiq_bench.stats.clustered.clustered_mean`.
    """
    found = {category: metrics.get(category, {}) for category in weights}
    if any(about.get("mean") is None for about in found.values()):
        return None
    means = {category: about["mean"] or 0.0 for category, about in found.items()}
    counts = {category: about["n"] or 0.0 for category, about in found.items()}
    influence: dict[str, float] = {}
    for example in examples:
        for category in weights.keys() & example.keys():
            kind, _, number = str(example["prompt_id"]).rpartition("_")
            unit = f"multi_turn {number}" if category in data.MULTI_TURN else f"{kind} {number}"
            share = weights[category] * (example[category] - means[category]) / counts[category]
            influence[unit] = influence.get(unit, 0.0) + share
    units = len(influence)
    stderr = sqrt(units / (units - 1) * sum(e * e for e in influence.values())) if units > 1 else None
    mean = sum(weight * means[category] for category, weight in weights.items())
    return {"mean": mean, "n": sum(counts.values()), "stderr": stderr}
