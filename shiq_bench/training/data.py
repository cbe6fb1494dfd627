"""From trajectories to tensors: prompt groups, preference pairs, padded and packed layouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shiq_bench.api import Algorithm, Pairs, Rewards
from shiq_bench.batch import Batch, Stats, TokenStats
from shiq_bench.ops import scatter_actions
from shiq_bench.records import Trajectory

Layout = Literal["padded", "packed"]
PairLabels = Literal["hard", "bradley_terry"]


@dataclass(frozen=True)
class Row:
    """A trajectory with what was computed about it beforehand.

    ``reward_shift`` is subtracted from the return, at the last action (centring moves v*, not pi*).
    ``ref_logp`` and ``ref_lse`` are ``[T]`` over its action tokens.
    """

    trajectory: Trajectory
    reward_shift: float = 0.0
    ref_logp: np.ndarray | None = None
    ref_lse: np.ndarray | None = None


@dataclass(frozen=True)
class PairSet:
    """Preference pairs of one group: indices into it, weights, and how many ties were dropped."""

    pairs: list[tuple[int, int]]
    weights: list[float]
    ties: int


def make_pairs(group: Sequence[Trajectory], need: Pairs, labels: PairLabels) -> PairSet:
    """Preference pairs from the returns of one prompt's trajectories.

    ``hard``: every pair of unequal return once, the higher first. ``bradley_terry``: both orders,
    weighted by sigma(R - R') and its complement, the expected labels of a Bradley-Terry judge.
    Weights of the trajectories multiply. A tie carries no hard label: it is dropped and counted
    where the need says so, else kept in both orders at one half.
    """
    out = PairSet([], [], 0)
    ties = 0
    for i in range(len(group)):
        for j in range(i + 1, len(group)):
            gap = group[i].total_reward - group[j].total_reward
            both = group[i].weight * group[j].weight
            if gap == 0 and need.ties == "drop" and labels == "hard":
                ties += 1
                continue
            p = 0.5 * (1 + math.tanh(gap / 2)) if labels == "bradley_terry" else (0.5 if gap == 0 else float(gap > 0))
            for pair, weight in (((i, j), both * p), ((j, i), both * (1 - p))):
                if weight > 0:
                    out.pairs.append(pair)
                    out.weights.append(weight)
    return PairSet(out.pairs, out.weights, ties)


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
    rewards = [r for r, a in zip(t.rewards, t.action_mask, strict=True) if a]
    if rewards:
        rewards[-1] -= row.reward_shift
    return rewards


def lay_out(trajectories: Sequence[Trajectory], layout: Layout) -> dict[str, Tensor]:
    """Model inputs for some trajectories, and where in them the actions are.

    Returns:
        ``input_ids``, ``position_ids`` (and ``attention_mask`` when padded) of shape ``[N, L]``,
        or ``[1, sum L]`` when packed; ``index [M]``, the flat position of the state before each
        action; ``targets [M]``; ``mask [N, A]``. M runs through the trajectories in order.
    """
    lengths = [len(t.token_ids) for t in trajectories]
    width = sum(lengths) if layout == "packed" else max(lengths)
    rows = 1 if layout == "packed" else len(trajectories)
    ids = torch.zeros(rows, width, dtype=torch.long)
    positions = torch.zeros(rows, width, dtype=torch.long)
    attention = torch.zeros(rows, width, dtype=torch.long)
    index: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    offset = 0
    for n, t in enumerate(trajectories):
        row, start = (0, offset) if layout == "packed" else (n, 0)
        span = slice(start, start + lengths[n])
        ids[row, span] = torch.tensor(t.token_ids)
        positions[row, span] = torch.arange(lengths[n])
        attention[row, span] = 1
        actions = [i for i, a in enumerate(t.action_mask) if a]
        index += [row * width + start + i - 1 for i in actions]
        targets += [t.token_ids[i] for i in actions]
        counts.append(len(actions))
        offset += lengths[n]
    widest = max(1, max(counts))
    out = {
        "input_ids": ids,
        "position_ids": positions,
        "index": torch.tensor(index, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
        "mask": torch.arange(widest)[None] < torch.tensor(counts)[:, None],
    }
    if layout == "padded":
        out["attention_mask"] = attention
    return out


class Collator:
    """Prompt groups to a dict of tensors, as the trainer's data loader wants it.

    Args:
        algorithm: read for its needs only.
        layout: ``padded`` or ``packed``.
        labels: how returns become preference pairs.
    """

    def __init__(self, algorithm: Algorithm, layout: Layout, labels: PairLabels) -> None:
        need = algorithm.need(Pairs)
        self.pairs = need if isinstance(need, Pairs) else None
        self.layout: Layout = layout
        self.labels: PairLabels = labels

    def __call__(self, groups: Sequence[Sequence[Row]]) -> dict[str, Tensor]:
        """Tensors of :func:`lay_out`, of :class:`~shiq_bench.batch.Batch`, and ``ref_logp``/``ref_lse``."""
        rows = [row for group in groups for row in group]
        out = lay_out([row.trajectory for row in rows], self.layout)
        mask = out["mask"]

        def actions(values: list[list[float]]) -> Tensor:
            return scatter_actions(torch.tensor([v for row in values for v in row], dtype=torch.float32), mask)

        out["rewards"] = actions([action_rewards(row) for row in rows])
        sampler = [t.sampler_logp or (math.nan,) * len(t.token_ids) for t in (row.trajectory for row in rows)]
        out["sampler_logp"] = actions(
            [
                [v for v, a in zip(s, row.trajectory.action_mask, strict=True) if a]
                for s, row in zip(sampler, rows, strict=True)
            ]
        )
        out["group"] = torch.tensor([g for g, group in enumerate(groups) for _ in group])
        out["weight"] = torch.tensor([row.trajectory.weight for row in rows], dtype=torch.float32)
        out["truncated"] = torch.tensor([row.trajectory.truncated for row in rows])
        pairs: list[tuple[int, int]] = []
        weights: list[float] = []
        first = 0
        for group in groups:
            if self.pairs is not None:
                found = make_pairs([row.trajectory for row in group], self.pairs, self.labels)
                pairs += [(first + i, first + j) for i, j in found.pairs]
                weights += found.weights
            first += len(group)
        out["pairs"] = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        out["pair_weight"] = torch.tensor(weights, dtype=torch.float32)
        if all(row.ref_logp is not None and row.ref_lse is not None for row in rows):
            out["ref_logp"] = actions([row.ref_logp.tolist() for row in rows if row.ref_logp is not None])
            out["ref_lse"] = actions([row.ref_lse.tolist() for row in rows if row.ref_lse is not None])
        return out


def to_batch(inputs: dict[str, Tensor]) -> Batch:
    """The part of a collated dict that a loss sees."""
    names = ("mask", "rewards", "sampler_logp", "group", "weight", "truncated", "pairs", "pair_weight")
    return Batch(**{name: inputs[name] for name in names})


def to_stats(outputs: dict[str, Tensor], inputs: dict[str, Tensor]) -> Stats:
    """Flat model outputs and cached reference columns, as the loss sees them: ``[N, A]`` each."""
    mask = inputs["mask"]
    policy = TokenStats(*(scatter_actions(outputs[name], mask) for name in ("logp", "lse")))
    if "ref_logp" not in inputs:
        return Stats(policy)
    return Stats(policy, TokenStats(inputs["ref_logp"].to(policy.logp.dtype), inputs["ref_lse"].to(policy.lse.dtype)))


def group_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by prompt, prompts in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.trajectory.prompt_id, []).append(row)
    return list(groups.values())


def prepare(
    trajectories: Sequence[Trajectory],
    reference: Sequence[tuple[np.ndarray, np.ndarray]] | None,
    algorithm: Algorithm,
    center_rewards: bool,
) -> list[list[Row]]:
    """Training groups, with reference columns and centring where the algorithm wants them."""
    means = centred(trajectories) if center_rewards and algorithm.need(Rewards) else {}
    rows = []
    for i, trajectory in enumerate(trajectories):
        logp, lse = reference[i] if reference is not None else (None, None)
        rows.append(Row(trajectory, means.get(trajectory.prompt_id, 0.0), logp, lse))
    return group_rows(rows)
