"""Policies beside the trained one: statistics of frozen ones, once or at every step; adapters over shared weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import numpy as safe_arrays
from safetensors import torch as safe_tensors
from torch import Tensor, nn

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.needs import BehaviourModel, MaxRatio, Reference, TargetNetwork
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.collation import Layout, forest, lay_out, passes
from shiq_bench.data.groups import Columns
from shiq_bench.models.lora import Lora, refuse_targets
from shiq_bench.models.trees import States
from shiq_bench.records.cache import cached_folder
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.hashing import stable_hash
from shiq_bench.training.policy import Policy, Scorer

#: Raise it when the same inputs would give other statistics, so that older ones are not used.
REFERENCE_VERSION = 3

#: Tokens in one forward pass without gradient.
TOKENS_PER_PASS = 16384


def batches(trajectories: Sequence[Trajectory], layout: Layout, tokens: int = TOKENS_PER_PASS) -> Iterator[list[int]]:
    """Indices in batches of at most ``tokens`` tokens: see :func:`shiq_bench.data.collation.passes`."""
    for batch in passes(forest(trajectories, layout), tokens):
        yield [n for tree in batch for n in tree.members]


def autocast(device: torch.device, precision: str) -> Any:
    """The autocast context of a precision; the head opts out of it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def over_actions(
    trajectories: Sequence[Trajectory],
    policy: Scorer,
    compute: Callable[[dict[str, Tensor]], Sequence[Tensor]],
    on_progress: Callable[[int], None] = lambda done: None,
    layout: Layout | None = None,
) -> list[tuple[np.ndarray, ...]]:
    """Run ``compute`` (laid-out inputs, where the policy is, to some ``[U]`` tensors) over all trajectories.

    Args:
        layout: by default the policy's.

    Returns:
        For each trajectory, in the order given, its part of each tensor; batches are of similar length. ``[T]``
    """
    device, layout = next(policy.parameters()).device, layout or policy.layout
    results: list[tuple[np.ndarray, ...]] = [()] * len(trajectories)
    with torch.no_grad():
        for batch in batches(trajectories, layout):
            inputs = {k: v.to(device) for k, v in lay_out([trajectories[i] for i in batch], layout).items()}
            cuts = np.cumsum(inputs["mask"].sum(1).tolist())[:-1]
            columns = [np.split(t[inputs["spread"]].cpu().numpy(), cuts) for t in compute(inputs)]
            for place, i in enumerate(batch):
                results[i] = tuple(column[place] for column in columns)
            on_progress(len(batch))
    return results


def model_inputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :meth:`Policy.forward` takes, out of a laid-out or collated dict."""
    names = ("input_ids", "index", "targets", "position_ids", "attention_mask", "end")
    return {k: inputs[k] for k in names if k in inputs}


def policy_stats(policy: Policy, trajectories: Sequence[Trajectory], precision: str) -> list[Columns]:
    """``(logp, lse)`` over the action tokens of each trajectory, dropout off, no gradient."""
    was_training = policy.training
    policy.eval()

    def compute(inputs: dict[str, Tensor]) -> list[Tensor]:
        with autocast(inputs["input_ids"].device, precision):
            out = policy(**model_inputs(inputs))
        return [out["logp"], out["lse"]]

    results = over_actions(trajectories, policy, compute)
    policy.train(was_training)
    return [(logp, lse) for logp, lse in results]


def reference_pass(
    policy: Policy, weights_hash: str, trajectories: Sequence[Trajectory], precision: str
) -> list[Columns]:
    """:func:`policy_stats`, cached by everything that decides it and nothing else.

    The key holds the weights, token ids and masks, vocabulary, precision, attention
    implementation, layout and device type; never a learning rate, a seed or a folder.
    """
    key = {
        "version": REFERENCE_VERSION,
        "torch": torch.__version__,
        "weights": weights_hash,
        # What shares a tree is computed together, and rounded together.
        "data": stable_hash([[t.token_ids, t.action_mask, t.prompt_id] for t in trajectories]),
        "vocab": policy.vocab,
        "precision": precision,
        "dtype": str(next(policy.parameters()).dtype),
        "attention": policy.model.config._attn_implementation,
        "layout": policy.layout,
        "device": next(policy.parameters()).device.type,
    }

    def build(folder: Path) -> None:
        stats = policy_stats(policy, trajectories, precision)
        flat = {name: np.concatenate([s[i] for s in stats]) for i, name in enumerate(("logp", "lse"))}
        safe_arrays.save_file({**flat, "sizes": np.array([len(s[0]) for s in stats])}, folder / "stats.safetensors")

    data = safe_arrays.load_file(cached_folder("reference", key, build) / "stats.safetensors")
    cuts = np.cumsum(data["sizes"])[:-1]
    return list(zip(np.split(data["logp"], cuts), np.split(data["lse"], cuts), strict=True))


class Companions:
    """What an algorithm compares its policy with while it trains, kept out of the trained module.

    The optimiser, the checkpoint of the policy and its train mode never see them. Weights of the
    policy that are not trained (those below adapters) are shared with it, not copied.

    Args:
        policy: with its heads and starting weights; copied.
        algorithm: read for its needs only.
        behaviour: the fitted behaviour model, where the algorithm needs one.
        live_reference: whether the reference runs along even if it is never refreshed.
        precision: of the trained policy's forward pass, so that equal weights give equal numbers.

    Raises:
        UserError: a declared need lacks another that it is computed from.
    """

    def __init__(
        self, policy: Policy, algorithm: Algorithm, behaviour: Policy | None, live_reference: bool, precision: str
    ) -> None:
        reference, target, ratio = algorithm.need(Reference), algorithm.need(TargetNetwork), algorithm.need(MaxRatio)
        self.precision = precision
        self.tau = target.tau if target else 0.0
        self.refresh = reference.refresh if reference else 0
        self.floor = ratio.floor if ratio else None
        self.trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self.policies: dict[str, Policy] = {}
        if reference and (self.refresh or live_reference):
            self.policies["reference"] = _frozen(policy)
            self.policies["reference"].heads = None
        if target:
            self.policies["target"] = _frozen(policy)
        if algorithm.need(BehaviourModel):
            if behaviour is None:
                raise UserError(f"{type(algorithm).__name__} needs a behaviour model, and none was fitted")
            self.policies["behaviour"] = behaviour.requires_grad_(False).eval()
        if ratio and not {"target", "behaviour"} <= self.policies.keys():
            raise UserError(f"{type(algorithm).__name__}: MaxRatio needs TargetNetwork and BehaviourModel as well")

    @torch.no_grad()
    def statistics(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments of :func:`~shiq_bench.data.collation.to_stats`: ``[U]`` tensors of each policy."""
        with autocast(inputs["input_ids"].device, self.precision):
            states = {name: policy.states(inputs) for name, policy in self.policies.items()}
        out: dict[str, Any] = {
            name: policy.statistics(states[name], inputs["targets"]) for name, policy in self.policies.items()
        }
        if self.floor is not None:
            target, behaviour = self.policies["target"], self.policies["behaviour"]
            out["max_ratio"] = target.max_ratio(states["target"], behaviour, states["behaviour"], self.floor)
        return out

    @torch.no_grad()
    def update(self, policy: Policy, step: int) -> None:
        """After update number ``step``: the target moves by ``tau``, the reference is replaced when it is due."""
        if target := self.policies.get("target"):
            for old, new in zip(target.parameters(), policy.parameters(), strict=True):
                if new.requires_grad:
                    old.lerp_(new, self.tau)
        if self.refresh and step % self.refresh == 0:
            for old, new in zip(self.policies["reference"].parameters(), policy.model.parameters(), strict=True):
                if new.requires_grad:
                    old.copy_(new)

    def _moving(self) -> dict[str, dict[str, Tensor]]:
        """What training changes of each companion, by the names that it has in the policy."""
        moving = {"target": True, "reference": self.refresh > 0}
        return {
            name: {n: p.detach() for n, p in policy.named_parameters() if n in self.trained}
            for name, policy in self.policies.items()
            if moving.get(name)
        }

    def save(self, folder: Path) -> None:
        """What training changes, a file for each companion."""
        for name, tensors in self._moving().items():
            safe_tensors.save_file(tensors, folder / f"{name}.safetensors")

    def load(self, folder: Path) -> None:
        """Inverse of :meth:`save`."""
        for name, tensors in self._moving().items():
            kept = safe_tensors.load_file(folder / f"{name}.safetensors")
            for n, tensor in tensors.items():
                tensor.copy_(kept[n])


def _frozen(policy: Policy) -> Policy:
    shared = {id(p): p for p in policy.parameters() if not p.requires_grad}
    twin = copy.deepcopy(policy, shared).requires_grad_(False).eval()
    twin.sums_logits = False
    return twin


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
    adapted = Policy(model, policy.vocab, policy.layout)
    adapted.eval()
    return adapted


class WithoutAdapters(Scorer):
    """A policy with its adapters switched off: the reference, without a second copy of the weights."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.vocab, self.layout = policy.vocab, policy.layout

    def states(self, inputs: dict[str, Tensor]) -> States:
        with self.policy.model.disable_adapter():
            return self.policy.states(inputs)

    def logits(self, states: States) -> Tensor:
        return self.policy.logits(states)  # the head has no adapters

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        with self.policy.model.disable_adapter():
            return self.policy(**inputs)
