"""Policies that train adapters alone, and the reference that is the same module with its adapters off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shiq_bench.models.lora import Lora, refuse_targets
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.training.policy import Policy, Scorer, States


def with_adapters(policy: Policy, lora: Lora, seed: int) -> Policy:
    """A policy over the same weights, frozen, with adapters that change nothing yet.

    The weights are shared: the policy given must not be used any more, but by way of :class:`WithoutAdapters`.

    Args:
        seed: of the adapters' random half.

    Raises:
        UserError: the model has none of the layers that are to be adapted, or they are its head or embedding.
    """
    from peft import LoraConfig, get_peft_model

    ends = (policy.model.get_output_embeddings(), policy.model.get_input_embeddings())
    layers = dict(policy.model.named_modules())
    refuse_targets(lora.targets, [name for name, layer in layers.items() if layer in ends])
    for target in lora.targets:  # peft is content if one of several is there
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            linear = {n.rpartition(".")[2] for n, m in layers.items() if isinstance(m, nn.Linear) and m not in ends}
            raise UserError(f"lora: the model has no layer {target!r}{suggest(target, sorted(linear))}")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type,unused-ignore]
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = get_peft_model(policy.model, config)
        except ValueError as error:
            raise UserError(f"lora: {' '.join(str(error).split())}") from error
    adapted = Policy(model, policy.vocab)
    adapted.eval()
    return adapted


class WithoutAdapters(Scorer):
    """A policy with its adapters switched off: the reference, without a second copy of the weights."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.vocab = policy.vocab

    @property
    def model(self) -> Any:
        """The model of transformers, adapters and all."""
        return self.policy.model

    def states(self, inputs: dict[str, Tensor]) -> States:
        with self.policy.model.disable_adapter():
            return self.policy.states(inputs)

    def logits(self, states: States) -> Tensor:
        return self.policy.logits(states)  # the head has no adapters

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        with self.policy.model.disable_adapter():
            return self.policy(**inputs)
