"""Prompt groups to tensors, as prefix trees or padded rows, and model outputs to what a loss sees."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, Stats, TokenStats, scatter_actions
from shiq_bench.api.needs import Labels, Mismatched, Pairs
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.groups import LabelRule, PairChoice, Row, action_rewards, make_labels, make_pairs
from shiq_bench.records.errors import UserError

#: How trajectories share a forward pass: those of a prompt as one prefix tree, or each as a padded row.
Layout = Literal["tree", "padded"]

#: Tokens in one forward pass of training; on two cores more saved no time, and cost memory.
TOKENS = 4096

#: Nodes of a tree: attention sees a square of them, whose mask in float32 is 256 MiB here.
LARGEST = 8192

#: Nodes of a row whose attention, dense under its mask, costs what all else does: 1,000 as measured on two cores with a
#: model of 135 M parameters, more with wider ones, six times the hidden size where both run at one rate.
BALANCE = 2048


@dataclass(frozen=True)
class Tree:
    """Sequences of token ids in one row that holds once what they share, depth first.

    A node sees its ancestors and itself: q sees k where ``k <= q < end[k]``.

    Attributes:
        members: which sequences.
        ids, depth, end: of each node its token, its position in its sequences, and the node behind its last
            descendant. ``[S]`` each
        nodes: of each member the nodes of its tokens.
    """

    members: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    nodes: list[list[int]] = field(default_factory=list)


def cost(nodes: int) -> float:
    """What a row takes, in tokens without attention."""
    return nodes * (1 + nodes / BALANCE)


def plant(sequences: Sequence[Sequence[int]], members: Iterable[int], largest: int = LARGEST) -> list[Tree]:
    """The prefix tree of some of the sequences, or several: one joins a tree if it costs less there than alone.

    No tree is over ``largest`` nodes but one of a single sequence that is longer.
    """
    trees: list[Tree] = []
    path: list[int] = []  # nodes of the sequence before, which shares the most with this one
    before: Sequence[int] = ()
    for n in sorted(members, key=lambda n: tuple(sequences[n])):
        now = sequences[n]
        shared = next(
            (i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now))
        )
        size = len(trees[-1].ids) if trees else 0
        joint = size + len(now) - shared
        if not trees or joint > largest or cost(joint) - cost(size) > cost(len(now)):
            trees.append(Tree())
            path, shared, size = [], 0, 0
        tree = trees[-1]
        path = [*path[:shared], *range(size, size + len(now) - shared)]
        tree.members.append(n)
        tree.ids.extend(now[shared:])
        tree.depth.extend(range(shared, len(now)))
        tree.end.extend([0] * (len(now) - shared))
        tree.nodes.append(path)
        for node in path:
            tree.end[node] = len(tree.ids)
        before = now
    return trees


def grow(sequences: Sequence[Sequence[int]], groups: Iterable[Hashable], largest: int = LARGEST) -> list[Tree]:
    """Trees of the sequences of each group, in order of first appearance: see :func:`plant`."""
    found: dict[Hashable, list[int]] = {}
    for n, group in enumerate(groups):
        found.setdefault(group, []).append(n)
    return [tree for members in found.values() for tree in plant(sequences, members, largest)]


def forest(trajectories: Sequence[Trajectory], layout: Layout, largest: int = LARGEST) -> list[Tree]:
    """Trees of each prompt's trajectories; or, padded, one a trajectory."""
    groups = range(len(trajectories)) if layout == "padded" else [t.prompt_id for t in trajectories]
    return grow([t.token_ids for t in trajectories], groups, largest)


def passes(trees: Iterable[Tree], tokens: int) -> Iterator[list[Tree]]:
    """Trees by at most ``tokens`` tokens, padding included; largest first, and one may be larger."""
    batch: list[Tree] = []
    for tree in sorted(trees, key=lambda tree: -len(tree.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > tokens:
            yield batch
            batch = []
        batch.append(tree)
    if batch:
        yield batch


def tree_rows(trees: Sequence[Tree], layout: Layout) -> tuple[dict[str, Tensor], dict[int, list[int]]]:
    """Model inputs that hold a tree a row, and of each member the flat positions of its tokens.

    Returns:
        ``input_ids``, ``position_ids`` and, of a padded layout, ``attention_mask``, else ``end`` (see :class:`Tree`;
        0 in the padding), each ``[rows, L]``.
    """
    width = max(len(tree.ids) for tree in trees)
    ids, positions, last = (torch.zeros(len(trees), width, dtype=torch.long) for _ in range(3))
    nodes: dict[int, list[int]] = {}
    for row, tree in enumerate(trees):
        span = slice(len(tree.ids))
        ids[row, span] = torch.tensor(tree.ids)
        positions[row, span] = torch.tensor(tree.depth)
        last[row, span] = 1 if layout == "padded" else torch.tensor(tree.end)
        for n, path in zip(tree.members, tree.nodes, strict=True):
            nodes[n] = [row * width + node for node in path]
    seen = "attention_mask" if layout == "padded" else "end"
    return {"input_ids": ids, "position_ids": positions, seen: last}, nodes


def lay_out(trajectories: Sequence[Trajectory], layout: Layout) -> dict[str, Tensor]:
    """Model inputs for some trajectories, and where in them the actions are.

    Returns:
        Those of :func:`tree_rows`; ``mask [N, A]``. Of every action once, however many trajectories share
        it: ``index [U]``, the flat position of the state before it, and ``targets [U]``; ``spread [M]`` says which of
        them each action is, where M runs through the trajectories in order.
    """
    rows, nodes = tree_rows(forest(trajectories, layout), layout)
    # An action and the state before it are neighbours on the path of every trajectory that takes it.
    taken: list[tuple[int, int]] = []
    for n, t in enumerate(trajectories):
        path = nodes[n]
        taken += [(path[i], path[i - 1]) for i, a in enumerate(t.action_mask) if a]
    found, first, spread = np.unique([node for node, _ in taken], return_index=True, return_inverse=True)
    counts = torch.tensor([sum(t.action_mask) for t in trajectories])
    return rows | {
        "index": torch.tensor([taken[i][1] for i in first], dtype=torch.long),
        "targets": rows["input_ids"].flatten()[torch.as_tensor(found, dtype=torch.long)],
        "spread": torch.as_tensor(spread, dtype=torch.long),
        "mask": torch.arange(max(1, int(counts.max())))[None] < counts[:, None],
    }


def cut(sizes: Sequence[int], limit: int) -> list[range]:
    """Neighbours in parts of at most ``limit`` together; what is larger goes alone."""
    parts: list[range] = []
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            parts.append(range(start, i))
            start, total = i, 0
        total += size
    return [*parts, range(start, len(sizes))] if sizes else []


@dataclass(frozen=True)
class Collator:
    """Prompt groups to a dict of tensors, as the trainer's data loader wants it.

    Args:
        algorithm: read for its needs only.
        layout: ``tree`` or ``padded``.
        labels: how returns become preferences.
        seed: of preferences that are drawn.
        choice: which two of a prompt's trajectories make a pair.
        tokens: most that :meth:`parts` lays out together; 0 is :data:`TOKENS`, or a tree's where those are more.
        dtype: of rewards, weights and reference columns.
    """

    algorithm: Algorithm
    layout: Layout
    labels: LabelRule
    seed: int = 0
    choice: PairChoice = "all"
    tokens: int = 0
    dtype: torch.dtype = torch.float32

    def parts(self, groups: Sequence[Sequence[Row]]) -> list[dict[str, Tensor]]:
        """The groups in micro-batches of few enough tokens: whole groups each, answers where a group is too large and
        the loss does not couple them, or all groups where it couples those.

        Raises:
            UserError: what must stay together is more than ``tokens``.
        """
        limit = self.tokens or TOKENS
        pieces = [piece for group in groups for piece in self._pieces(group, limit)]
        sizes = [self.size(piece) for piece in pieces]
        parts = [range(len(pieces))] if pieces and self.algorithm.couples_groups else cut(sizes, limit)
        most = max((sum(sizes[i] for i in part) for part in parts), default=0)
        if most > limit and self.tokens:
            instead = "lower samples, or groups_per_step" if self.couples_answers else "lower max_length"
            raise UserError(
                f"tokens_per_pass={limit}, and what the loss takes together lays out {most} tokens: "
                f"set tokens_per_pass={most}, or {instead}"
            )
        return [self([pieces[i] for i in part]) for part in parts]

    @property
    def couples_answers(self) -> bool:
        """Whether all trajectories of a prompt have to be in one micro-batch."""
        grouped = any(self.algorithm.need(kind) for kind in (Pairs, Labels, Mismatched))
        return grouped or self.algorithm.couples_groups or self.algorithm.couples_answers

    def _pieces(self, group: Sequence[Row], limit: int) -> list[Sequence[Row]]:
        """A group in parts of at most ``limit`` tokens, as far as the loss allows and answers are not longer.

        A tree is cut where ``tokens`` asks for it alone, for each part computes the prompt again.
        """
        if self.couples_answers:
            return [group]
        trees = forest([row.trajectory for row in group], self.layout, min(self.tokens or LARGEST, LARGEST))
        parts = cut([len(tree.ids) for tree in trees], limit)
        return [[group[n] for i in part for n in trees[i].members] for part in parts]

    def size(self, group: Sequence[Row]) -> int:
        """Tokens that a group lays out."""
        together = [t for row in group for t in (row.trajectory, row.mismatch) if t is not None]
        return sum(len(tree.ids) for tree in forest(together, self.layout))

    def together(self, group: Sequence[Row]) -> int:
        """Most tokens of a group that no limit parts."""
        return self.size(group) if self.couples_answers else max(len(row.trajectory.token_ids) for row in group)

    def __call__(self, groups: Sequence[Sequence[Row]]) -> dict[str, Tensor]:
        """Tensors of :func:`lay_out`, of :class:`~shiq_bench.api.batch.Batch`, and ``ref_logp``/``ref_lse``.

        Mismatched trajectories, where rows have them, are laid out behind the real ones: ``spread``
        runs on through them, and ``mis_mask`` is their mask. ``[N, A]``
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
            ``q0_lse`` ..., ``sum_logits``. ``[U]``: see :func:`lay_out`.
        reference: of a live reference, which wins over cached columns.
        behaviour: of the behaviour model.
        target: of the target network, heads included.
        max_ratio: ``[U]``
        actions: size of the vocabulary.
    """
    mask, mates = inputs["mask"], inputs.get("mis_mask")
    n = len(mask)
    everywhere = mask if mates is None else torch.cat([mask, mates])

    def place(flat: Tensor) -> Tensor:
        return scatter_actions(flat[inputs["spread"]], everywhere)

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
