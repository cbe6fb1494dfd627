"""A policy as lm-eval sees a model: scored by the scoring path, sampled by the run's sampler.

Tokenisation, windows and truncation are those of lm-eval's own ``hf`` model, so that the numbers are too.
"""

from __future__ import annotations

import bisect
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models import utils
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from shiq_bench.api.token_stats import stats_from_logits
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.generation.generator import Generator
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash
from shiq_bench.training.policy import Scorer, rows
from shiq_bench.training.reference import over_actions

#: Longest answer where a task sets none, as lm-eval has it.
MAX_TOKENS = 256

#: Positions whose logits are held at once.
CHUNK = 512

Encoded = tuple[Any, list[int], list[int]]  # what was asked, context, continuation


class EngineLM(TemplateLM):  # type: ignore[misc,unused-ignore]
    """A policy as lm-eval sees a model.

    Log-probabilities are float32, over every row of the head as lm-eval's own models count them
    (rows that pad the embedding included, which training leaves out).

    Args:
        policy: what scores.
        model: the transformers model whose config says how long a text may be, and whose generation
            config says what ends one.
        tokenizer: of that model.
        generator: gives the sampler, the weights of ``policy`` in place; called for tasks that generate.
        on_progress: called with the requests scored so far, and how many there are.

    Raises:
        UserError: the tokenizer has neither a first nor a last token.
    """

    def __init__(
        self,
        policy: Scorer,
        model: Any,
        tokenizer: Any,
        generator: Callable[[], Generator],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.tokenizer = tokenizer
        self.max_length = utils.resolve_max_length(model.config, tokenizer)
        self._generator = generator
        self._on_progress = on_progress
        if self.prefix_token_id is None:
            raise UserError("lm-eval begins a text with a BOS or EOS token, and the tokenizer has neither: add one")
        ends = model.generation_config.eos_token_id
        self._end_ids = sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is conditioned on."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's keys."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The dialogue in the model's own template, without system messages where it refuses them."""
        render = functools.partial(
            self.tokenizer.apply_chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError:
            return render([m for m in chat_history if m["role"] != "system"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, with what the tokenizer adds unless the text begins with the prefix already."""
        if add_special_tokens is None:
            add_special_tokens = not utils.has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)

    # --- scoring

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """ln pi(continuation | context), and whether it is the greedy one, for each request."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """ln pi of each whole text, in windows that overlap as little as the model's length allows."""
        windows: list[Encoded] = []
        owner: list[int] = []
        for n, request in enumerate(requests):
            (text,) = request.args
            ids = self.tok_encode(text)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(pair)))
                owner.append(n)
        totals = [0.0] * len(requests)
        for n, (logp, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[n] += logp
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **kwargs: Any) -> list[tuple[float, bool]]:
        """ln pi and greediness of each continuation; a context that is too long is cut on its left."""
        asked = []
        for _, context, continuation in requests:
            if not context or not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"lm-eval asks for {len(continuation)} tokens behind {len(context)}, and this model scores 1 to "
                    f"{self.max_length} behind 1 or more: leave that task out"
                )
            ids = (context + continuation)[-self.max_length - 1 :]
            mask = (False,) * (len(ids) - len(continuation)) + (True,) * len(continuation)
            asked.append(Trajectory("", tuple(ids), mask, (0.0,) * len(ids)))
        done = 0

        def on_progress(count: int) -> None:
            nonlocal done
            done += count
            self._on_progress(done, len(asked))

        columns = over_actions(asked, self.policy, self._likelihoods, on_progress, "padded")
        return [(float(logp.sum(dtype=np.float64)), bool(greedy.all())) for logp, greedy in columns]

    def _likelihoods(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Log-probability of each target, and whether it is the likeliest token; ``[U]`` each."""
        # Nothing is read behind the last token, and there the longest texts would not fit the model.
        length, index = inputs["input_ids"].shape[1], inputs["index"]
        shorter = {k: inputs[k][:, :-1] for k in ("input_ids", "position_ids", "attention_mask")}
        shorter["index"] = index // length * (length - 1) + index % length
        states, targets = self.policy.states(shorter), inputs["targets"]
        logps, greedy = [], []
        for start in range(0, len(targets), CHUNK):
            where = slice(start, start + CHUNK)
            logits = self.policy.logits(rows(states, where))
            logps.append(stats_from_logits(logits, targets[where])[0])
            greedy.append(logits.argmax(-1) == targets[where])
        return [torch.cat(logps), torch.cat(greedy)]

    # --- generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """An answer to each request, up to its first stop string.

        Raises:
            UserError: a task samples otherwise than greedily or at temperature 1, or is too long.
        """
        generator, repeats = self._generator(), Counter[int]()
        prompts, seeds, stops = [], [], []
        alike: dict[tuple[float, int], list[int]] = {}
        for n, request in enumerate(requests):
            text, asked = request.args
            prompt, limit, temperature, until = self._sampling(request.task_name, text, asked, generator)
            alike.setdefault((temperature, limit), []).append(n)
            prompts.append(prompt)
            stops.append(until)
            seeds.append(int(stable_hash([request.task_name, request.doc_id, repeats[id(request)]]), 16) % (1 << 63))
            repeats[id(request)] += 1
        answers = [""] * len(requests)
        for (temperature, limit), chosen in alike.items():
            drawn = generator.generate(
                [prompts[n] for n in chosen],
                temperature=temperature,
                max_tokens=limit,
                seeds=[seeds[n] for n in chosen],
                stop_ids=self._end_ids,
            )
            for n, completion in zip(chosen, drawn, strict=True):
                answers[n] = self._cut(completion.token_ids, stops[n])
        return answers

    def _cut(self, ids: Sequence[int], stops: list[str]) -> str:
        """Text before the first stop string, which may be a special token's text too."""

        def stopped(count: int) -> bool:
            text = self.tokenizer.decode(ids[:count])
            return any(stop in text for stop in stops if stop)

        count = bisect.bisect_left(range(len(ids)), True, key=stopped)
        text = self.tokenizer.decode(ids[:count], skip_special_tokens=True)
        return str(utils.postprocess_generated_text(text, stops, None))

    def _sampling(
        self, task: str, text: str, asked: Mapping[str, Any], generator: Generator
    ) -> tuple[list[int], int, float, list[str]]:
        """Prompt, longest answer, temperature and stop strings of one request."""
        settings: dict[str, Any] = dict(utils.normalize_gen_kwargs(dict(asked), MAX_TOKENS))
        end = None if self.eot_token_id is None else self.tokenizer.decode(self.eot_token_id)
        until = utils.handle_stop_sequences(settings.pop("until"), eos=end)
        limit: int = settings.pop("max_gen_toks")
        temperature = float(settings.pop("temperature", 0.0)) * settings.pop("do_sample")
        # These change nothing where the likeliest token is taken.
        neutral = () if temperature else ("top_p", "top_k")
        other = {k: v for k, v in settings.items() if k not in neutral and (k, v) != ("top_p", 1)}
        if temperature not in (0, 1) or other:
            told = {"temperature": temperature, **other}
            raise UserError(
                f"lm-eval task {task} samples with {', '.join(f'{k}={v}' for k, v in told.items())}: expected greedy "
                "or temperature 1 and nothing else; leave it out"
            )
        room = self.max_length - limit
        if room < 1:
            raise UserError(
                f"lm-eval task {task} asks for {limit} tokens, and the model takes {self.max_length} with the prompt: "
                "leave it out"
            )
        prompt = self.tok_encode(text)[-room:]
        if len(prompt) + limit > generator.max_length:
            raise UserError(
                f"lm-eval task {task} has a prompt of {len(prompt)} tokens and asks for {limit} more, which "
                f"max_length={generator.max_length} does not hold: --set max_length={len(prompt) + limit} or more"
            )
        return prompt, limit, temperature, until
