"""The official scores over categories, every one a weighted mean of accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from shiq_bench.api.task import Examples, Measured
from shiq_bench.tasks.bfcl import data

#: Entries of each category, in official order.
SIZES = {
    "simple": 400, "irrelevance": 240, "parallel": 200, "multiple": 200, "parallel_multiple": 200, "java": 100,
    "javascript": 50, "live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24,
    "live_irrelevance": 882, "live_relevance": 18, "multi_turn_base": 200, "multi_turn_miss_func": 200,
    "multi_turn_miss_param": 200, "multi_turn_long_context": 200,
}  # fmt: skip

_SIMPLE = ("simple", *data.OTHER_LANGUAGES)  # officially one category among the others of its kind
_NON_LIVE = ("non_live_simple", *(name for name in data.NON_LIVE if name not in _SIMPLE))

#: What each score is the mean of.
PARTS = {
    "non_live_simple": _SIMPLE,
    "non_live_ast": tuple(name for name in _NON_LIVE if "relevance" not in name),
    "non_live": _NON_LIVE,
    "live_ast": tuple(name for name in data.LIVE if "relevance" not in name),
    "live": data.LIVE,
    "multi_turn": data.MULTI_TURN,
    "overall": ("non_live", "live", "multi_turn"),
}

#: Scores whose parts count by their entries; in the others every part counts alike.
BY_ENTRIES = ("live_ast", "live")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of scores: a category, or one of ``PARTS``."""

    name: str
    accuracy: float | None  # in [0, 1]; None where it, or a part of it, was not run
    scored: int  # of so many entries
    entries: int


def weights(score: str, counts: Mapping[str, int] = SIZES) -> dict[str, float]:
    """Weight of each category in a score, adding up to 1.

    Args:
        score: a category, or one of ``PARTS``.
        counts: entries of the categories; the benchmark's own, unless only part of it was run.
    """
    if score not in PARTS:
        return {score: 1.0}
    parts = PARTS[score]
    shares = {part: counts[part] if score in BY_ENTRIES else 1 for part in parts}
    total = sum(shares.values())
    return {
        category: weight * shares[part] / total for part in parts for category, weight in weights(part, counts).items()
    }


def aggregate(results: Mapping[str, tuple[float, int]]) -> list[Row]:
    """The official table.

    Officially a category that was not run counts as 0; here there is then no score.

    Args:
        results: category -> accuracy in [0, 1], entries that were scored; categories not run are missing.

    Returns:
        Every category in official order, then every score of ``PARTS``.
    """
    counts = {category: scored for category, (_, scored) in results.items() if scored}
    rows = []
    for name in (*SIZES, *PARTS):
        categories = weights(name)
        accuracy = None
        if categories.keys() <= counts.keys():
            accuracy = sum(weight * results[category][0] for category, weight in weights(name, counts).items())
        scored = sum(counts.get(category, 0) for category in categories)
        rows.append(Row(name, accuracy, scored, sum(SIZES[category] for category in categories)))
    return rows


def pooled_score(weights: Mapping[str, float], metrics: Measured, examples: Examples) -> dict[str, float | None] | None:
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
