"""A causal language model seen as a policy: token statistics at its action positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shiq_bench.ops import kl_rows, stats_from_logits, token_stats
from shiq_bench.records import UserError


class Policy(nn.Module):
    """Wraps a transformers causal LM so that its forward returns statistics instead of logits.

    Statistics are computed inside ``forward`` because a sharded wrapper (FSDP) only gathers the
    head there. Where ``hidden @ head.T`` is not what the model calls its logits (a logit scale, a
    soft cap, a bias), the model's own logits are used instead, found out once on construction.

    Args:
        model: a transformers causal LM.
        vocab: size of the tokenizer's vocabulary; rows of the head beyond it are padding.

    Raises:
        UserError: the tokenizer knows more tokens than the model has rows for.
    """

    def __init__(self, model: Any, vocab: int) -> None:
        super().__init__()
        self.model = model
        self.vocab = vocab
        rows = model.get_output_embeddings().weight.shape[0]
        if vocab > rows:
            raise UserError(f"the tokenizer has {vocab} tokens and the model {rows}: they do not belong together")
        self.plain_head = self._head_is_plain()

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            return False
        was_training = self.model.training
        self.model.eval()
        ids = torch.arange(min(4, self.vocab), device=head.weight.device)[None]
        hidden = self._hidden(input_ids=ids)
        ours = (hidden @ head.weight.T).float()
        theirs = self.model(input_ids=ids).logits.float()
        self.model.train(was_training)
        return torch.allclose(ours, theirs, atol=1e-2 if hidden.dtype == torch.bfloat16 else 1e-4, rtol=1e-3)

    def _hidden(self, **inputs: Tensor) -> Tensor:
        hidden: Tensor = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        """Final hidden states (logits where the head is not plain) at every position. ``[B * L, ...]``

        A padded batch runs in buckets of rows of similar length, each cut to its own longest, so
        that one long dialogue does not make all the others as expensive as itself.
        """
        body = self._hidden if self.plain_head else self._all_logits
        kept = {k: inputs[k] for k in ("input_ids", "position_ids", "attention_mask") if k in inputs}
        if "attention_mask" not in kept:
            return body(**kept).flatten(0, 1)
        lengths = kept["attention_mask"].sum(1)
        out: Tensor | None = None
        for rows, longest in buckets(lengths.tolist()):
            part = body(**{k: v[rows, :longest] for k, v in kept.items()})
            if out is None:
                out = part.new_zeros(*kept["input_ids"].shape, part.shape[-1])
            out[rows, :longest] = part
        assert out is not None
        return out.flatten(0, 1)

    def _all_logits(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        return logits

    def forward(
        self,
        input_ids: Tensor,
        index: Tensor,
        targets: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Statistics of the actions.

        Args:
            input_ids: ``[B, L]``
            index: flat positions, in ``B * L``, of the states that the actions are taken in. ``[M]``
            targets: the actions. ``[M]``
            position_ids: ``[B, L]``, restarting at every trajectory.
            attention_mask: ``[B, L]`` when padded. A packed row has none: an all-ones mask would
                let trajectories see each other.

        Returns:
            ``logp`` and ``lse``, each ``[M]``.
        """
        inputs = {"input_ids": input_ids, "position_ids": position_ids}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        states = self._run(inputs)[index]
        if self.plain_head:
            logp, lse = token_stats(states, self.model.get_output_embeddings().weight, targets, self.vocab)
        else:
            logp, lse = stats_from_logits(states, targets, self.vocab)
        return {"logp": logp, "lse": lse}

    @torch.no_grad()
    def compare(self, other: Policy, inputs: dict[str, Tensor], chunk: int = 512) -> tuple[Tensor, Tensor, Tensor]:
        """``logp`` of self and of other, and exact KL(self || other), at each action; each ``[M]``, nats."""
        index, targets = inputs["index"], inputs["targets"]
        if not len(index):
            nothing = torch.zeros(0, device=index.device)
            return nothing, nothing, nothing
        mine, theirs = self._run(inputs), other._run(inputs)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(index), chunk):
            rows = slice(start, start + chunk)
            logits, reference = self._logits(mine, index[rows]), other._logits(theirs, index[rows])
            logp, _ = stats_from_logits(logits, targets[rows], self.vocab)
            ref_logp, _ = stats_from_logits(reference, targets[rows], self.vocab)
            parts.append((logp, ref_logp, kl_rows(logits, reference, self.vocab)))
        logp, ref_logp, kl = (torch.cat(column) for column in zip(*parts, strict=True))
        return logp, ref_logp, kl

    def _logits(self, states: Tensor, index: Tensor) -> Tensor:
        if not self.plain_head:
            return states[index]
        return states[index].float() @ self.model.get_output_embeddings().weight.float().T


def buckets(lengths: list[int], shortest: float = 0.8) -> list[tuple[list[int], int]]:
    """Rows in groups of similar length, with the longest of each; none is shorter than ``shortest`` of it."""
    out: list[tuple[list[int], int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not out or lengths[row] < shortest * out[-1][1]:
            out.append(([], lengths[row]))
        out[-1][0].append(row)
    return out
