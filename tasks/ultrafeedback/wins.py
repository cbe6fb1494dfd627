"""Win rates of judged answers, by the words of one judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shiq_bench.stats.clustered import clustered_mean, length_controlled
from shiq_bench.stats.intervals import Estimate
from shiq_bench.tasks.ultrafeedback.answering import beats


def win_rates(
    examples: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """Win rates, ties half: against the chosen answer length-controlled, against the reference raw as well.

    An answer meets every one that the reference gave to the same prompt.

    Returns:
        Metric -> {mean, n, stderr}, shares; empty where nothing was judged.
    """
    judged = [e for e in examples if e.get("reward") is not None]
    if not judged:
        return {}
    prompts = [e["prompt_id"] for e in judged]
    gaps = [e["details"]["characters"] - e["details"]["chosen_characters"] for e in judged]
    out = {"win_chosen_lc": _told(length_controlled([e["win_chosen"] for e in judged], gaps, prompts))}
    theirs: dict[str, list[Mapping[str, Any]]] = {}
    for example in reference:
        if example.get("reward") is not None:
            theirs.setdefault(example["prompt_id"], []).append(example)
    met = [(e, other) for e in judged for other in theirs.get(e["prompt_id"], ())]
    if not met:
        return out
    prompts = [e["prompt_id"] for e, _ in met]
    wins = [beats(e["reward"], other["reward"]) for e, other in met]
    gaps = [e["details"]["characters"] - other["details"]["characters"] for e, other in met]
    return out | {
        "win_reference": _told(clustered_mean(wins, prompts)),
        "win_reference_lc": _told(length_controlled(wins, gaps, prompts)),
        "longer_reference": _told(clustered_mean([beats(gap, 0) for gap in gaps], prompts)),
    }


def _told(estimate: Estimate) -> dict[str, float | None]:
    return {"mean": estimate.mean, "n": estimate.n, "stderr": estimate.stderr}
