"""``shiq-bench list``: algorithms and tasks, one line each, or one of them in full."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from contextlib import closing
from typing import Any, get_args, get_type_hints

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.registry import Registry, algorithms, tasks
from shiq_bench.api.task import Task


def print_list(console: Console) -> None:
    """Every algorithm and task, with the first line of its documentation."""
    out = Table(box=None, show_header=False, pad_edge=False)
    for registry in (algorithms, tasks):
        out.add_row(Text(f"{registry.kind}s", style="bold"))
        for name in registry.names():
            out.add_row(f"  {name}", Text(inspect.getdoc(registry.get(name)) or "–").split("\n")[0])
    console.print(out)


def print_one(console: Console, kind: str, name: str, verbose: bool) -> None:
    """One algorithm or task: documentation and settings; with ``verbose`` also all it says of itself.

    Raises:
        UserError: no such name.
    """
    registry: Registry[Any] = algorithms if kind == "algorithm" else tasks
    cls = registry.get(name)
    console.print(Text(name, style="bold cyan"))
    for line in _paragraphs(inspect.getdoc(cls) or "–"):
        text = line.lstrip()
        console.print(Padding(Text(text), (0, 0, 0, len(line) - len(text))))
    settings = Table(box=None, pad_edge=False, title="settings, each a flag", title_justify="left", title_style="bold")
    for column in ("setting", "default", "expected"):
        settings.add_column(column)
    hints = get_type_hints(cls)
    for f in dataclasses.fields(cls):
        choices = get_args(hints[f.name])
        expected = " | ".join(map(str, choices)) if choices else hints[f.name].__name__
        settings.add_row(f.name, Text(str(f.default)), Text(expected))
    console.print()
    console.print(settings)
    if not verbose:
        return
    for title, lines in _sections(cls()).items():
        if lines:
            console.print()
            console.print(Text(title, style="bold"))
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))


def _paragraphs(text: str) -> list[str]:
    """A docstring with the lines of each paragraph, and of each attribute, joined to one."""
    out: list[str] = []
    for line in text.splitlines():
        starts = not line.strip() or re.match(r" +\w+(, \w+)*: ", line) or not out or not out[-1].strip()
        if starts or re.fullmatch(r"\w+:", out[-1].strip()):
            out.append(line)
        else:
            out[-1] += f" {line.strip()}"
    return out


def _sections(made: Algorithm | Task) -> dict[str, Sequence[str]]:
    if isinstance(made, Algorithm):
        return {"needs": [str(need) for need in made.needs], "departs from its paper": made.deviations}
    arrow = {"higher": "higher is better", "lower": "lower is better", "neither": ""}
    metrics = [f"{m.name}: {m.title}{' (%)' if m.percent else ''}  {arrow[m.better]}".rstrip() for m in made.metrics]
    with closing(made):
        return {"metrics": metrics, **made.details()}
