"""The reward models of a task: the embedded one, a folder, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    from shiq_bench.rewards.model import open_reward_model
    from shiq_bench.rewards.tiny import tiny_reward_model

    if name != TINY:
        return named(name, precision)
    return open_reward_model(str(tiny_reward_model(task, "ultrafeedback")), precision=precision)


def named(name: str, precision: Precision) -> RewardModel:
    """The reward model of a folder, a hub id, or ``id@revision``.

    Raises:
        UserError: there is none, or a revision of a folder is asked for.
    """
    from shiq_bench.rewards.model import open_reward_model

    where, at, revision = name.rpartition("@")
    if Path(name).expanduser().is_dir() or not at:
        return open_reward_model(name, precision=precision)
    if Path(where).expanduser().is_dir():
        raise UserError(f"{where} is a folder, which has no revisions: leave out @{revision}")
    return open_reward_model(where, revision=revision, precision=precision)


def short(name: str) -> str:
    """A folder by its name: where it lies is no business of a record."""
    return Path(name).name if Path(name).is_dir() else name
