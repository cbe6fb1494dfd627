"""A causal language model seen as a policy: token statistics at its action positions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Dense
from shiq_bench.api.needs import QHeads, SumLogits, ValueHead
from shiq_bench.api.token_stats import kl_rows, shaped, stats_from_logits, token_stats
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.collation import Layout, lay_out
from shiq_bench.models.source import ModelSource, first_line
from shiq_bench.models.trees import States, states_at, takes_trees
from shiq_bench.records.errors import UserError

#: Standard deviation of a fresh Q head's weights, that of most models' own.
Q_SCALE = 0.02


def chunks(actions: int, size: int = 512) -> Iterator[slice]:
    """Slices of so many actions, for the logits of few to be held at once; of none, an empty one."""
    return (slice(start, start + size) for start in range(0, max(1, actions), size))


def rows(states: States, where: slice) -> States:
    """The states of some of the actions."""
    return tuple(s[where] for s in states)


class Heads(nn.Module):
    """Learned functions of the final hidden state beside the language model's own head, in float32.

    Args:
        width: size of the hidden state.
        vocab: size of the tokenizer's vocabulary.
        value: whether there is a V, linear and zero at the start.
        q: how many Qs there are, linear, each initialised on its own.
        seed: of the Qs.
    """

    def __init__(self, width: int, vocab: int, value: bool, q: int, seed: int) -> None:
        super().__init__()
        # Drawn on the CPU, so that a seed means the same on every device.
        generator = torch.Generator().manual_seed(seed)
        self.value = nn.Parameter(torch.zeros(width)) if value else None
        self.bias = nn.Parameter(torch.zeros(())) if value else None
        self.q = nn.ParameterList(Q_SCALE * torch.randn(vocab, width, generator=generator) for _ in range(q))

    def forward(self, hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``hidden [U, D]`` -> ``value``, and ``q{i}_logp`` and ``q{i}_lse`` at the targets, each ``[U]``."""
        out: dict[str, Tensor] = {}
        if self.value is not None and self.bias is not None:
            with torch.autocast(hidden.device.type, enabled=False):
                out["value"] = hidden.float() @ self.value + self.bias
        for i, weight in enumerate(self.q):
            out[f"q{i}_logp"], out[f"q{i}_lse"] = token_stats(hidden, weight, targets)
        return out


class Scorer(nn.Module):
    """Anything that says how likely each action was: a policy, or what a method acts by."""

    vocab: int
    layout: Layout  # how it takes trajectories

    @abstractmethod
    def states(self, inputs: dict[str, Tensor]) -> States:
        """One pass of the network over laid-out inputs, down to where the actions are taken."""

    @abstractmethod
    def logits(self, states: States) -> Tensor:
        """At least float32. ``[U, V]`` with V >= ``vocab``: what lies beyond is no token."""

    @torch.no_grad()
    def compare(self, other: Scorer, inputs: dict[str, Tensor], chunk: int = 512) -> tuple[Tensor, Tensor, Tensor]:
        """``logp`` of self and of other, and exact KL(self || other), at each action; each ``[U]``, nats."""
        targets = inputs["targets"]
        mine, theirs = self.states(inputs), other.states(inputs)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for where in chunks(len(targets), chunk):
            logits, reference = self.logits(rows(mine, where)), other.logits(rows(theirs, where))
            logp, _ = stats_from_logits(logits, targets[where], self.vocab)
            ref_logp, _ = stats_from_logits(reference, targets[where], self.vocab)
            parts.append((logp, ref_logp, kl_rows(logits, reference, self.vocab)))
        logp, ref_logp, kl = (torch.cat(column) for column in zip(*parts, strict=True))
        return logp, ref_logp, kl


class Policy(Scorer):
    """Wraps a transformers causal LM so that its forward returns statistics instead of logits.

    Statistics are computed inside ``forward`` because a sharded wrapper (FSDP) only gathers the
    head there. Where ``hidden @ head.T``, scaled and softly capped as the config says, is not what the
    model calls its logits (a bias), the model's own are used instead, found out once on construction.

    Args:
        model: a transformers causal LM.
        vocab: size of the tokenizer's vocabulary; rows of the head beyond it are padding.
        layout: how to take trajectories; padded all the same where the model takes no trees.

    Raises:
        UserError: the tokenizer knows more tokens than the model has rows for.
    """

    def __init__(self, model: Any, vocab: int, layout: Layout = "tree") -> None:
        super().__init__()
        self.model = model
        self.vocab = vocab
        self.heads: Heads | None = None
        self.sums_logits = False
        size = model.get_output_embeddings().weight.shape[0]
        if vocab > size:
            raise UserError(f"the tokenizer has {vocab} tokens and the model {size}: they do not belong together")
        config = model.config.get_text_config()
        self.scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
        self.cap = getattr(config, "final_logit_softcapping", None) or 0.0
        self.plain_head = self._head_is_plain()
        self.layout = layout if layout == "padded" or self._takes_trees() else "padded"

    def equip(self, algorithm: Algorithm, seed: int) -> Self:
        """Add what an algorithm learns beside the logits; a policy that has its heads keeps them."""
        self.sums_logits = algorithm.need(SumLogits) is not None
        value, q = algorithm.need(ValueHead) is not None, algorithm.need(QHeads)
        if self.heads is None and (value or q):
            weight = self.model.get_output_embeddings().weight
            self.heads = Heads(weight.shape[1], self.vocab, value, q.count if q else 0, seed).to(weight.device)
        return self

    @property
    def body(self) -> Any:
        """The network below the head, with the adapters where there are any."""
        # What peft calls the base model is the model with its head.
        inner = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        return inner.base_model

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            return False
        was_training = self.model.training
        self.model.eval()
        ids = torch.arange(min(4, self.vocab), device=head.weight.device)[None]
        hidden = self.body(input_ids=ids, use_cache=False).last_hidden_state
        ours = shaped((hidden @ head.weight.T).float(), self.scale, self.cap)
        theirs = self.model(input_ids=ids).logits.float()
        self.model.train(was_training)
        return torch.allclose(ours, theirs, atol=1e-2 if hidden.dtype == torch.bfloat16 else 1e-4, rtol=1e-3)

    def _takes_trees(self) -> bool:
        """Whether the states before a probe's actions are the same in both layouts."""

        def read(probes: Sequence[Sequence[int]], layout: Layout) -> Tensor:
            made = [Trajectory("", tuple(ids), (False, *(True,) * (len(ids) - 1)), (0.0,) * len(ids)) for ids in probes]
            inputs = {k: v.to(self.model.device) for k, v in lay_out(made, layout).items()}
            return self.states(inputs)[0][inputs["spread"]]

        return takes_trees(self.model, self.vocab, read)

    def _body(self, **inputs: Any) -> tuple[States, Any]:
        """Final hidden states; or, where the head is not plain, logits, and hidden states if there are heads.

        Returns:
            Those tensors, ``[B, L, ...]`` each, and the cache of keys and values, if one was asked for.
        """
        inputs = {"use_cache": False, **inputs}
        if self.plain_head:
            out = self.body(**inputs)
            return (out.last_hidden_state,), getattr(out, "past_key_values", None)
        out = self.model(**inputs, output_hidden_states=self.heads is not None)
        return (out.logits, *((out.hidden_states[-1],) if self.heads is not None else ())), out.past_key_values

    def states(self, inputs: dict[str, Tensor]) -> States:
        """What :meth:`_body` knows at ``inputs["index"]``: see :func:`shiq_bench.models.trees.states_at`."""
        return states_at(inputs["index"], inputs, self.model, lambda **rows: self._body(**rows)[0])

    def logits(self, states: States) -> Tensor:
        if not self.plain_head:
            return states[0]
        logits = states[0].float() @ self.model.get_output_embeddings().weight.float().T
        return shaped(logits, self.scale, self.cap)

    def dense(self, states: States) -> Dense:
        """The whole distribution, and the Qs, at some states."""
        heads = self.heads.q if self.heads is not None else ()
        logits = self.logits(states)[..., : self.vocab]
        return Dense(logits.float(), tuple(states[-1].float() @ weight.T for weight in heads))

    def statistics(self, states: States, targets: Tensor) -> dict[str, Tensor]:
        """See :meth:`forward`."""
        weight = self.model.get_output_embeddings().weight
        if self.plain_head:
            logp, lse = token_stats(states[0], weight, targets, self.vocab, scale=self.scale, cap=self.cap)
        else:
            logp, lse = stats_from_logits(states[0], targets, self.vocab)
        out = {"logp": logp, "lse": lse}
        if self.heads is not None:
            out |= self.heads(states[-1], targets)
        if self.sums_logits:
            with torch.autocast(targets.device.type, enabled=False):
                if self.plain_head and not self.cap:
                    out["sum_logits"] = self.scale * (states[0].float() @ weight[: self.vocab].float().sum(0))
                else:
                    out["sum_logits"] = self.logits(states)[:, : self.vocab].float().sum(-1)
        return out

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Statistics of the actions.

        Args:
            input_ids: ``[B, L]``
            index: flat positions, in ``B * L``, of the states that the actions are taken in. ``[U]``
            targets: the actions. ``[U]``
            position_ids: ``[B, L]``
            attention_mask: ``[B, L]``, when padded.
            end: ``[B, L]``, of trees: see :class:`~shiq_bench.data.collation.Tree`.

        Returns:
            ``logp`` and ``lse``; what :class:`Heads` computes, where there are heads; ``sum_logits``,
            where asked for; each ``[U]``.
        """
        return self.statistics(self.states(inputs), inputs["targets"])

    @torch.no_grad()
    def max_ratio(
        self, states: States, behaviour: Policy, behaviour_states: States, floor: float, chunk: int = 512
    ) -> Tensor:
        """max_a pi(a|s) / pi_b(a|s) over actions that ``behaviour`` gives at least ``floor``; 0 without any. ``[U]``"""
        parts = []
        for where in chunks(len(states[0]), chunk):
            mine = self.dense(rows(states, where)).logits.log_softmax(-1)
            theirs = behaviour.dense(rows(behaviour_states, where)).logits.log_softmax(-1)
            parts.append((mine - theirs).exp().where(theirs.exp() >= floor, 0).amax(-1))
        return torch.cat(parts)


class ActingPolicy(Scorer):
    """What a method acts by, where that is not the softmax of what it trained; scores and guides sampling.

    Args:
        trained: with its heads.
        behaviour: the model of the data, or None where the method acts without.
        algorithm: says how the two make one policy.
    """

    def __init__(self, trained: Policy, behaviour: Policy | None, algorithm: Algorithm) -> None:
        super().__init__()
        self.trained = trained
        self.behaviour = behaviour
        self.algorithm = algorithm
        self.vocab = trained.vocab
        self.layout = "padded" if behaviour is not None and behaviour.layout == "padded" else trained.layout

    def states(self, inputs: dict[str, Tensor]) -> States:
        """Those of the behaviour, then those of the trained policy."""
        behaviour = self.behaviour.states(inputs) if self.behaviour is not None else ()
        return (*behaviour[:1], *self.trained.states(inputs))

    def logits(self, states: States) -> Tensor:
        if self.behaviour is None:
            return self.algorithm.act(self.trained.dense(states))
        behaviour = self.behaviour.dense(states[:1]).logits
        return self.algorithm.act(replace(self.trained.dense(states[1:]), behaviour=behaviour))

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """``logp`` and ``lse`` of the actions, each ``[U]``; arguments as of :meth:`Policy.forward`."""
        states, targets = self.states(inputs), inputs["targets"]
        parts = [stats_from_logits(self.logits(rows(states, at)), targets[at]) for at in chunks(len(targets))]
        logp, lse = (torch.cat(column) for column in zip(*parts, strict=True))
        return {"logp": logp, "lse": lse}

    @torch.no_grad()
    def begin(self, mask: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Guide the sampling of a batch of prompts; see :class:`shiq_bench.generation.Guide`.

        The trained policy runs beside the sampler's own model with keys and values of its own.
        """
        seen, cache = 0, None

        @torch.no_grad()
        def step(input_ids: Tensor, logits: Tensor) -> Tensor:
            nonlocal mask, seen, cache
            mask = torch.cat([mask, mask.new_ones(len(mask), input_ids.shape[1] - mask.shape[1])], 1)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            states, cache = self.trained._body(
                input_ids=input_ids[:, seen:], position_ids=positions[:, seen:], attention_mask=mask,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            seen = input_ids.shape[1]
            dense = self.trained.dense(tuple(s[:, -1] for s in states))
            return self.algorithm.act(dense if self.behaviour is None else replace(dense, behaviour=logits))

        return step


def load_policy(source: ModelSource, folder: Path | None = None, layout: Layout = "tree") -> Policy:
    """The causal LM of ``folder`` (by default the source's own) in float32, on the GPU where there is one.

    Raises:
        UserError: the folder holds none.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder or source.folder,
            dtype=torch.float32,
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder or source.folder} holds no causal language model: {first_line(error)}") from error
    policy = Policy(model.to("cuda" if torch.cuda.is_available() else "cpu"), len(source.tokenizer()), layout)
    policy.eval()
    return policy
