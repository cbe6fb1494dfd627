"""Trajectories of one prompt as a group: what was computed about them beforehand, preference pairs and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

import numpy as np

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.needs import Pairs, Rewards
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash

Columns = tuple[np.ndarray, np.ndarray]
LabelRule = Literal["hard", "bradley_terry", "sampled"]
PairChoice = Literal["all", "best_worst", "random"]


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


def with_mismatches(trajectories: Sequence[Trajectory], max_length: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """The trajectories, brought together by prompt, and for each its prompt with an answer to the next prompt.

    Raises:
        UserError: there is a single prompt.
    """
    groups = [[row.trajectory for row in group] for group in group_rows([Row(t) for t in trajectories])]
    if len(groups) < 2:
        raise UserError("mismatched answers need at least two prompts with trajectories; there is one")
    mismatches = [
        mismatched(t, mates[i % len(mates)], max_length)
        for group, mates in zip(groups, [*groups[1:], groups[0]], strict=True)
        for i, t in enumerate(group)
    ]
    return [t for group in groups for t in group], mismatches


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


@dataclass(frozen=True)
class PairSet:
    """Preference pairs of one group: indices into it, weights, and how many ties were dropped."""

    pairs: list[tuple[int, int]]
    weights: list[float]
    ties: int


def _sigma(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def seed_of(*what: Any) -> int:
    """A seed that belongs to what it is named by, below 2 ** 60."""
    return int(stable_hash(list(what))[:15], 16)


def _draws(group: Sequence[Trajectory], what: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers that belong to a prompt and a seed, not to the batch it comes in."""
    return np.random.default_rng(seed_of(group[0].prompt_id, what, seed)).random(shape)


def chosen_pairs(group: Sequence[Trajectory], choice: PairChoice, seed: int = 0) -> list[tuple[int, int]]:
    """Which two of one prompt's trajectories are compared: every two, the best with the worst, or two drawn.

    Among equals the first is the best and the last the worst.
    """
    n = len(group)
    if choice == "all" or n < 3:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    if choice == "random":
        i, j = np.argsort(_draws(group, "choice", seed, (n,)), kind="stable")[:2]
    else:
        order = sorted(range(n), key=lambda k: -group[k].preference_score)
        i, j = order[0], order[-1]
    return [(min(int(i), int(j)), max(int(i), int(j)))]


def make_pairs(
    group: Sequence[Trajectory], need: Pairs, labels: LabelRule, seed: int = 0, choice: PairChoice = "all"
) -> PairSet:
    """Preference pairs from what one prompt's trajectories are worth: their ranks, or else their returns R.

    ``hard``: every pair of unequal worth once, the higher first. ``bradley_terry``: both orders,
    weighted by sigma(R - R') and its complement, the expected labels of a Bradley-Terry judge.
    ``sampled``: one order, drawn with that probability. Weights of the trajectories multiply. A tie
    carries no hard label: it is dropped and counted where the need says so, else kept in both
    orders at one half.
    """
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    ties, n = 0, len(group)
    coins = _draws(group, "pairs", seed, (n, n)) if labels == "sampled" else None
    for i, j in chosen_pairs(group, choice, seed):
        gap = group[i].preference_score - group[j].preference_score
        both = group[i].weight * group[j].weight
        if gap == 0 and need.ties == "drop" and labels == "hard":
            ties += 1
            continue
        if coins is not None:
            p = float(coins[i, j] < _sigma(gap))
        else:
            p = _sigma(gap) if labels == "bradley_terry" else (0.5 if gap == 0 else float(gap > 0))
        for pair, weight in (((i, j), both * p), ((j, i), both * (1 - p))):
            if weight > 0:
                pairs.append(pair)
                weights.append(weight)
    return PairSet(pairs, weights, ties)


def make_labels(group: Sequence[Trajectory], labels: LabelRule, seed: int = 0) -> list[float]:
    """Chance that each of one prompt's trajectories is labelled desirable, judged against their mean worth R.

    That is their mean rank, or else their mean return.

    ``hard``: 1 above the mean, 0 below, one half at it. ``bradley_terry``: sigma(R - mean).
    ``sampled``: 0 or 1, drawn with that probability.
    """
    mean = sum(t.weight * t.preference_score for t in group) / sum(t.weight for t in group)
    gaps = [t.preference_score - mean for t in group]
    if labels == "hard":
        return [0.5 if abs(gap) < 1e-9 else float(gap > 0) for gap in gaps]
    chances = [_sigma(gap) for gap in gaps]
    if labels == "bradley_terry":
        return chances
    return [float(u < p) for u, p in zip(_draws(group, "labels", seed, (len(group),)), chances, strict=True)]
