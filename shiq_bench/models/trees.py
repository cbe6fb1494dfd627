"""Rows that are prefix trees through a model of transformers: which models take them, their mask, what is read off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shiq_bench.data.collation import LARGEST, Layout

#: What a model knows at some places: tensors whose first axis is the place. ``[U, ...]``
States = tuple[Tensor, ...]

#: Entries of the masks of one forward pass, those of a largest tree: 256 MiB in float32.
MASK = LARGEST**2


def buckets(lengths: Sequence[int], shortest: float = 0.8, area: int = MASK) -> list[tuple[list[int], int]]:
    """Rows in groups of similar length, with the longest of each.

    None is shorter than ``shortest`` of the longest, and a group's squares of the longest are at most ``area``
    together; a row whose own is more goes alone.
    """
    out: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not out or lengths[row] < shortest * out[-1][1] or (len(out[-1][0]) + 1) * out[-1][1] ** 2 > area:
            out.append(([], lengths[row]))
        out[-1][0].append(row)
    return out


def ancestors(end: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask of rows that are prefix trees, to be added to attention scores: q sees k where k <= q < end[k].

    One tensor for all layers: of a bool each would make one of its own, and keep it for the backward pass.

    Args:
        end: of each node what lies behind its last descendant; 0 in the padding, which sees itself. ``[B, L]``
        dtype: the queries'.

    Returns:
        0 where seen. ``[B, 1, L, L]``
    """
    q = torch.arange(end.shape[1], device=end.device)[:, None]
    k = q.T
    seen = ((k <= q) & (q < end[:, None, :]) | (k == q))[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=end.device).masked_fill_(~seen, torch.finfo(dtype).min)


def states_at(index: Tensor, inputs: dict[str, Tensor], model: Any, run: Callable[..., States]) -> States:
    """What ``run`` gives at some positions of laid-out rows.

    Rows run in :func:`buckets`, each cut to its own longest, so that one long dialogue does not make all the others as
    expensive as itself.

    Args:
        index: flat positions, in ``B * L``. ``[U]``
        inputs: see :func:`shiq_bench.data.collation.tree_rows`.
        run: the model's inputs to tensors of ``[B, L, ...]``.
    """
    kept = {k: inputs[k] for k in ("input_ids", "position_ids", "attention_mask", "end") if k in inputs}
    filled = kept["end" if "end" in kept else "attention_mask"] > 0
    row, column = index // filled.shape[1], index % filled.shape[1]
    device = index.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    out: list[Tensor] = []
    for members, longest in buckets(filled.sum(1).tolist()):
        bucket = {k: v[members, :longest] for k, v in kept.items()}
        if "end" in bucket:
            bucket["attention_mask"] = ancestors(bucket.pop("end"), dtype)
        parts = run(**bucket)
        out = out or [part.new_zeros(len(row), part.shape[-1]) for part in parts]
        place = torch.full((len(filled),), -1, device=row.device)
        place[members] = torch.arange(len(members), device=row.device)
        (here,) = torch.where(place[row] >= 0)
        for whole, part in zip(out, parts, strict=True):
            whole[here] = part[place[row[here]], column[here]]
    return tuple(out)


@torch.no_grad()
def takes_trees(model: Any, vocab: int, read: Callable[[Sequence[Sequence[int]], Layout], Tensor]) -> bool:
    """Whether two sequences that share a beginning, laid out as a tree, come to what they come to as two rows.

    A window would have to be cut out of the tree by depth, and is too wide for a short probe to see, so configs
    that name one are refused; state-space models see whatever came before.

    Args:
        vocab: token ids are below it.
        read: what is compared of the sequences in a layout.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    windows = ["window_size", "attention_window_size", "attention_chunk_size"]
    windows += ["sliding_window"] if getattr(config, "use_sliding_window", True) else []
    windowed = any(getattr(config, name, None) for name in windows)
    if kinds or windowed or config._attn_implementation not in ("sdpa", "eager"):
        return False
    was_training = model.training
    model.eval()
    a, b = 0, vocab - 1
    probes = [(a, b, a, c, c, b) for c in (a, b)]
    try:
        tree, rows = (read(probes, layout).float() for layout in ("tree", "padded"))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a mask of four dimensions is refused in many ways
        return False
    finally:
        model.train(was_training)
    close = 2e-2 if model.dtype == torch.bfloat16 else 1e-3
    return tree.shape == rows.shape and bool((tree - rows).abs().max() <= close * rows.abs().max())
