"""The command line inside the test's own process: what ``shiq-bench`` does, without the seconds it takes to start."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.api.registry import Registry, algorithms, tasks
from shiq_bench.cli.app import main


@dataclass(frozen=True)
class Finished:
    """How a command ended, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


def shiq_bench(*words: str | Path, cwd: Path | None = None, **environment: str) -> Finished:
    """What ``shiq-bench WORDS`` does, in this process and 200 columns wide.

    Environment, folder, signal handlers and registered plugins are afterwards as they were.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, _without_plugins(), _same_handlers():
        patch.setattr(sys, "argv", ["shiq-bench", *map(str, words)])
        for name, value in {"COLUMNS": "200", **environment}.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    assert isinstance(left.value.code, int)
    return Finished(left.value.code, out.getvalue(), err.getvalue())


@contextmanager
def _without_plugins() -> Iterator[None]:
    """A built-in that is imported on the way stays: its module will not register it a second time."""
    registries: tuple[Registry[Any], ...] = (algorithms, tasks)
    before = [dict(registry._classes) for registry in registries]
    try:
        yield
    finally:
        for registry, had in zip(registries, before, strict=True):
            built_in = {n: c for n, c in registry._classes.items() if c.__module__.startswith(f"{registry.package}.")}
            registry._classes = {**built_in, **had}


@contextmanager
def _same_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
