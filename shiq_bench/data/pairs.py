"""Preference pairs and labels, from what one prompt's trajectories are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shiq_bench.api.needs import Pairs
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.records.hashing import stable_hash

LabelRule = Literal["hard", "bradley_terry", "sampled"]
PairChoice = Literal["all", "best_worst", "random"]


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
