"""Who judges: the embedded reward model, a folder, or a name on the hub; and win rates by the word of one judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shiq_bench import Task, UserError

if TYPE_CHECKING:
    from shiq_bench.rewards.model import RewardModel

Precision = Literal["fp32", "bf16"]

#: The embedded reward model: fitted on the spot to the pairs that also fit the embedded policy.
TINY = "tiny"


def opened(task: Task, name: str, precision: Precision) -> RewardModel:
    """The reward model of a name; the embedded one is fitted to the task's own preferences first.

    Raises:
        UserError: there is none.
    """
    if name != TINY:
        return named(name, precision)
    from shiq_bench.rewards.fit import tiny_reward_model

    return named(str(tiny_reward_model(task, "ultrafeedback")), precision)


def named(name: str, precision: Precision) -> RewardModel:
    """The reward model of a folder, a hub id, or ``id@revision``.

    Raises:
        UserError: there is none, or a revision of a folder is asked for.
    """
    from shiq_bench.rewards.model import RewardModel

    where, at, revision = name.rpartition("@")
    if Path(name).expanduser().is_dir() or not at:
        return RewardModel(name, precision=precision)
    if Path(where).expanduser().is_dir():
        raise UserError(f"{where} is a folder, which has no revisions: leave out @{revision}")
    return RewardModel(where, revision=revision, precision=precision)


def short(name: str) -> str:
    """A folder by its name: where it lies is no business of a record."""
    return Path(name).name if Path(name).is_dir() else name


def win_rates(
    examples: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """See :meth:`UltraFeedback.aggregate`: metric -> {mean, n, stderr}, shares; empty where nothing was judged."""
    # numpy and scipy, which a list of tasks needs not
    from shiq_bench.stats.clustered import clustered_mean, length_controlled

    judged = [e for e in examples if e.get("reward") is not None]
    if not judged:
        return {}
    prompts = [e["prompt_id"] for e in judged]
    gaps = [e["details"]["characters"] - e["details"]["chosen_characters"] for e in judged]
    found = {"win_chosen_lc": length_controlled([e["win_chosen"] for e in judged], gaps, prompts)}
    theirs: dict[str, list[Mapping[str, Any]]] = {}
    for example in reference:
        if example.get("reward") is not None:
            theirs.setdefault(example["prompt_id"], []).append(example)
    met = [(e, other) for e in judged for other in theirs.get(e["prompt_id"], ())]
    if met:
        prompts = [e["prompt_id"] for e, _ in met]
        wins = [beats(e["reward"], other["reward"]) for e, other in met]
        gaps = [e["details"]["characters"] - other["details"]["characters"] for e, other in met]
        found |= {
            "win_reference": clustered_mean(wins, prompts),
            "win_reference_lc": length_controlled(wins, gaps, prompts),
            "longer_reference": clustered_mean([beats(gap, 0) for gap in gaps], prompts),
        }
    return {name: {"mean": e.mean, "n": e.n, "stderr": e.stderr} for name, e in found.items()}


def beats(mine: float, theirs: float) -> float:
    """1, 0, or one half where they are equal."""
    return 0.5 if mine == theirs else float(mine > theirs)
