"""``shiq-bench sweep`` and ``shiq-bench status``: from flags to jobs, executor and what is printed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from shiq_bench.records.errors import UserError
from shiq_bench.runs.settings import merged, parse_sets
from shiq_bench.studies.schema import find, load
from shiq_bench.studies.trials import overridden
from shiq_bench.sweep.executors import Executor, make_executor
from shiq_bench.sweep.grid import Job, grid, of_flags, of_study, whole_numbers
from shiq_bench.sweep.resources import Resources
from shiq_bench.sweep.status import Line, status, table
from shiq_bench.sweep.sweep import Options, print_plan, sweep
from shiq_bench.sweep.tuning import Tuning, chosen, trials
from shiq_bench.sweep.worker import stoppable


@dataclass(frozen=True)
class Asked:
    """What was typed."""

    study: str
    algos: str
    tasks: str
    seeds: str
    grid: list[str]
    model: str | None
    sets: list[str]
    tune: list[str]
    budget: int
    results: Path
    executor: str
    workers: int
    cores: int
    gpus: float | None
    address: str
    slurm: list[str]
    retry: bool
    fresh: bool
    allow_mixed: bool
    dry_run: bool
    plugins: tuple[Path, ...]


def main(asked: Asked) -> None:
    """Do a sweep.

    Raises:
        UserError: what was typed makes no sense, or some runs failed.
    """
    stoppable()
    for key in parse_sets(asked.sets):
        if key.removeprefix("run.") in ("seed", "seeds"):
            raise UserError(f"--set {key}: seeds are given by --seeds, such as --seeds 0-5, or by the study")
    options = Options(asked.retry, asked.fresh, asked.allow_mixed, asked.plugins)
    console, log = Console(), Console(stderr=True)
    _executor(asked)
    jobs = list(_trials(asked)) if asked.tune else list(_jobs(asked))
    if asked.dry_run:
        print_plan(jobs, asked.results, options, console)
        if asked.tune:
            algos, tasks, seeds, _ = _flags(asked)
            said = f"then {len(algos)} x {len(tasks)} with what is chosen, on {len(seeds)} seeds"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
        return
    lines: list[Line] = []
    if asked.tune:
        lines += sweep(jobs, asked.results, _executor(asked), options, console, log)
        jobs = list(_chosen(asked, jobs, console))
    lines += sweep(jobs, asked.results, _executor(asked), options, console, log)
    if asked.study:
        name = asked.study if not asked.sets and not asked.model else f"{asked.study} with the same settings"
        console.print(f"draw it: shiq-bench study {name} --results {asked.results}", highlight=False, soft_wrap=True)
    if lost := sum(line.state != "done" for line in lines):
        again = "" if asked.retry else "; --retry tries them again"
        raise UserError(f"{lost} of {len(lines)} runs did not end well: see the lines above{again}")


def _executor(asked: Asked) -> Executor:
    return make_executor(
        asked.executor, Resources(asked.workers, asked.cores, asked.gpus), asked.results / ".runs" / "slurm",
        address=asked.address, options=parse_sets(asked.slurm, "--slurm"),
    )  # fmt: skip


def _trials(asked: Asked) -> Iterable[Job]:
    if asked.study or asked.grid:
        raise UserError("--tune chooses what a study or --grid would vary: give --algo and --task beside it alone")
    return trials(Tuning(grid(asked.tune, "--tune"), asked.budget), *_flags(asked))


def _chosen(asked: Asked, jobs: Sequence[Job], console: Console) -> Iterable[Job]:
    """The runs to report, each method with the settings that did best on validation data."""
    algos, tasks, seeds, given = _flags(asked)
    best = chosen(Tuning(grid(asked.tune, "--tune"), asked.budget), algos, tasks, jobs, asked.results)
    for algo, task in sorted(set(product(algos, tasks)) - best.keys()):
        console.print(f"no trial of {algo} on {task} has ended well: it is left out", highlight=False, markup=False)
    if not best:
        raise UserError("no trial of any method has ended well: see the lines above")
    for (algo, task), settings in best.items():
        said = ", ".join(f"{k}={v}" for k, v in settings.items()) or "nothing to tune"
        console.print(f"chosen for {algo} on {task}: {said}", highlight=False, markup=False, soft_wrap=True)
        yield from of_flags([algo], [task], seeds, given, {k: [v] for k, v in settings.items()})


def _flags(asked: Asked) -> tuple[list[str], list[str], list[int], dict[str, Any]]:
    """Methods, tasks, seeds and settings of a sweep without a study."""
    algos, tasks = names("--algo", asked.algos), names("--task", asked.tasks)
    given = merged({} if asked.model is None else {"model": asked.model}, parse_sets(asked.sets))
    return algos, tasks, whole_numbers(asked.seeds or "0"), merged(given, {"results": str(asked.results)})


def _jobs(asked: Asked) -> Iterable[Job]:
    if asked.study:
        given = merged({} if asked.model is None else {"model": asked.model}, parse_sets(asked.sets))
        given_too = {"--algo": asked.algos, "--task": asked.tasks, "--grid": asked.grid, "--seeds": asked.seeds}
        for flag, value in given_too.items():
            if value:
                raise UserError(f"{flag} is for sweeps without a study: a study's file says what it is made of")
        (path, *more) = find(asked.study)
        if more:
            raise UserError("a sweep is of one study: name it, and see shiq-bench study --list")
        return of_study(overridden(load(path), given), asked.results)
    return of_flags(*_flags(asked), grid(asked.grid))


def names(flag: str, text: str) -> list[str]:
    """``a,b`` to ``["a", "b"]``.

    Raises:
        UserError: none, or one twice.
    """
    out = [name.strip() for name in text.split(",") if name.strip()]
    if not out:
        raise UserError(
            f"{flag} is missing: type, say, shiq-bench sweep --algo shiq,dpo --task bandit --seeds 0-9, or the name of "
            "a study"
        )
    if len(set(out)) < len(out):
        raise UserError(f"{flag} {text}: a name is given twice")
    return out


def show_status(results: Path, watch: bool) -> None:
    """Print how everything stands, again and again if asked.

    Raises:
        UserError: no such folder, or nothing was ever run there.
    """
    console = Console()
    now = status(results)
    if not now.lines and not now.problems:
        raise UserError(f"nothing was run in {results} yet: start with shiq-bench run or shiq-bench sweep")
    if watch:
        from rich.live import Live

        with suppress(KeyboardInterrupt), Live(table(now.lines), console=console, auto_refresh=False) as live:
            while now.under_way:
                time.sleep(2)
                now = status(results)
                live.update(table(now.lines, rows=max(5, console.height - 4)), refresh=True)
    else:
        console.print(table(now.lines, rows=len(now.lines)))
    if now.problems:
        for problem in now.problems:
            console.print(f"skipped: {problem}", highlight=False, markup=False, soft_wrap=True)
        raise UserError(f"{len(now.problems)} records cannot be read: delete their folders to run them again")
