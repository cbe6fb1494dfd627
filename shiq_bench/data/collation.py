"""Prompt groups to tensors, and model outputs to what a loss sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, Stats, TokenStats
from shiq_bench.api.needs import Labels, Pairs
from shiq_bench.api.ops import scatter_actions
from shiq_bench.data.groups import Row, action_rewards
from shiq_bench.data.layout import Layout, lay_out
from shiq_bench.data.pairs import LabelRule, PairChoice, make_labels, make_pairs


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
        """Tensors of :func:`lay_out`, of :class:`~shiq_bench.api.batch.Batch`, and ``ref_logp``/``ref_lse``.

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
