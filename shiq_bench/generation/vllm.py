"""The vLLM back end: an engine inside this process, ids in and ids out.

vLLM is made to be a process of its own. Inside ours it would leave behind another
``torch.set_num_threads``, advanced random states, environment variables and log lines; everything
here runs inside :func:`_contained`, which puts them back.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shiq_bench.api.trajectory import Completion
from shiq_bench.generation.generator import Generator, Request, check_weights
from shiq_bench.models.lora import is_adapter
from shiq_bench.records.errors import UserError

log = logging.getLogger(__name__)

#: Memory for keys and values on a machine without a GPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise.
CPU_CACHE_BYTES = 1 << 30

#: Models with less than this on disk run without CUDA graphs: capturing takes longer than it saves.
EAGER_BYTES = 500 << 20

#: Ranks that vLLM makes room for.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

_ADAPTERS = itertools.count(1)

# What the engine reads from the environment. Its worker stays in this process: weights are
# replaced and logits masked through direct calls, and a small model opens ten times faster.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}

# Whoever sets a log level wants to see the log.
_VERBOSE = "VLLM_LOGGING_LEVEL" in os.environ


class VLLMGenerator(Generator):
    """One vLLM engine. Only one can be open in a process at a time; close it to open another."""

    name = "vllm"

    def __init__(
        self,
        model: Path,
        *,
        vocabulary: int,
        max_length: int,
        dtype: str,
        gpu_memory: float,
        trust_remote_code: bool,
        lora_rank: int,
    ) -> None:
        """See :func:`shiq_bench.generation.opening.make_generator`; ``vocabulary`` ids can be drawn.

        Raises:
            UserError: an engine or a distributed run is active in this process, or vLLM cannot
                serve the model.
        """
        self.max_length = max_length
        self._vocabulary, self._with_adapters = vocabulary, lora_rank > 0
        gpu = torch.cuda.is_available()
        self._options: dict[str, Any] = {
            "trust_remote_code": trust_remote_code,
            "dtype": dtype,
            "max_model_len": max_length,
            "skip_tokenizer_init": True,
            "enable_prefix_caching": True,
            # A prompt prefilled in two parts rewinds its seeded generator, which a CPU's cannot: whole prompts there.
            **({} if gpu else {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, max_length)}),
            "logprobs_mode": "raw_logprobs",  # temperature 1, before any processor
            "generation_config": "vllm",  # not the model's: no top-p, no penalties, no stop ids of its own
            "gpu_memory_utilization": gpu_memory,
            "kv_cache_memory_bytes": None if gpu or os.environ.get("VLLM_CPU_KVCACHE_SPACE") else CPU_CACHE_BYTES,
            "use_tqdm_on_load": False,
            "seed": 0,
        }
        if lora_rank:
            self._options |= {"enable_lora": True, "max_lora_rank": min(n for n in LORA_RANKS if n >= lora_rank)}
        if dtype != "float32":
            self._options["hf_overrides"] = {"head_dtype": "float32"}
        self._open(model)

    def _open(self, model: Path) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # vLLM would join the group, and destroy it when closed.
            raise UserError(
                "vllm cannot open beside another vllm engine or a distributed run: close that, or use engine hf"
            )
        self._base = model
        self._adapter: Any = None
        size = sum(p.stat().st_size for p in model.glob("*.safetensors"))
        self._eager = not torch.cuda.is_available() or size < EAGER_BYTES
        self._llm: Any = None
        self._closed = False
        try:
            with _contained(self._eager), _silent():
                from vllm import LLM

                self._llm = LLM(model=str(model), enforce_eager=self._eager, **self._options)
                if self._vocabulary < self._llm.model_config.get_vocab_size():
                    self._llm.apply_model(lambda module: _mask_logits(module, self._vocabulary))
            # Some limits (the head dimension on CPU) show at the first token, not before.
            self.generate([[0]], temperature=0, max_tokens=1, seeds=[0], stop_ids=[])
        except Exception as error:
            self.close()
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            # a validation error opens with a heading, and says what is wrong on a later line
            reason = next((line for line in lines if "rror, " in line), lines[0])
            raise UserError(f"vllm cannot serve {model}: {reason}; try --engine hf") from error

    def _generate(self, requests: list[Request], temperature: float, stop_ids: frozenset[int]) -> list[Completion]:
        from vllm import SamplingParams

        params = [
            SamplingParams(
                temperature=temperature,
                seed=r.seed,
                max_tokens=r.limit,
                stop_token_ids=sorted(stop_ids),
                ignore_eos=True,  # the stop ids are all there are
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for r in requests
        ]
        with _contained(self._eager):
            try:
                outputs = self._llm.generate(
                    [{"prompt_token_ids": r.prompt} for r in requests], params, use_tqdm=False,
                    lora_request=self._adapter,
                )  # fmt: skip
            except BaseException:
                # What an interrupt leaves unfinished would come back with the next call's answers.
                engine = self._llm.llm_engine
                engine.abort_request(list(engine.output_processor.request_states), internal=True)
                raise
        out = []
        for output in outputs:
            sample = output.outputs[0]
            ids = tuple(sample.token_ids)
            logps = tuple(float(step[i].logprob) for i, step in zip(ids, sample.logprobs, strict=True))
            out.append(Completion(ids, logps, "stop" if sample.finish_reason == "stop" else "length"))
        return out

    def load(self, folder: Path) -> None:
        """Replace the weights in place and forget every cached prefix; see :meth:`Generator.load`."""
        check_weights(folder)
        if is_adapter(folder):
            # A number of its own for every state of the weights: what was computed with another is never reused.
            number, self._adapter = next(_ADAPTERS), None
            try:
                with _contained(self._eager), _silent():
                    from vllm.lora.request import LoRARequest

                    request = LoRARequest(str(number), number, str(folder))
                    # Now, not at the next prompt: the folder may hold other adapters by then.
                    self._llm.llm_engine.add_lora(request)
                self._adapter = request
            except (ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"vllm cannot serve the adapters in {folder}: {reason}; choose other targets, or use engine hf"
                ) from error
            return
        self._adapter = None
        if folder == self._base and self._with_adapters:
            return  # adapters come and go over weights that stay
        self._base = folder
        with _contained(self._eager), _silent():
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            tied = self._llm.model_config.hf_text_config.tie_word_embeddings
            served = all(self._llm.apply_model(_refresh_tied_head)) if tied else True
            # Keys and values of prompts seen before came from the old weights.
            if not self._llm.reset_prefix_cache():
                raise RuntimeError("vllm kept its prefix cache over a change of weights")
        if not served:
            self.close()
            self._open(folder)

    def close(self) -> None:
        """Shut the engine down and leave the process group it opened."""
        if self._closed:
            return  # the group there is now may be another engine's
        self._closed = True
        with _contained(self._eager), _silent():
            if self._llm is not None:
                self._llm.llm_engine.engine_core.shutdown()
                self._llm = None
            if "vllm" in sys.modules:  # an engine that failed to open has left its group behind
                from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
            gc.collect()


def _refresh_tied_head(module: Any) -> bool:
    """Have a head that shares the embedding read it anew: on a CPU it keeps a repacked copy over reloading.

    Returns:
        Whether that is done: not where the model has several embeddings.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = [m for m in module.modules() if isinstance(m, VocabParallelEmbedding)]
    embeddings = [m for m in layers if not isinstance(m, ParallelLMHead)]
    if len(embeddings) != 1:
        return False
    for layer in layers:
        layer.weight = embeddings[0].weight
        layer.quant_method.process_weights_after_loading(layer)
    return True


def _mask_logits(module: Any, vocabulary: int) -> None:
    """Take rows that pad the embedding out of the softmax, so that log-probabilities are over tokens alone."""
    compute = module.compute_logits

    def compute_logits(*args: Any, **kwargs: Any) -> Any:
        logits = compute(*args, **kwargs)
        if logits is not None:
            logits[..., vocabulary:] = -torch.inf
        return logits

    module.compute_logits = compute_logits


@contextlib.contextmanager
def _contained(eager: bool) -> Iterator[None]:
    """Run vLLM, and put back what it changes in this process.

    Threads and default dtype, random states (it draws from torch's global one whatever seeds
    the requests have), signal handlers, environment.
    """
    environment = dict(os.environ)
    threads, set_threads, dtype = torch.get_num_threads(), torch.set_num_threads, torch.get_default_dtype()
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # Its sampler compiles a rank count that nobody here reads: 20 seconds and a C++ compiler, for
    # a slower call on small batches.
    stance = torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext()
    try:
        with stance:
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what libraries print, from C++ too, off the terminal; it goes to our log, for debugging."""
    if _VERBOSE:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = [os.dup(n) for n in (1, 2)]
        try:
            for n in (1, 2):
                os.dup2(file.fileno(), n)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for n, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, n)
                os.close(copy)
            file.seek(0)
            if text := file.read().decode(errors="replace").strip():
                log.debug("vllm said:\n%s", text)
