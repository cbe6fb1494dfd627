"""The official scores over categories, every one a weighted mean of accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Entries of each category, in official order.
SIZES = {
    "simple": 400, "irrelevance": 240, "parallel": 200, "multiple": 200, "parallel_multiple": 200, "java": 100,
    "javascript": 50, "live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24,
    "live_irrelevance": 882, "live_relevance": 18, "multi_turn_base": 200, "multi_turn_miss_func": 200,
    "multi_turn_miss_param": 200, "multi_turn_long_context": 200,
}  # fmt: skip

_LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
_NON_LIVE_AST = ("non_live_simple", "multiple", "parallel", "parallel_multiple")

#: What each score is the mean of.
PARTS = {
    "non_live_simple": ("simple", "java", "javascript"),
    "non_live_ast": _NON_LIVE_AST,
    "non_live": (*_NON_LIVE_AST, "irrelevance"),
    "live_ast": _LIVE_AST,
    "live": (*_LIVE_AST, "live_irrelevance", "live_relevance"),
    "multi_turn": ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context"),
    "overall": ("non_live", "live", "multi_turn"),
}

#: Scores whose parts count by their entries; in the others every part counts alike.
BY_ENTRIES = ("live_ast", "live")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of scores.

    Attributes:
        name: a category, or one of ``PARTS``.
        accuracy: in [0, 1]; None where it, or a part of it, was not run.
        scored, entries: how many entries were scored, and how many there are.
    """

    name: str
    accuracy: float | None
    scored: int
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


def aggregate(results: Mapping[str, tuple[int, int]]) -> list[Row]:
    """The official table.

    Officially a category that was not run counts as 0; here there is then no score.

    Args:
        results: category -> entries that are valid, entries that were scored; categories not run are missing.

    Returns:
        Every category in official order, then every score of ``PARTS``.
    """
    run = {category: result for category, result in results.items() if result[1]}
    counts = {category: scored for category, (_, scored) in run.items()}
    rows = []
    for name in (*SIZES, *PARTS):
        categories = weights(name)
        accuracy = None
        if categories.keys() <= run.keys():
            accuracy = sum(w * run[category][0] / run[category][1] for category, w in weights(name, counts).items())
        scored = sum(counts.get(category, 0) for category in categories)
        rows.append(Row(name, accuracy, scored, sum(SIZES[category] for category in categories)))
    return rows
