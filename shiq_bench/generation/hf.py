"""The transformers back end: ``model.generate`` over left-padded batches, tokens chosen by us."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from shiq_bench.api.trajectory import Completion
from shiq_bench.generation.generator import Generator, Guide, Request, check_weights
from shiq_bench.models.lora import is_adapter
from shiq_bench.models.source import first_line
from shiq_bench.records.errors import UserError

#: Most tokens (rows times the longest prompt and answer among them) of one batch.
BATCH_TOKENS = 32_768


class HFGenerator(Generator):
    """Any causal LM of transformers; slower than vllm, and with nothing to install."""

    name = "hf"

    def __init__(
        self, model: Path, *, vocabulary: int, max_length: int, dtype: str, trust_remote_code: bool, guide: Guide | None
    ) -> None:
        """See :func:`shiq_bench.generation.opening.make_generator`; ``vocabulary`` ids can be drawn."""
        self.vocabulary = vocabulary
        self.guide = guide
        self.max_length = max_length
        self._dtype = getattr(torch, dtype)
        self._trust_remote_code = trust_remote_code
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = None
        self._base = model
        self.load(model)

    def load(self, folder: Path) -> None:
        check_weights(folder)
        self._model = None
        with _quiet():
            try:
                model, report = AutoModelForCausalLM.from_pretrained(
                    self._base if is_adapter(folder) else folder,
                    dtype=self._dtype,
                    trust_remote_code=self._trust_remote_code,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(f"transformers cannot load {folder}: {first_line(error)}") from error
        if missing := sorted(report["missing_keys"]):
            # transformers fills them with random numbers, and would sample from those
            raise UserError(f"{folder} lacks {len(missing)} weights of its model, {missing[0]} among them")
        if is_adapter(folder):
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder)
        # Unset fields of the config given to `generate` are filled from the model's own, and hub
        # models carry top-p and repetition penalties there: neither may shape what is sampled.
        model.generation_config = GenerationConfig()
        if self._dtype != torch.float32:
            _float32_head(model)
        self._model = model.to(self._device).eval()

    def close(self) -> None:
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _generate(self, requests: list[Request], temperature: float, stop_ids: frozenset[int]) -> list[Completion]:
        out: dict[int, Completion] = {}
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt) + requests[i].limit)
        while order:
            rows = 1
            while rows < len(order) and _tokens([requests[i] for i in order[: rows + 1]]) <= BATCH_TOKENS:
                rows += 1
            batch, order = order[:rows], order[rows:]
            out.update(zip(batch, self._batch([requests[i] for i in batch], temperature, stop_ids), strict=True))
        return [out[i] for i in range(len(requests))]

    @torch.no_grad()
    def _batch(self, requests: list[Request], temperature: float, stop_ids: frozenset[int]) -> list[Completion]:
        width, limits = max(len(r.prompt) for r in requests), [r.limit for r in requests]
        padding = [width - len(r.prompt) for r in requests]
        ids = [[0] * n + r.prompt for n, r in zip(padding, requests, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        attention = torch.tensor(mask, device=self._device)
        guide = self.guide.begin(attention) if self.guide is not None else None
        chooser = _Chooser(self.vocabulary, temperature, requests, self._device, guide)
        self._model.generate(
            input_ids=torch.tensor(ids, device=self._device),
            attention_mask=attention,
            generation_config=GenerationConfig(max_new_tokens=max(limits), do_sample=False, pad_token_id=0),
            logits_processor=LogitsProcessorList([chooser]),
            stopping_criteria=StoppingCriteriaList([_Stop(limits, stop_ids, width, self._device)]),
        )
        tokens, logps = torch.stack(chooser.tokens, 1).tolist(), torch.stack(chooser.logps, 1).tolist()
        return [_cut(t[:limit], p[:limit], stop_ids) for t, p, limit in zip(tokens, logps, limits, strict=True)]


def _tokens(batch: list[Request]) -> int:
    return len(batch) * (max(len(r.prompt) for r in batch) + max(r.limit for r in batch))


class _Chooser(LogitsProcessor):  # type: ignore[misc,unused-ignore]
    """Draws the next token itself and leaves ``generate`` no other to take.

    A row is drawn by inverting its cumulative distribution at a uniform number that its own seed
    decided before the batch was put together.
    """

    def __init__(
        self,
        vocabulary: int,
        temperature: float,
        requests: list[Request],
        device: torch.device,
        guide: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        self.vocabulary = vocabulary
        self.temperature = temperature
        self.guide = guide
        self.tokens: list[Tensor] = []
        self.logps: list[Tensor] = []
        # [N, T]; drawn on the CPU, so that a seed means the same on every device
        draws = [
            torch.rand(r.limit, dtype=torch.float64, generator=torch.Generator().manual_seed(r.seed)) for r in requests
        ]
        self.uniform = torch.nn.utils.rnn.pad_sequence(draws, batch_first=True).to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores [N, V]``: raw logits in, and out with a single finite entry a row."""
        logits = scores[:, : self.vocabulary].float()
        logp = (logits if self.guide is None else self.guide(input_ids, logits)).log_softmax(-1)
        step = len(self.tokens)
        if self.temperature == 0 or step >= self.uniform.shape[1]:
            token = logp.argmax(-1)
        else:
            total = (logp.double() / self.temperature).softmax(-1).cumsum(-1)
            # right: the first entry whose cumulated probability exceeds u, so none of probability 0
            token = torch.searchsorted(total, self.uniform[:, step, None] * total[:, -1:], right=True)[:, 0]
            token = token.clamp(max=logp.shape[1] - 1)
        self.tokens.append(token)
        self.logps.append(logp.gather(1, token[:, None])[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)


class _Stop(StoppingCriteria):  # type: ignore[misc,unused-ignore]
    """A row is over at a stop id or at its own limit."""

    def __init__(self, limits: list[int], stop_ids: frozenset[int], width: int, device: torch.device) -> None:
        self.limits = torch.tensor(limits, device=device)
        self.stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """``input_ids [N, L]`` -> done ``[N]``."""
        return torch.isin(input_ids[:, -1], self.stop_ids) | (input_ids.shape[1] - self.width >= self.limits)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no report of what did not load: that is raised."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _cut(tokens: list[int], logps: list[float], stop_ids: frozenset[int]) -> Completion:
    """A row as the batch left it, without what was drawn behind its end."""
    for n, token in enumerate(tokens):
        if token in stop_ids:
            return Completion(tuple(tokens[: n + 1]), tuple(logps[: n + 1]), "stop")
    return Completion(tuple(tokens), tuple(logps), "length")


def _float32_head(model: Any) -> None:
    """Compute logits in float32, as the losses do, whatever the dtype of the body."""
    head = model.get_output_embeddings()
    if head is not None:
        head.weight = torch.nn.Parameter(head.weight.detach().float())  # a copy: the embedding, if tied, stays as it is
        if getattr(head, "bias", None) is not None:
            head.bias = torch.nn.Parameter(head.bias.detach().float())
        head.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
