"""``shiq-bench sweep``, ``study`` and ``status``: many runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shiq_bench.cli.options import AllowMixed, Model, Plugins, Results, Sets
from shiq_bench.records.errors import UserError

Workers = Annotated[int, typer.Option(help="Runs at once; 0: as many as fit.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Re-run results that another version of the code produced.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the runs, their cost and what is there.")]


def sweep(
    study: Annotated[
        str, typer.Argument(help="A shipped study, or the path of a YAML file: its runs; without one, what flags say.")
    ] = "",
    algo: Annotated[str, typer.Option(help="Algorithms, joined by commas.")] = "",
    task: Annotated[str, typer.Option(help="Tasks, joined by commas.")] = "",
    seeds: Annotated[str, typer.Option(help="Training seeds, such as 0-5 or 0,1,2; 0 if not given.")] = "",
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="key=value,value: a setting that is varied; repeat for more.")
    ] = None,
    model: Model = None,
    sets: Sets = None,
    tune: Annotated[
        list[str] | None,
        typer.Option("--tune", help="key=value,value: chosen for every method on validation prompts; repeat for more."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Trials of --tune, the same for every method.")] = 6,
    results: Results = Path("results"),
    executor: Annotated[str, typer.Option(help="inline (this process), local, ray or slurm.")] = "local",
    workers: Workers = 0,
    cores: Annotated[int, typer.Option(help="Cores of a worker; 0: an equal share.")] = 0,
    gpus: Annotated[
        float | None, typer.Option(help="GPUs per worker (fractions allowed; default 1 if available).")
    ] = None,
    address: Annotated[str, typer.Option(help="ray: of the cluster, host:port; without it, a local one.")] = "",
    slurm: Annotated[
        list[str] | None, typer.Option("--slurm", help="slurm: key=value for submitit, such as slurm_partition=gpu.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed or diverged.")] = False,
    fresh: Fresh = False,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Leave what other code has run as it is.")] = False,
    dry_run: DryRun = False,
    plugin: Plugins = None,
) -> None:
    """Run experiments in parallel; killed runs resume."""
    from shiq_bench.records.event_log import FOLDER
    from shiq_bench.runs.progress import say
    from shiq_bench.runs.settings import merged, parse_sets
    from shiq_bench.studies.study import study_jobs
    from shiq_bench.sweep.executors import make_executor
    from shiq_bench.sweep.grid import Options, names, of_flags, parse_grid, whole_numbers
    from shiq_bench.sweep.sweep import print_plan
    from shiq_bench.sweep.sweep import sweep as run_all
    from shiq_bench.sweep.tuning import Tuning
    from shiq_bench.sweep.worker import Resources, stoppable

    stoppable()
    given = parse_sets([*([] if model is None else [f"model={model}"]), *(sets or [])])
    for key in given:
        if key.removeprefix("run.") in ("seed", "seeds"):
            raise UserError(f"--set {key}: seeds are given by --seeds, such as --seeds 0-5, or by the study")
    workplace = make_executor(
        executor, Resources(workers, cores, gpus), results / FOLDER / "slurm",
        address=address, options=parse_sets(slurm or [], "--slurm"),
    )  # fmt: skip
    if tune and (study or grid):
        raise UserError("--tune chooses what a study or --grid would vary: give --algo and --task beside it alone")
    varied = parse_grid(tune or [], "--tune")
    if study:
        for flag, value in {"--algo": algo, "--task": task, "--grid": grid, "--seeds": seeds}.items():
            if value:
                raise UserError(f"{flag} is for sweeps without a study: a study's file says what it is made of")
        jobs = study_jobs(study, given, results)
    else:
        flags = names("--algo", algo), names("--task", task), whole_numbers(seeds or "0")
        given = merged(given, {"results": str(results)})
        tuning = Tuning(varied, budget, *flags, given)
        jobs = list(tuning.trials() if tune else of_flags(*flags, given, parse_grid(grid or [])))
    console, options = Console(), Options(retry, fresh, allow_mixed, tuple(plugin or ()))
    if dry_run:
        print_plan(jobs, results, options, console)
        if tune:
            said = " x ".join(str(len(some)) for some in flags[:2])
            say(console, f"then {said} with what is chosen, on {len(flags[2])} seeds")
        return
    run = partial(
        run_all, results=results, executor=workplace, options=options, console=console, log=Console(stderr=True)
    )
    lines = run(jobs)
    if tune:
        lines += run(tuning.tuned(jobs, results, console))
    if study:
        name = study if not given else f"{study} with the same settings"
        say(console, f"draw it: shiq-bench study {name} --results {results}")
    if lost := sum(line.state != "done" for line in lines):
        again = "" if retry else "; --retry tries them again"
        raise UserError(f"{lost} of {len(lines)} runs did not end well: see the lines above{again}")


def study(
    name: Annotated[
        str, typer.Argument(help="A shipped study, the path of a YAML file, or all: those shipped that run on tables.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="In place of the study's: 'tiny', a folder, or a hub id.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value for every run, over the file's settings, not its panels or methods."),
    ] = None,
    results: Results = Path("results"),
    out: Annotated[Path | None, typer.Option(help="Folder of pictures; <results>/studies by default.")] = None,
    executor: Annotated[
        str, typer.Option(help="inline (this process), local, ray or slurm; inline for a few tables, else local.")
    ] = "",
    workers: Workers = 0,
    list_: Annotated[bool, typer.Option("--list", help="The shipped studies, one line each.")] = False,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    allow_mixed: AllowMixed = False,
    plugin: Plugins = None,
) -> None:
    """Run what a study still lacks, and draw its pictures and tables from the records."""
    from shiq_bench.runs.settings import parse_sets
    from shiq_bench.studies.study import print_list, print_studies, run_studies
    from shiq_bench.sweep.worker import stoppable

    if list_ or not name:
        print_list(Console())
        return
    given = parse_sets([*([] if model is None else [f"model={model}"]), *(sets or [])])
    if dry_run:
        print_studies(name, given, results, Console(), fresh=fresh)
        return
    stoppable()
    failed = run_studies(
        name, given, results, out or results / "studies", Console(), Console(stderr=True), fresh=fresh,
        allow_mixed=allow_mixed, executor=executor, workers=workers, plugins=plugin or (),
    )  # fmt: skip
    if failed:
        raise UserError(f"{failed} runs failed, and are missing from what was drawn: see the lines above")


def status(
    results: Results = Path("results"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until all has ended.")] = False,
) -> None:
    """How the runs of a results folder stand, whoever runs them."""
    from shiq_bench.sweep.status import print_status

    print_status(results, watch, Console())
