"""Reward models: scoring dialogues with one, fitting one to preference pairs, and judging how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shiq_bench.rewards.model import RewardModel

__all__ = ["open_reward_model"]


def open_reward_model(
    name: str,
    *,
    revision: str = "main",
    precision: Literal["fp32", "bf16"] = "fp32",
    trust_remote_code: bool = False,
) -> RewardModel:
    """The reward model of a folder or a hub id: any sequence classifier of transformers with one label.

    Its weights are loaded when a score is asked for that is not in the cache.

    Args:
        precision: of the weights; a linear head computes in float32 even so.
        trust_remote_code: run the code that came with the model. Such a model may have several
            labels if its output has a ``score``.

    Raises:
        UserError: there is no such model, it is no reward model, or its weights are not safetensors.
    """
    from shiq_bench.models import locate
    from shiq_bench.rewards.model import RewardModel

    return RewardModel(name, locate(name, revision, trust_remote_code), precision, trust_remote_code)
