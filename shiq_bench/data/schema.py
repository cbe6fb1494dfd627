"""What a dataset's folder holds, and what is counted of it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shiq_bench.api.trajectory import Trajectory

#: Version of the folder. Readers refuse a newer one by name.
DATASET_VERSION = 2

KIND = "shiq-bench dataset"

DATA, MANIFEST, CARD, TOKENIZER = "data.parquet", "dataset.json", "README.md", "tokenizer"

#: Digits of the hash of ``data.parquet`` that enter the identity of a run.
HASH = 16

#: Column -> its type and what it holds. One row is a trajectory.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "prompt_id": ("string", "the task's prompt; trajectories that share it form a group"),
    "token_ids": ("list<int32>", "prompt, actions and observations in order, as ids of the tokenizer in `tokenizer/`"),
    "action_mask": ("list<bool>", "true where the policy emitted the token"),
    "rewards": ("list<double>", "reward credited at each token, zero off the actions"),
    "sampler_logp": (
        "list<double>",
        "log-probability (nats) of each action under its sampler, zero elsewhere; or null",
    ),
    "truncated": ("bool", "the dialogue was cut by a limit rather than ended by the policy"),
    "source": ("string", "who acted: `reference` (sampled), `gold` (the task's demonstration), or the task's own"),
    "weight": ("double", "weight in expectations"),
    "rank": ("double", "what preference methods compare by, higher preferred; null: the return"),
    "text": ("string", "all tokens decoded, for people: nothing is trained from it"),
    "total_reward": ("double", "the return: sum of `rewards`"),
}

#: Settings of the run that decide a dataset, and what it takes to draw it.
BUILD = (
    "model", "revision", "trust_remote_code", "samples", "gold", "data_seed", "engine", "max_tokens", "max_length",
    "gpu_memory",
)  # fmt: skip

#: What the record of a run says about the dataset it was trained from.
ORIGIN = (
    "sha256", "model", "weights_hash", "tokenizer_hash", "task_options", "split", "samples", "gold", "data_seed",
    "max_tokens", "max_length", "source_hash", "git_commit",
)  # fmt: skip

REQUIRED: Mapping[str, type] = {
    "task": str, "task_options": dict, "samples": int, "gold": bool, "data_seed": int, "sha256": str,
    "weights_hash": str, "tokenizer_hash": str, **dict.fromkeys(("model", "split"), str),
}  # fmt: skip


class Decoder(Protocol):
    """What both a bare tokenizer and one of transformers can do."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str: ...


def describe(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Counts and mean returns (weighted, by source), as a record and a manifest say them."""
    returns: dict[str, list[tuple[float, float]]] = {}  # weight and return
    for t in trajectories:
        returns.setdefault(t.source, []).append((t.weight, t.total_reward))
    return {
        "trajectories": len(trajectories),
        "prompts": len({t.prompt_id for t in trajectories}),
        "by_source": {s: len(rs) for s, rs in returns.items()},
        "mean_return": {s: sum(w * r for w, r in rs) / sum(w for w, _ in rs) for s, rs in returns.items()},
        "truncated": sum(t.truncated for t in trajectories),
        "action_tokens": sum(sum(t.action_mask) for t in trajectories),
    }


def histogram(returns: Sequence[tuple[str, float]], most: int = 10) -> list[tuple[str, dict[str, int]]]:
    """How often each return occurs, by source, in ascending order: the values themselves, or ``most`` equal bins.

    Args:
        returns: source and return of each trajectory.
        most: distinct values up to which none are thrown together.

    Returns:
        A label and the counts by source, a row. Counts add up to the trajectories.
    """
    values = sorted({r for _, r in returns})
    if len(values) <= most:
        names = [f"{v:.6g}" for v in values]
        # Values that differ in later digits than are printed share a row.
        place = dict(zip(values, names, strict=True))
        names = list(dict.fromkeys(names))
        found = Counter((place[r], s) for s, r in returns)
    else:
        low, width = values[0], (values[-1] - values[0]) / most
        ends = [f"{low + i * width:.4g}" for i in range(most + 1)]
        names = [f"{ends[i]} to {ends[i + 1]}" for i in range(most)]
        found = Counter((names[min(most - 1, int((r - low) / width))], s) for s, r in returns)
    sources = sorted({s for s, _ in returns})
    return [(name, {s: found[name, s] for s in sources}) for name in names]


def train_command(manifest: Mapping[str, Any], folder: str) -> str:
    """What to type to train from the dataset in ``folder``.

    The words that made it, for its model, plugins, limits and options of the task are those to train with.
    """
    words = shlex.split(manifest["command"])  # shiq-bench data build ...
    at = words.index("--out")
    return shlex.join(["shiq-bench", "run", "--algo", "shiq", *words[3:at], "--data", folder, *words[at + 2 :]])
