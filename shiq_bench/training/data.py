"""From trajectories to tensors: prompt groups, preference pairs, padded and packed layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from shiq_bench.api import Algorithm, Labels, Pairs, Rewards
from shiq_bench.batch import Batch, Stats, TokenStats
from shiq_bench.ops import scatter_actions
from shiq_bench.records import Trajectory, UserError, stable_hash

Layout = Literal["padded", "packed"]
LabelRule = Literal["hard", "bradley_terry", "sampled"]
PairChoice = Literal["all", "best_worst", "random"]
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
        order = sorted(range(n), key=lambda k: -group[k].merit)
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
    out = PairSet([], [], 0)
    ties = 0
    n = len(group)
    coins = _draws(group, "pairs", seed, (n, n)) if labels == "sampled" else None
    for i, j in chosen_pairs(group, choice, seed):
        gap = group[i].merit - group[j].merit
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
                out.pairs.append(pair)
                out.weights.append(weight)
    return PairSet(out.pairs, out.weights, ties)


def make_labels(group: Sequence[Trajectory], labels: LabelRule, seed: int = 0) -> list[float]:
    """Chance that each of one prompt's trajectories is labelled desirable, judged against their mean worth R.

    That is their mean rank, or else their mean return.

    ``hard``: 1 above the mean, 0 below, one half at it. ``bradley_terry``: sigma(R - mean).
    ``sampled``: 0 or 1, drawn with that probability.
    """
    mean = sum(t.weight * t.merit for t in group) / sum(t.weight for t in group)
    gaps = [t.merit - mean for t in group]
    if labels == "hard":
        return [0.5 if abs(gap) < 1e-9 else float(gap > 0) for gap in gaps]
    chances = [_sigma(gap) for gap in gaps]
    if labels == "bradley_terry":
        return chances
    return [float(u < p) for u, p in zip(_draws(group, "labels", seed, (len(group),)), chances, strict=True)]


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
        labels: how returns become preferences.
        seed: of preferences that are drawn.
        choice: which two of a prompt's trajectories make a pair.
        dtype: of rewards, weights and reference columns.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        layout: Layout,
        labels: LabelRule,
        seed: int = 0,
        choice: PairChoice = "all",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.pairs = algorithm.need(Pairs)
        self.desirable = algorithm.need(Labels) is not None
        self.layout: Layout = layout
        self.labels: LabelRule = labels
        self.seed = seed
        self.choice: PairChoice = choice
        self.dtype = dtype

    def __call__(self, groups: Sequence[Sequence[Row]]) -> dict[str, Tensor]:
        """Tensors of :func:`lay_out`, of :class:`~shiq_bench.batch.Batch`, and ``ref_logp``/``ref_lse``.

        Mismatched trajectories, where rows have them, are laid out behind the real ones: ``index``
        and ``targets`` run on through them, and ``mis_mask`` is their mask. ``[N, A]``
        """
        rows = [row for group in groups for row in group]
        mates = [row.mismatch for row in rows if row.mismatch is not None]
        out = lay_out([row.trajectory for row in rows] + mates, self.layout)
        mask = out["mask"][: len(rows)]
        if mates:
            out["mis_mask"] = out["mask"][len(rows) :]
        out["mask"] = mask

        def actions(values: Sequence[Sequence[float] | np.ndarray], where: Tensor = mask) -> Tensor:
            flat = np.concatenate([np.asarray(row, dtype=np.float64) for row in values])
            return scatter_actions(torch.as_tensor(flat, dtype=self.dtype), where)

        out["rewards"] = actions([action_rewards(row) for row in rows])
        sampler = [t.sampler_logp or (math.nan,) * len(t.token_ids) for t in (row.trajectory for row in rows)]
        out["sampler_logp"] = actions(
            [
                [v for v, a in zip(s, row.trajectory.action_mask, strict=True) if a]
                for s, row in zip(sampler, rows, strict=True)
            ]
        )
        out["group"] = torch.tensor([g for g, group in enumerate(groups) for _ in group])
        out["weight"] = torch.tensor([row.trajectory.weight for row in rows], dtype=self.dtype)
        out["truncated"] = torch.tensor([row.trajectory.truncated for row in rows])
        pairs: list[tuple[int, int]] = []
        weights: list[float] = []
        labels: list[float] = []
        first = 0
        for group in groups:
            members = [row.trajectory for row in group]
            if self.pairs is not None:
                found = make_pairs(members, self.pairs, self.labels, self.seed, self.choice)
                pairs += [(first + i, first + j) for i, j in found.pairs]
                weights += found.weights
            if self.desirable:
                labels += make_labels(members, self.labels, self.seed)
            first += len(group)
        out["pairs"] = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        out["pair_weight"] = torch.tensor(weights, dtype=self.dtype)
        if self.desirable:
            out["label"] = torch.tensor(labels, dtype=self.dtype)
        if all(row.reference is not None for row in rows):
            for i, name in enumerate(("ref_logp", "ref_lse")):
                out[name] = actions([row.reference[i] for row in rows if row.reference is not None])
        if mates and all(row.mismatch_reference is not None for row in rows):
            columns = [row.mismatch_reference for row in rows if row.mismatch_reference is not None]
            for i, name in enumerate(("mis_ref_logp", "mis_ref_lse")):
                out[name] = actions([c[i] for c in columns], out["mis_mask"])
        return out


def to_batch(inputs: Mapping[str, Tensor]) -> Batch:
    """The part of a collated dict that a loss sees."""
    names = ("mask", "rewards", "sampler_logp", "group", "weight", "truncated", "pairs", "pair_weight")
    return Batch(**{name: inputs[name] for name in names}, label=inputs.get("label"))


def to_stats(
    outputs: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    *,
    reference: Mapping[str, Tensor] | None = None,
    behaviour: Mapping[str, Tensor] | None = None,
    target: Mapping[str, Tensor] | None = None,
    max_ratio: Tensor | None = None,
    actions: int = 0,
) -> Stats:
    """Flat model outputs and cached reference columns, as the loss sees them: ``[N, A]`` each.

    Args:
        outputs: of the trained policy: ``logp`` and ``lse``, and of its heads ``value``, ``q0_logp``,
            ``q0_lse`` ..., ``sum_logits``. ``[M]`` over real, then mismatched actions.
        reference: of a live reference, which wins over cached columns.
        behaviour: of the behaviour model.
        target: of the target network, heads included.
        max_ratio: ``[M]``
        actions: size of the vocabulary.
    """
    mask, mates = inputs["mask"], inputs.get("mis_mask")
    n = len(mask)
    everywhere = mask if mates is None else torch.cat([mask, mates])

    def place(flat: Tensor) -> Tensor:
        return scatter_actions(flat, everywhere)

    def tokens(found: Mapping[str, Tensor], prefix: str = "", rows: slice = slice(0, n)) -> TokenStats:
        return TokenStats(place(found[f"{prefix}logp"])[rows], place(found[f"{prefix}lse"])[rows])

    def heads(found: Mapping[str, Tensor]) -> dict[str, Any]:
        count = sum(name.startswith("q") and name.endswith("_lse") for name in found)
        return {
            "value": place(found["value"])[:n] if "value" in found else None,
            "q": tuple(tokens(found, f"q{i}_") for i in range(count)),
        }

    def cached(prefix: str) -> TokenStats | None:
        if f"{prefix}logp" not in inputs:
            return None
        dtype = outputs["logp"].dtype
        return TokenStats(inputs[f"{prefix}logp"].to(dtype), inputs[f"{prefix}lse"].to(dtype))

    strangers = slice(n, 2 * n)
    mismatched_stats = None
    if mates is not None:
        against = tokens(reference, rows=strangers) if reference else cached("mis_ref_")
        mismatched_stats = Stats(tokens(outputs, rows=strangers), against)
    return Stats(
        policy=tokens(outputs),
        reference=tokens(reference) if reference else cached("ref_"),
        behaviour=tokens(behaviour) if behaviour else None,
        sum_logits=place(outputs["sum_logits"])[:n] if "sum_logits" in outputs else None,
        max_ratio=place(max_ratio)[:n] if max_ratio is not None else None,
        actions=actions,
        target=Stats(tokens(target), **heads(target)) if target else None,
        mismatched=mismatched_stats,
        **heads(outputs),
    )


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
    return group_rows(
        [
            Row(
                trajectory,
                means.get(trajectory.prompt_id, 0.0),
                reference[i] if reference is not None else None,
                mismatches[i] if mismatches is not None else None,
                mismatch_reference[i] if mismatch_reference is not None else None,
            )
            for i, trajectory in enumerate(trajectories)
        ]
    )
