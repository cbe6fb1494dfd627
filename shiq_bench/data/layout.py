"""How trajectories share a forward pass: padded rows, or one packed row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from shiq_bench.api.trajectory import Trajectory

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
