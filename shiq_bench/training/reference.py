"""The reference pass: token statistics of a frozen policy on a fixed set of trajectories, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.collation import Layout, lay_out
from shiq_bench.data.groups import Columns
from shiq_bench.records.cache import cached_folder
from shiq_bench.records.hashing import stable_hash
from shiq_bench.training.policy import Policy, Scorer

#: Raise it when the same inputs would give other statistics, so that older ones are not used.
REFERENCE_VERSION = 1

#: Tokens in one forward pass without gradient.
TOKENS_PER_PASS = 16384


def batches(trajectories: Sequence[Trajectory], tokens: int = TOKENS_PER_PASS) -> Iterator[list[int]]:
    """Indices in batches of at most ``tokens`` padded tokens, longest first."""
    batch: list[int] = []
    for i in sorted(range(len(trajectories)), key=lambda i: -len(trajectories[i].token_ids)):
        if batch and (len(batch) + 1) * len(trajectories[batch[0]].token_ids) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def autocast(device: torch.device, precision: str) -> Any:
    """The autocast context of a precision; the head opts out of it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def over_actions(
    trajectories: Sequence[Trajectory],
    layout: Layout,
    policy: Scorer,
    compute: Callable[[dict[str, Tensor]], Sequence[Tensor]],
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[np.ndarray, ...]]:
    """Run ``compute`` (laid-out inputs, where the policy is, to some ``[M]`` tensors) over all trajectories.

    Returns:
        For each trajectory, in the order given, its part of each tensor; batches are of similar length. ``[T]``
    """
    device = next(policy.parameters()).device
    results: list[tuple[np.ndarray, ...]] = [()] * len(trajectories)
    with torch.no_grad():
        for batch in batches(trajectories):
            inputs = {k: v.to(device) for k, v in lay_out([trajectories[i] for i in batch], layout).items()}
            sizes = inputs["mask"].sum(1).tolist()
            columns = [np.split(t.cpu().numpy(), np.cumsum(sizes)[:-1]) for t in compute(inputs)]
            for place, i in enumerate(batch):
                results[i] = tuple(column[place] for column in columns)
            on_progress(len(batch))
    return results


def model_inputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :meth:`Policy.forward` takes, out of a laid-out or collated dict."""
    names = ("input_ids", "index", "targets", "position_ids", "attention_mask")
    return {k: inputs[k] for k in names if k in inputs}


def policy_stats(policy: Policy, trajectories: Sequence[Trajectory], layout: Layout, precision: str) -> list[Columns]:
    """``(logp, lse)`` over the action tokens of each trajectory, dropout off, no gradient."""
    was_training = policy.training
    policy.eval()

    def compute(inputs: dict[str, Tensor]) -> list[Tensor]:
        with autocast(inputs["input_ids"].device, precision):
            out = policy(**model_inputs(inputs))
        return [out["logp"], out["lse"]]

    results = over_actions(trajectories, layout, policy, compute)
    policy.train(was_training)
    return [(logp, lse) for logp, lse in results]


def reference_pass(
    policy: Policy, weights_hash: str, trajectories: Sequence[Trajectory], layout: Layout, precision: str
) -> list[Columns]:
    """:func:`policy_stats`, cached by everything that decides it and nothing else.

    The key holds the weights, token ids and masks, vocabulary, precision, attention
    implementation, layout and device type; never a learning rate, a seed or a folder.
    """
    key = {
        "version": REFERENCE_VERSION,
        "torch": torch.__version__,
        "weights": weights_hash,
        "data": stable_hash([[t.token_ids, t.action_mask] for t in trajectories]),
        "vocab": policy.vocab,
        "precision": precision,
        "dtype": str(next(policy.parameters()).dtype),
        "attention": policy.model.config._attn_implementation,
        "layout": layout,
        "device": next(policy.parameters()).device.type,
    }

    def build(folder: Path) -> None:
        stats = policy_stats(policy, trajectories, layout, precision)
        flat = {name: np.concatenate([s[i] for s in stats]) for i, name in enumerate(("logp", "lse"))}
        save_file({**flat, "sizes": np.array([len(s[0]) for s in stats])}, folder / "stats.safetensors")

    data = load_file(cached_folder("reference", key, build) / "stats.safetensors")
    cuts = np.cumsum(data["sizes"])[:-1]
    return list(zip(np.split(data["logp"], cuts), np.split(data["lse"], cuts), strict=True))
