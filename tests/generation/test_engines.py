"""Both back ends sample the model's own distribution, and say so with the right log-probabilities."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shiq_bench.api.trajectory import Completion
from shiq_bench.generation import hf, opening
from shiq_bench.generation.generator import Generator
from shiq_bench.generation.opening import make_generator
from shiq_bench.records.errors import UserError
from tests import needs
from tests.generation.conftest import MAX_LENGTH, VOCABULARY, build

VLLM = "vllm"
ENGINES = ["hf", VLLM]

#: Nats; both compute in float32.
TOLERANCE = 1e-4


def open_generator(engine: str, folder: Path, **changes: Any) -> Generator:
    if engine == VLLM:
        needs.vllm()
    options: dict[str, Any] = {"tokenizer_vocab": VOCABULARY, "max_length": MAX_LENGTH, **changes}
    return make_generator(engine, folder, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engines(models: dict[str, Path]) -> Iterator[Any]:
    """One live engine of each kind, with the weights called for."""
    live: dict[str, Generator] = {}

    def get(engine: str, weights: str = "old") -> Generator:
        if engine not in live:
            live[engine] = open_generator(engine, models[weights])
        live[engine].load(models[weights])
        return live[engine]

    def close(engine: str) -> None:
        if engine in live:
            live.pop(engine).close()

    get.close = close  # type: ignore[attr-defined]
    yield get
    for generator in live.values():
        generator.close()


def ask(generator: Generator, prompts: list[list[int]], **changes: Any) -> list[Completion]:
    options: dict[str, Any] = {
        "temperature": 1.0, "max_tokens": 12, "seeds": list(range(len(prompts))), "stop_ids": [], **changes,
    }  # fmt: skip
    return generator.generate(prompts, **options)


@functools.cache
def truth(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def true_logps(folder: Path, prompt: list[int], completion: Completion) -> torch.Tensor:
    model = truth(folder)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + list(completion.token_ids)])).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
    picked: torch.Tensor = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    return picked


def gap(folder: Path, prompts: list[list[int]], completions: list[Completion]) -> float:
    return max(
        float((true_logps(folder, p, c) - torch.tensor(c.logps)).abs().max())
        for p, c in zip(prompts, completions, strict=True)
    )


PROMPTS = [[5], [9, 8, 7, 6], list(range(40, 70)), [9, 8, 7, 6], list(range(200, 260)) * 3]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_logprobs_are_the_models_at_temperature_one(
    engines: Any, models: dict[str, Path], engine: str, temperature: float
) -> None:
    completions = ask(engines(engine), PROMPTS, temperature=temperature)
    assert [len(c.token_ids) for c in completions] == [12] * len(PROMPTS)
    assert gap(models["old"], PROMPTS, completions) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_greedy_is_argmax(engines: Any, models: dict[str, Path], engine: str) -> None:
    # The two engines equal each other token for token because each equals this.
    model = truth(models["old"])
    for prompt, completion in zip(PROMPTS, ask(engines(engine), PROMPTS, temperature=0.0), strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(12):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert completion.token_ids == tuple(ids[len(prompt) :])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_follow_the_distribution(
    engines: Any, models: dict[str, Path], engine: str, temperature: float
) -> None:
    # Chi-square over 10 bins of equal probability: 99.9% point at 9 degrees of freedom is 27.9.
    n = 2000
    completions = ask(engines(engine), [[9, 8, 7, 6]] * n, max_tokens=1, temperature=temperature)
    model = truth(models["old"])
    with torch.no_grad():
        p = (model(torch.tensor([[9, 8, 7, 6]])).logits[0, -1].double() / temperature).softmax(-1)
    bins = ((p.cumsum(0) - p / 2) * 10).long().clamp(0, 9)
    expected = torch.zeros(10, dtype=torch.float64).index_add_(0, bins, p) * n
    drawn = torch.bincount(bins[torch.tensor([c.token_ids[0] for c in completions])], minlength=10)
    assert float(((drawn - expected) ** 2 / expected.clamp(min=1e-9)).sum()) < 27.9


@pytest.mark.parametrize("engine", ENGINES)
def test_seed_decides_whatever_else_is_in_the_batch(engines: Any, engine: str) -> None:
    generator = engines(engine)
    together = ask(generator, PROMPTS, seeds=[11, 12, 13, 14, 15])
    alone = [ask(generator, [p], seeds=[s])[0] for p, s in zip(PROMPTS, [11, 12, 13, 14, 15], strict=True)]
    backwards = ask(generator, PROMPTS[::-1], seeds=[15, 14, 13, 12, 11])[::-1]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone] == [c.token_ids for c in backwards]
    assert together[1].token_ids != together[3].token_ids  # one prompt, two seeds
    large = ask(generator, PROMPTS[1:3], seeds=[(1 << 60) - 1, (1 << 63) - 1])
    assert large[0].token_ids != together[1].token_ids
    assert ask(generator, PROMPTS[1:2], seeds=[14])[0].token_ids == together[3].token_ids


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_are_cut_by_tokens(engines: Any, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ask(engines(engine), PROMPTS)
    monkeypatch.setattr(hf, "BATCH_TOKENS", 60)
    assert [c.token_ids for c in ask(engines(engine), PROMPTS)] == [c.token_ids for c in whole]


@pytest.mark.parametrize("engine", ENGINES)
def test_stops_and_limits(engines: Any, engine: str) -> None:
    generator = engines(engine)
    free = ask(generator, PROMPTS)
    stop = free[2].token_ids[4]
    cut = ask(generator, PROMPTS, stop_ids=[stop, 299])
    for before, after in zip(free, cut, strict=True):
        ids = before.token_ids
        end = next((i for i, t in enumerate(ids) if t in (stop, 299)), None)
        assert after.token_ids == (ids if end is None else ids[: end + 1])
        assert after.finish == ("length" if end is None else "stop")
        assert len(after.logps) == len(after.token_ids)
    assert cut[2].finish == "stop"
    each = ask(generator, PROMPTS, max_tokens=[1, 2, 3, 4, 12])
    assert [c.token_ids for c in each] == [c.token_ids[:n] for c, n in zip(free, [1, 2, 3, 4, 12], strict=True)]
    # A stop id on the very last token allowed is a stop, not a cut.
    assert ask(generator, PROMPTS[2:3], seeds=[2], max_tokens=5, stop_ids=[stop])[0].finish == "stop"
    full = ask(generator, [[3] * (MAX_LENGTH - 2)], max_tokens=2)[0]
    assert (len(full.token_ids), full.finish) == (2, "length")


@pytest.mark.parametrize("engine", ENGINES)
def test_load_takes_new_weights_and_forgets_old_prefixes(engines: Any, models: dict[str, Path], engine: str) -> None:
    # Long enough for whole blocks of it to be cached.
    prompts = [[i % VOCABULARY for i in range(k, k + 300)] for k in (0, 50)]
    generator = engines(engine)
    assert gap(models["old"], prompts, ask(generator, prompts, temperature=0.0)) < TOLERANCE
    generator.load(models["new"])
    after = ask(generator, prompts, temperature=0.0)
    assert gap(models["new"], prompts, after) < TOLERANCE
    assert gap(models["old"], prompts, after) > 0.1


@pytest.mark.parametrize("engine", [VLLM])
def test_a_stale_prefix_cache_would_be_seen(
    engines: Any, models: dict[str, Path], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test above with the fault put in: it must show.
    prompts = [[i % VOCABULARY for i in range(300)]]
    generator = engines(engine)
    ask(generator, prompts, temperature=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(generator._llm, "reset_prefix_cache", lambda: True)
        generator.load(models["new"])
    assert gap(models["new"], prompts, ask(generator, prompts, temperature=0.0)) > 0.1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_head_tied_to_the_embedding_is_loaded_with_it(engines: Any, tmp_path: Path, engine: str) -> None:
    """On a CPU vllm serves a repacked copy of it, which must be made anew; nothing is opened again for that."""
    engines.close(engine)
    folders = [build(tmp_path / str(seed), seed, tied=True) for seed in (5, 6)]
    generator = open_generator(engine, folders[0])
    try:
        inner = getattr(generator, "_llm", None)
        assert gap(folders[0], PROMPTS, ask(generator, PROMPTS, temperature=0.0)) < TOLERANCE
        generator.load(folders[1])
        after = ask(generator, PROMPTS, temperature=0.0)
        assert gap(folders[1], PROMPTS, after) < TOLERANCE and gap(folders[0], PROMPTS, after) > 0.1
        assert getattr(generator, "_llm", None) is inner
    finally:
        generator.close()


@pytest.mark.parametrize("engine", [VLLM])
def test_an_interrupt_leaves_no_answers_behind(engines: Any, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = engines(engine)
    undisturbed = ask(generator, PROMPTS)
    inner = generator._llm.llm_engine
    step, calls = inner.step, iter(range(100))

    def interrupted() -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(inner, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(generator, PROMPTS)
    assert ask(generator, PROMPTS) == undisturbed


@pytest.mark.parametrize("engine", [VLLM])
def test_one_engine_at_a_time(engines: Any, models: dict[str, Path], engine: str) -> None:
    engines(engine)
    with pytest.raises(UserError, match="close that"):
        open_generator(engine, models["old"])


@pytest.mark.parametrize("engine", [VLLM])
def test_says_nothing(engines: Any, engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    ask(engines(engine), PROMPTS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("engine", ["hf"])
def test_head_is_float32_under_bfloat16(models: dict[str, Path], engine: str) -> None:
    generator = open_generator(engine, models["old"], dtype="bfloat16")
    completions = ask(generator, PROMPTS)
    assert gap(models["old"], PROMPTS, completions) < 0.5  # the body's rounding
    # A bfloat16 head would give no more than 8 bits to each logit.
    assert any(torch.tensor(c.logps).bfloat16().float().ne(torch.tensor(c.logps)).any() for c in completions)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 0},
        {"max_tokens": MAX_LENGTH},
        {"seeds": [1, 2]},
        {"seeds": [-1]},
        {"temperature": -1.0},
        {"max_tokens": [1, 1]},
    ],
)
def test_impossible_requests_raise(engines: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ask(engines("hf"), [[1, 2]], **changes)
    with pytest.raises(ValueError, match="empty"):
        ask(engines("hf"), [[]])
    assert ask(engines("hf"), []) == []


def test_engines_asked_for_in_vain(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for message, folder, changes in (
        ("no model", tmp_path, {}),
        ("built for 1024", models["old"], {"max_length": 2000}),
        ("expected float32", models["old"], {"dtype": "fp31"}),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_generator("hf", folder, **changes)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="expected auto"):
        open_generator("vlm", models["old"])
    with monkeypatch.context() as patch:  # a system without a library of vllm's CPU build
        patch.setattr(opening, "version", lambda name: "1")
        patch.setattr(opening, "NUMA", "libnowhere.so.1")
        with pytest.raises(UserError, match=r"vllm cannot be used.*libnowhere\.so\.1: apt-get install libnuma1"):
            make_generator("vllm", models["old"], tokenizer_vocab=VOCABULARY, max_length=MAX_LENGTH)
        assert open_generator("auto", models["old"]).name == "hf"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))
    with pytest.raises(UserError, match="pip install vllm"):
        make_generator("vllm", models["old"], tokenizer_vocab=VOCABULARY, max_length=MAX_LENGTH)
    assert open_generator("auto", models["old"]).name == "hf"


# --- from here on engines are closed and opened again


@pytest.mark.parametrize("engine", ENGINES)
def test_leaves_the_process_as_it_was(engines: Any, engine: str) -> None:
    def state() -> list[Any]:
        return [
            dict(os.environ), torch.get_num_threads(), torch.set_num_threads, torch.get_default_dtype(),
            signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), os.sched_getaffinity(0),
            random.getstate(), str(np.random.get_state()), torch.random.get_rng_state().tolist(),
        ]  # fmt: skip

    before = state()
    generator = engines(engine)
    ask(generator, PROMPTS)
    engines.close(engine)
    generator.close()  # a second time is nothing
    assert state() == before
    assert engine == "hf" or not torch.distributed.is_initialized()


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_pad_the_vocabulary_are_no_tokens(engines: Any, models: dict[str, Path], engine: str) -> None:
    # A second engine in one process, after the first is closed.
    engines.close(engine)
    generator = open_generator(engine, models["padded"])
    try:
        for temperature in (0.0, 1.0):
            completions = ask(generator, PROMPTS * 4, temperature=temperature)
            assert max(max(c.token_ids) for c in completions) < VOCABULARY
            assert gap(models["padded"], PROMPTS, completions[: len(PROMPTS)]) < TOLERANCE
        generator.load(models["padded"])
        assert max(max(c.token_ids) for c in ask(generator, PROMPTS * 4)) < VOCABULARY
    finally:
        generator.close()


@pytest.mark.parametrize("engine", [VLLM])
def test_a_model_the_engine_cannot_run_is_found_at_once(engines: Any, tmp_path: Path, engine: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("a limit of the CPU kernels")
    needs.vllm()
    engines.close(engine)
    with pytest.raises(UserError, match=r"head_dim=16.*try --engine hf"):
        open_generator(engine, build(tmp_path / "narrow", seed=0, heads=8))


@pytest.mark.parametrize("engine", ENGINES)
def test_missing_weights_are_not_made_up(engines: Any, models: dict[str, Path], tmp_path: Path, engine: str) -> None:
    engines.close(engine)
    broken = shutil.copytree(models["old"], tmp_path / "broken")
    config = (broken / "config.json").read_text()
    (broken / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(UserError) as caught:
        open_generator(engine, broken)
    assert "\n" not in str(caught.value) and "layers.2" in str(caught.value)
    # and failures leave nothing in the way of one that works
    ask(engines(engine), PROMPTS)
