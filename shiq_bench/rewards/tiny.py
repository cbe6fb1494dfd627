"""The embedded reward model: fitted on the spot to a task's own preferences, from its embedded policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shiq_bench.api.task import Task
from shiq_bench.models.hardware import fast_precision
from shiq_bench.records.cache import cached_folder
from shiq_bench.records.hashing import stable_hash
from shiq_bench.rewards.fit import fit_reward_model
from shiq_bench.training.starting_policy import build_tiny

#: Raise it when the recipe changes, so that cached models of the old one are not used.
VERSION = 1
RECIPE: dict[str, Any] = {"epochs": 2, "learning_rate": 3e-4, "batch": 16, "max_length": 512}


def identity() -> str:
    """What decides the tiny reward model of a task, beside the task's data and its embedded policy."""
    return stable_hash([VERSION, RECIPE, fast_precision()])


def tiny_reward_model(
    task: Task, name: str, report: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Path:
    """The folder of a tiny Bradley-Terry reward model of the split ``start``, built once and cached.

    Args:
        task: has preferences and an embedded policy.
        name: of the task.

    Raises:
        UserError: the task has no embedded policy, or no preferences.
    """
    base = build_tiny(name, task, report)
    pairs = task.preferences("start")
    key = {
        "version": VERSION,
        "base": base.name,
        "pairs": stable_hash([asdict(pair) for pair in pairs]),
        "recipe": RECIPE,
        "precision": fast_precision(),
    }

    def build(folder: Path) -> None:
        fit_reward_model(base, pairs, folder, precision=fast_precision(), seed=0, report=report, **RECIPE)

    return cached_folder("reward-model", key, build)
