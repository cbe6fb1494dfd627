"""Prompt groups to tensors, padded or packed, and model outputs to what a loss sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, Stats, TokenStats, scatter_actions
from shiq_bench.api.needs import Labels, Pairs
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.groups import LabelRule, PairChoice, Row, action_rewards, make_labels, make_pairs

#: How trajectories share a forward pass: as padded rows, or in one packed row.
Layout = Literal["padded", "packed"]


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
    ids, positions, attention = (torch.zeros(rows, width, dtype=torch.long) for _ in range(3))
    index: list[int] = []
    targets: list[int] = []
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
        offset += lengths[n]
    counts = torch.tensor([sum(t.action_mask) for t in trajectories])
    out = {
        "input_ids": ids,
        "position_ids": positions,
        "index": torch.tensor(index, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
        "mask": torch.arange(max(1, int(counts.max())))[None] < counts[:, None],
    }
    if layout == "padded":
        out["attention_mask"] = attention
    return out


@dataclass(frozen=True)
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

    algorithm: Algorithm
    layout: Layout
    labels: LabelRule
    seed: int = 0
    choice: PairChoice = "all"
    dtype: torch.dtype = torch.float32

    def __call__(self, groups: Sequence[Sequence[Row]]) -> dict[str, Tensor]:
        """Tensors of :func:`lay_out`, of :class:`~shiq_bench.api.batch.Batch`, and ``ref_logp``/``ref_lse``.

        Mismatched trajectories, where rows have them, are laid out behind the real ones: ``index``
        and ``targets`` run on through them, and ``mis_mask`` is their mask. ``[N, A]``
        """
        need, desirable = self.algorithm.need(Pairs), self.algorithm.need(Labels) is not None
        rows = [row for group in groups for row in group]
        trajectories = [row.trajectory for row in rows]
        mates = [row.mismatch for row in rows if row.mismatch is not None]
        out = lay_out(trajectories + mates, self.layout)
        if mates:
            out["mis_mask"] = out["mask"][len(rows) :]
        out["mask"] = mask = out["mask"][: len(rows)]

        def actions(values: Sequence[Sequence[float] | np.ndarray], where: Tensor = mask) -> Tensor:
            flat = np.concatenate([np.asarray(row, dtype=np.float64) for row in values])
            return scatter_actions(torch.as_tensor(flat, dtype=self.dtype), where)

        out["rewards"] = actions([action_rewards(row) for row in rows])
        out["sampler_logp"] = actions(
            [list(compress(t.sampler_logp or repeat(math.nan), t.action_mask)) for t in trajectories]
        )
        out["group"] = torch.tensor([g for g, group in enumerate(groups) for _ in group])
        out["weight"] = torch.tensor([t.weight for t in trajectories], dtype=self.dtype)
        pairs: list[tuple[int, int]] = []
        weights: list[float] = []
        labels: list[float] = []
        first = 0
        for group in groups:
            members = [row.trajectory for row in group]
            if need is not None:
                found = make_pairs(members, need, self.labels, self.seed, self.choice)
                pairs += [(first + i, first + j) for i, j in found.pairs]
                weights += found.weights
            if desirable:
                labels += make_labels(members, self.labels, self.seed)
            first += len(group)
        out["pairs"] = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        out["pair_weight"] = torch.tensor(weights, dtype=self.dtype)
        if desirable:
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
    names = ("mask", "rewards", "sampler_logp", "group", "weight", "pairs", "pair_weight")
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
