"""How often a run opens a sampler: once for all it draws and evaluates, and not at all for what is cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shiq_bench.generation.generator import Generator
from shiq_bench.runs import context
from tests import needs
from tests.command import shiq_bench

SMALL = ["--model", "tiny", "--steps", "2", "--eval-samples", "2", "--contexts", "2", "--depth", "2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the samplers that were opened, and those that vLLM opened again to change weights."""
    found: list[str] = []
    make = context.make_generator

    def counted(*words: Any, **options: Any) -> Generator:
        generator = make(*words, **options)
        found.append(generator.name + (" with a guide" if options["guide"] is not None else ""))
        if (again := getattr(generator, "_open", None)) is not None:

            def reopened(folder: Path) -> None:
                found.append(f"{generator.name} again")
                again(folder)

            monkeypatch.setattr(generator, "_open", reopened)
        return generator

    monkeypatch.setattr(context, "make_generator", counted)
    return found


def run(home: Path, folder: Path, *more: str) -> None:
    done = shiq_bench("run", "--task", "tree", "--results", folder, *SMALL, *more, SHIQ_BENCH_HOME=str(home))
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--algo", "shiq", "--set", "run.samples=2"], ["hf"]),
        (["--algo", "shiq", "--lora", "r=2"], ["hf"]),
        (["--algo", "rloo"], ["hf"]),
        # It acts by two models, and for that its sampler is another.
        (["--algo", "ilql"], ["hf", "hf with a guide"]),
    ],
)
def test_reference_data_and_policy_share_one_opening(
    more: list[str], expected: list[str], tmp_path: Path, opened: list[str]
) -> None:
    """Also where nothing is cached: a home of its own."""
    run(tmp_path / "home", tmp_path, "--engine", "hf", *more)
    assert opened == expected


@pytest.mark.parametrize("more", [["--algo", "shiq"], ["--algo", "shiq", "--lora", "r=2"], ["--algo", "rloo"]])
def test_vllm_is_opened_once(more: list[str], tmp_path: Path, opened: list[str]) -> None:
    needs.vllm()
    run(tmp_path / "home", tmp_path, "--engine", "vllm", *more)
    assert opened == ["vllm"]


def test_a_cached_reference_opens_nothing(home: Path, tmp_path: Path, opened: list[str]) -> None:
    """Before its training a run of another method takes data and reference evaluations as they are."""
    run(home, tmp_path / "first", "--engine", "hf", "--algo", "shiq")
    opened.clear()
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        counter = context.Run.counter

        def counted(self: context.Run, what: str) -> Any:
            seen.append(len(opened))
            return counter(self, what)

        patch.setattr(context.Run, "counter", counted)
        run(home, tmp_path / "second", "--engine", "hf", "--algo", "sft")
    assert seen == [0] and opened == ["hf"]
