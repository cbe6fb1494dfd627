"""The command line. Anything heavy is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shiq_bench.cli.bench import bench
from shiq_bench.cli.data import data
from shiq_bench.cli.list import list_
from shiq_bench.cli.options import SETTINGS_AS_FLAGS, Plugins, Results, Sets
from shiq_bench.cli.options import load_plugins as _plugins
from shiq_bench.cli.results import compare, report, table
from shiq_bench.cli.reward import reward
from shiq_bench.cli.run import run
from shiq_bench.cli.score import score
from shiq_bench.records.errors import UserError

app = typer.Typer(
    name="shiq-bench",
    help="A fair comparison of reinforcement-learning fine-tuning methods for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (bench, data, reward):
    app.add_typer(group)
app.command(context_settings=SETTINGS_AS_FLAGS)(run)
for command in (table, compare, report):
    app.command()(command)


@app.command()
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
    list_: Annotated[bool, typer.Option("--list", help="The shipped studies, one line each.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs it is made of and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what other code has run.")] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Mix records of different source versions.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Run what a study still lacks, and draw its pictures and tables from the records."""
    from rich.console import Console

    from shiq_bench.runs.settings import merged, parse_sets
    from shiq_bench.studies import study as studies

    _plugins(plugin)
    if list_ or not name:
        studies.print_list(Console())
        return
    failed = studies.main(
        name, results, out or results / "studies", Console(), Console(stderr=True),
        dry_run=dry_run, fresh=fresh, allow_mixed=allow_mixed,
        given=merged({} if model is None else {"model": model}, parse_sets(sets or [])),
    )  # fmt: skip
    if failed:
        raise UserError(f"{failed} runs failed, and are missing from what was drawn: see the lines above")


@app.command()
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
    model: Annotated[str | None, typer.Option(help="'tiny', a folder, or a hub id.")] = None,
    sets: Sets = None,
    tune: Annotated[
        list[str] | None,
        typer.Option("--tune", help="key=value,value: chosen for every method on validation prompts; repeat for more."),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Trials of --tune, the same for every method.")] = 6,
    results: Results = Path("results"),
    executor: Annotated[str, typer.Option(help="local, ray or slurm.")] = "local",
    workers: Annotated[int, typer.Option(help="Runs at once; 0: as many as fit.")] = 0,
    cores: Annotated[int, typer.Option(help="Cores of a worker; 0: an equal share.")] = 0,
    gpus: Annotated[float | None, typer.Option(help="GPUs of a worker, or a share; one where there are any.")] = None,
    address: Annotated[str, typer.Option(help="ray: of the cluster, host:port; without it, a local one.")] = "",
    slurm: Annotated[
        list[str] | None, typer.Option("--slurm", help="slurm: key=value for submitit, such as slurm_partition=gpu.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed or diverged.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what other code has run.")] = False,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="Leave what other code has run as it is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs, their cost and what is there.")] = False,
    plugin: Plugins = None,
) -> None:
    """Run many runs at once, each finished once, whoever is killed on the way."""
    from shiq_bench.cli.sweep import Asked, main

    _plugins(plugin)
    main(
        Asked(
            study=study, algos=algo, tasks=task, seeds=seeds, grid=grid or [], model=model, sets=sets or [],
            tune=tune or [], budget=budget, results=results, executor=executor, workers=workers, cores=cores, gpus=gpus,
            address=address, slurm=slurm or [], retry=retry, fresh=fresh, allow_mixed=allow_mixed, dry_run=dry_run,
            plugins=tuple(plugin or ()),
        )
    )  # fmt: skip


@app.command()
def status(
    results: Results = Path("results"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until all has ended.")] = False,
) -> None:
    """How the runs of a results folder stand, whoever runs them."""
    from shiq_bench.cli.sweep import show_status

    show_status(results, watch)


app.command()(score)
app.command(name="list")(list_)


INTERRUPTED = 130


def main() -> None:
    """Entry point: bad input is one line and exit code 2, an interruption 130."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        from shiq_bench.records.escaping import one_line

        typer.echo(f"error: {one_line(error)}", err=True)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # Click's own errors (unknown option, missing value) carry their exit code and one line.
        show = getattr(error, "format_message", None)
        if show is None:
            raise
        if text := show():
            typer.echo(f"error: {text}", err=True)
        code = getattr(error, "exit_code", 2)
    if code == INTERRUPTED:
        typer.echo("interrupted: the same command goes on from here (shiq-bench run: with --resume)", err=True)
    sys.exit(code if isinstance(code, int) else 0)
