"""How far a run's settings and its record travel: which modules are handed them, by whom, and never back up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from shiq_bench.records.record import RunRecord
from shiq_bench.report.blocks import Block, Comparison
from shiq_bench.report.document import Document, Section, Table
from shiq_bench.runs.context import Run
from shiq_bench.runs.resolved import Resolved
from tests.command import Finished, shiq_bench

#: Steps from one module to another: who called, and who was handed the thing.
Steps = set[tuple[str, str]]

RUN = ("run", "--algo", "shiq", "--task", "tree", "--steps", "2")
LANGUAGE = ("--model", "tiny", "--engine", "hf", "--samples", "1", "--eval-samples", "1", "--eval-limit", "1")


def holds(value: Any, kinds: tuple[type, ...], depth: int = 2) -> bool:
    """Whether a value is of some kinds, or a container whose first entry is."""
    if isinstance(value, dict):
        value = list(value.values())
    if depth and isinstance(value, list | tuple) and value:
        return holds(value[0], kinds, depth - 1)
    return isinstance(value, kinds)


def name_of(frame: FrameType) -> str:
    """The module of ours that a function is in, without the package's name; "" of anybody else's."""
    package, _, name = frame.f_globals.get("__name__", "").partition(".")
    return name if package == "shiq_bench" else ""


def caller(frame: FrameType) -> str:
    """The innermost module of ours among those that called a function."""
    above = frame.f_back
    while above is not None and not name_of(above):
        above = above.f_back
    return "" if above is None else name_of(above)


def walked(command: Callable[[], Finished], *kinds: type) -> Steps:
    """The steps from a module to another on which an argument is of some kinds."""
    steps: Steps = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and (name := name_of(frame)) and not code.co_name.startswith("<"):
            arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(holds(frame.f_locals.get(argument), kinds) for argument in arguments):
                steps.add((caller(frame), name))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        done = command()
    finally:
        sys.setprofile(before)
    assert done.code == 0, done.err
    return {(a, b) for a, b in steps if a != b}


def back(steps: Steps) -> Steps:
    """Steps to a module from which there is a way to where they start."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            now = todo.pop()
            new = {b for a, b in steps if a == now} - found
            found |= new
            todo += new
        return found

    return {(a, b) for a, b in steps if a in reached(b)}


@pytest.mark.parametrize("where", [(), LANGUAGE], ids=["table", "language model"])
def test_settings_pass_six_modules_on_their_way_to_the_trained_policy(where: tuple[str, ...], tmp_path: Path) -> None:
    """``Resolved``, and the ``Run`` that carries it; the modules of these two classes count."""
    steps = walked(lambda: shiq_bench(*RUN, *where, "--results", tmp_path), Resolved, Run)
    assert back(steps) == set()
    assert 4 <= len({b for _, b in steps}) <= 6, sorted(steps)


def test_a_record_passes_six_modules_on_its_way_to_a_printed_cell(tmp_path: Path) -> None:
    assert shiq_bench(*RUN, "--results", tmp_path).code == 0
    steps = walked(
        lambda: shiq_bench("table", "--results", tmp_path), RunRecord, Block, Comparison, Document, Section, Table
    )
    assert back(steps) == set()
    # The refusal of mixed versions and the notes underneath are handed records, and make no cell.
    to_cells = {b for _, b in steps} - {"records.provenance", "report.captions"}
    assert 4 <= len(to_cells) <= 6, sorted(steps)


def test_a_step_back_is_seen() -> None:
    assert back({("cli", "runs"), ("runs", "data")}) == set()
    assert back({("cli", "runs"), ("runs", "data"), ("data", "cli")}) == {
        ("cli", "runs"),
        ("runs", "data"),
        ("data", "cli"),
    }
