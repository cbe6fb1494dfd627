"""Trajectories of one prompt as a group, with what was computed about them beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.needs import Rewards
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.records.errors import UserError

Columns = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Row:
    """A trajectory with what was computed about it beforehand.

    Attributes:
        reward_shift: subtracted from the return, at the last action (centring moves v*, not pi*).
        reference: the reference's ``logp`` and ``lse`` over the action tokens. ``[T]`` each
        mismatch: the same prompt with another prompt's answer.
        mismatch_reference: ``reference`` for it.
    """

    trajectory: Trajectory
    reward_shift: float = 0.0
    reference: Columns | None = None
    mismatch: Trajectory | None = None
    mismatch_reference: Columns | None = None


def mismatched(trajectory: Trajectory, other: Trajectory, max_length: int) -> Trajectory:
    """The prompt of one trajectory with all that followed the prompt of another, cut at ``max_length``.

    Rewards are zero: nobody has judged it.
    """
    prompt = trajectory.token_ids[: trajectory.action_mask.index(True)]
    start = other.action_mask.index(True)
    room = max(1, max_length - len(prompt))
    ids, mask = other.token_ids[start:][:room], other.action_mask[start:][:room]
    return Trajectory(
        trajectory.prompt_id,
        (*prompt, *ids),
        (False,) * len(prompt) + tuple(mask),
        (0.0,) * (len(prompt) + len(ids)),
        source="mismatched",
        weight=trajectory.weight,
    )


def with_mismatches(groups: Sequence[Sequence[Trajectory]], max_length: int) -> list[list[Trajectory]]:
    """For every trajectory of every group, its prompt with an answer of the next group.

    Raises:
        UserError: there is a single prompt.
    """
    if len(groups) < 2:
        raise UserError("mismatched answers need at least two prompts with trajectories; there is one")
    return [
        [mismatched(t, mates[i % len(mates)], max_length) for i, t in enumerate(group)]
        for group, mates in zip(groups, [*groups[1:], groups[0]], strict=True)
    ]


def centred(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Mean return of each prompt's trajectories, weighted: what ``center_rewards`` subtracts."""
    total: dict[str, float] = {}
    weight: dict[str, float] = {}
    for t in trajectories:
        total[t.prompt_id] = total.get(t.prompt_id, 0.0) + t.weight * t.total_reward
        weight[t.prompt_id] = weight.get(t.prompt_id, 0.0) + t.weight
    return {prompt: total[prompt] / weight[prompt] for prompt in total}


def action_rewards(row: Row) -> list[float]:
    """Rewards at the action tokens, the shift taken off the last one. ``[T]``"""
    t = row.trajectory
    rewards = list(compress(t.rewards, t.action_mask))
    if rewards:
        rewards[-1] -= row.reward_shift
    return rewards


def in_unit_range(trajectories: Sequence[Trajectory], algorithm: Algorithm, largest: float) -> list[Trajectory]:
    """Rewards divided by the largest return, for algorithms that want returns in [0, 1]; for others as they are.

    Raises:
        UserError: a return, or what is left of one at some action, still lies outside.
    """
    need = algorithm.need(Rewards)
    if need is None or not need.unit:
        return list(trajectories)
    out = [replace(t, rewards=tuple(r / largest for r in t.rewards)) for t in trajectories]
    to_go = [np.cumsum(t.rewards[::-1]) for t in out]
    low, high = min(float(g.min()) for g in to_go), max(float(g.max()) for g in to_go)
    if low < -1e-9 or high > 1 + 1e-9:
        raise UserError(
            f"returns from {low:.3g} to {high:.3g}: this method wants every return in [0, 1]; "
            "rescale the task's rewards (tabular tasks: reward_scale=1)"
        )
    return out


def group_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by prompt, prompts in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.trajectory.prompt_id, []).append(row)
    return list(groups.values())


def prepare(
    trajectories: Sequence[Trajectory],
    reference: Sequence[Columns] | None,
    algorithm: Algorithm,
    center_rewards: bool,
    mismatches: Sequence[Trajectory] | None = None,
    mismatch_reference: Sequence[Columns] | None = None,
) -> list[list[Row]]:
    """Training groups, with reference columns and centring where the algorithm wants them."""
    means = centred(trajectories) if center_rewards and algorithm.need(Rewards) else {}
    none = [None] * len(trajectories)
    columns = zip(trajectories, reference or none, mismatches or none, mismatch_reference or none, strict=True)
    return group_rows([Row(t, means.get(t.prompt_id, 0.0), r, m, mr) for t, r, m, mr in columns])
