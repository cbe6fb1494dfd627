"""`shiq-bench list`: one line each, or one thing in full."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shiq_bench.api.registry import algorithms, tasks
from shiq_bench.cli.listing import print_list, print_one
from shiq_bench.records.errors import UserError


def printed(kind: str, name: str, verbose: bool) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_one(console, kind, name, verbose)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_everything_is_listed() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_list(console)
    words = console.file.getvalue().split()  # type: ignore[attr-defined]
    assert set(words) >= {*algorithms.names(), *tasks.names()}


@pytest.mark.parametrize("name", algorithms.names())
def test_an_algorithm_in_full(name: str) -> None:
    text = printed("algorithm", name, verbose=True)
    made = algorithms.get(name)()
    assert all(field in text for field in getattr(made, "__dataclass_fields__", {}))
    assert all(type(need).__name__ in text for need in made.needs)


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_in_full(name: str) -> None:
    text = printed("task", name, verbose=True)
    assert all(metric.name in text for metric in tasks.get(name).metrics)
    assert "metrics" not in printed("task", name, verbose=False)


def test_bfcl_says_what_is_wrong_with_it() -> None:
    text = printed("task", "bfcl", verbose=True)
    for words in (
        "java_36",
        "live_multiple_964-207-0",
        "multi_turn_base_154",
        "gamed",
        "19.73%",
        "live_relevance: 18",
        "parallel_96",
    ):
        assert words in text


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'shiq'"):
        printed("algorithm", "shiqq", verbose=False)
