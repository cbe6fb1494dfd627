"""Every task that a language model plays, from its data to its record: sampled by vLLM, and with every method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.api.registry import algorithms
from shiq_bench.records.record import RunRecord
from shiq_bench.runs.execute import execute
from shiq_bench.runs.settings import resolve
from shiq_bench.tasks.bfcl import Bfcl, fetch
from tests import needs
from tests.preferences import write

QUICK: dict[str, Any] = {"model": "tiny", "steps": 2, "groups_per_step": 2, "eval_samples": 1, "eval_limit": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "tree": {"contexts": 3, "max_tokens": 3},
    "bfcl": {"run.samples": 2, "max_tokens": 24, "max_steps": 2},
    "ultrafeedback": {"max_tokens": 24},
}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all: the official package as it was fetched, and a starting policy that has learned less."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "bfcl").symlink_to(fetch.locate().parent)
    full = Bfcl.tiny
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIQ_BENCH_HOME", str(folder))
        patch.setattr(Bfcl, "tiny", lambda task: replace(full(task), steps=10))
        yield


def play(algo: str, task: str, engine: str, folder: Path) -> RunRecord:
    data = {"dataset": str(write(folder / "pairs.jsonl"))} if task == "ultrafeedback" else {}
    given = {**QUICK, **SETTINGS[task], **data, "engine": engine, "results": str(folder / "results")}
    return execute(resolve(algo, task, given), resume=False, fresh=False, report=lambda *_: None)


EVERYTHING = {(policy, mode) for policy in ("reference", "trained") for mode in ("greedy", "sampled")}


def measured(record: RunRecord) -> set[tuple[str, str]]:
    return {(e.policy, e.mode) for e in record.evaluations if e.metrics.get("reward", {}).get("n")}


@pytest.mark.parametrize(
    ("algo", "task"), [("shiq", "tree"), ("shiq", "bfcl"), ("dpo", "ultrafeedback"), ("rloo", "tree")]
)
def test_a_run_that_vllm_samples(algo: str, task: str, tmp_path: Path) -> None:
    needs.vllm()
    record = play(algo, task, "vllm", tmp_path)
    assert record.status == "done" and record.spec.engine == "vllm" and len(record.training) == 2
    assert not any("sampled by transformers" in d for d in record.deviations)
    assert measured(record) >= EVERYTHING
    assert record.gaps and max(record.gaps.values()) < 0.05, "what vLLM samples is what is scored"
    for line in record.training if algo == "rloo" else []:
        assert 0 < line["sampler_gap"] < 0.01, "what vLLM samples is what is trained on, but for rounding"


@pytest.mark.proof
@pytest.mark.parametrize("algo", algorithms.names())
def test_every_method_on_functions(algo: str, tmp_path: Path) -> None:
    """Trained and measured on BFCL; the tests of UltraFeedback and of the tree do the same there."""
    record = play(algo, "bfcl", "hf", tmp_path)
    assert record.status == "done" and len(record.training) == QUICK["steps"]
    assert measured(record) >= EVERYTHING
