"""Sampling: one interface for every back end. Imports neither torch nor vllm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shiq_bench.api.trajectory import Completion
from shiq_bench.records.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, the longest answer it may get, and the seed of that answer."""

    prompt: list[int]
    limit: int
    seed: int


class Guide(Protocol):
    """Decides what is drawn, given what the sampler's own model says: for acting by two models at once."""

    def begin(self, mask: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Start a batch of left-padded prompts. ``mask [N, L]`` is 0 at the padding.

        Returns:
            A function called once a token, with all ids so far ``[N, L + t]`` and the logits of the
            sampler's model ``[N, V]``; it returns the logits to draw from. ``[N, V]``
        """


class Generator(ABC):
    """Samples answers to prompts given as ids.

    The distribution is softmax(logits / temperature) over the tokenizer's vocabulary, whole: no
    top-p, no top-k, no penalties, whatever the model's generation config says. Rows that pad the
    embedding beyond the tokenizer are no tokens: they are never drawn and have no share in the
    normalisation.

    Attributes:
        name: ``vllm`` or ``hf``.
        max_length: prompt and answer together, in tokens.
    """

    name: str
    max_length: int

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        max_tokens: int | Sequence[int],
        seeds: Sequence[int],
        stop_ids: Sequence[int],
    ) -> list[Completion]:
        """One completion a prompt (repeat a prompt for more), in the order of the prompts.

        Args:
            prompts: ids, at least one each.
            temperature: 0 is greedy.
            max_tokens: longest answer, one for all or one a prompt, at least 1.
            seeds: one a prompt, not negative. An answer depends on its prompt and its seed, not on
                what else is in the batch (up to rounding in the logits).
            stop_ids: ids that end an answer; the one emitted is the answer's last.

        Returns:
            Completions whose log-probabilities are those at temperature 1, greedy or not.

        Raises:
            ValueError: lists differ in length, a prompt is empty, a limit or a seed is out of
                range, or a prompt with its answer exceeds ``max_length``.
        """
        limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
        if not len(prompts) == len(limits) == len(seeds):
            raise ValueError(f"{len(prompts)} prompts, {len(limits)} limits and {len(seeds)} seeds")
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; expected 0 or more")
        requests = [Request(list(p), n, s) for p, n, s in zip(prompts, limits, seeds, strict=True)]
        for r in requests:
            if not r.prompt:
                raise ValueError("a prompt is empty")
            if r.limit < 1 or len(r.prompt) + r.limit > self.max_length:
                raise ValueError(
                    f"a prompt of {len(r.prompt)} ids and {r.limit} more do not fit into {self.max_length}"
                )
            if not 0 <= r.seed < 1 << 63:
                raise ValueError(f"seed {r.seed} is out of range")
        return self._generate(requests, temperature, frozenset(stop_ids)) if requests else []

    @abstractmethod
    def _generate(self, requests: list[Request], temperature: float, stop_ids: frozenset[int]) -> list[Completion]:
        """:meth:`generate`, its arguments checked."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Put the weights of a folder of the same architecture in place; nothing of the old ones is reused.

        A folder of adapters is put over the weights that the generator was opened with.

        Raises:
            UserError: the folder holds no safetensors.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the memory. Nothing but a second ``close`` may follow."""


def check_weights(folder: Path) -> None:
    """Raise a UserError where a folder holds no safetensors: both back ends read nothing else."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} holds no model: expected config.json and *.safetensors")
