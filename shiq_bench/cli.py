"""The command line. Anything heavy is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shiq_bench.records import RunSpec, UserError

app = typer.Typer(
    name="shiq-bench",
    help="A fair comparison of reinforcement-learning fine-tuning methods for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure the engine beside a peer, in one run.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Results = Annotated[Path, typer.Option(help="Folder of run records.")]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file that registers algorithms or tasks.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value: any setting of the run, the algorithm or the task.")
]


def _plugins(paths: list[Path] | None) -> None:
    from shiq_bench.api import load_plugin

    for path in paths or []:
        load_plugin(path)


@app.command()
def run(
    algo: Annotated[str, typer.Option(help="Algorithm; see `shiq-bench list`.")] = "",
    task: Annotated[str, typer.Option(help="Task; see `shiq-bench list`.")] = "",
    model: Annotated[str | None, typer.Option(help="'tiny', a folder, or a hub id.")] = None,
    seed: Annotated[int | None, typer.Option(help="Training seed.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser updates.")] = None,
    engine: Annotated[str | None, typer.Option(help="Sampler: vllm, hf or auto.")] = None,
    center_rewards: Annotated[bool | None, typer.Option(help="Subtract each prompt's mean return.")] = None,
    allow_off_policy: Annotated[
        bool, typer.Option("--allow-off-policy", help="Let an on-policy method learn from stored trajectories.")
    ] = False,
    results: Annotated[Path | None, typer.Option(help="Folder of run records.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")] = None,
    sets: Sets = None,
    plugin: Plugins = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where this run was interrupted.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away an earlier attempt of this very run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")] = False,
) -> None:
    """Train one method on one task, evaluate it beside its reference, and print the table."""
    from rich.console import Console

    from shiq_bench.config import merged, parse_sets, read_yaml, resolve
    from shiq_bench.demands import check_demands, collects_fresh

    _plugins(plugin)
    values: dict[str, Any] = read_yaml(config) if config else {}
    algo, task = algo or str(values.pop("algo", "")), task or str(values.pop("task", ""))
    values = {k: v for k, v in values.items() if k not in ("algo", "task")}
    if not algo or not task:
        raise UserError(
            f"{'--algo' if not algo else '--task'} is missing: type, say, shiq-bench run --algo shiq --task bfcl"
        )
    flags = {
        "model": model, "seed": seed, "steps": steps, "engine": engine, "center_rewards": center_rewards,
        "allow_off_policy": allow_off_policy or None, "results": None if results is None else str(results),
    }  # fmt: skip
    given = {k: v for k, v in flags.items() if v is not None}
    resolved = resolve(algo, task, merged(values, given, parse_sets(sets or [])))
    check_demands(resolved, collects_fresh(resolved))
    console = Console()
    _print_spec(console, resolved.spec)
    if dry_run:
        return
    if resume and fresh:
        raise UserError("--resume goes on and --fresh starts again: give one of them")

    from shiq_bench.console import LiveReport
    from shiq_bench.reporting.runs import RECORD, run_folder
    from shiq_bench.reporting.tables import run_table
    from shiq_bench.run import execute

    with LiveReport(Console(stderr=True)) as report:
        record = execute(resolved, resume=resume, fresh=fresh, report=report)
    run_table(record, metrics=resolved.task.metrics, console=console)
    for note in resolved.task.notes():
        console.print(f"{task}: {note}", style="dim", highlight=False)
    path = run_folder(resolved.spec.results, record.run_id) / RECORD
    console.print(f"\nrecord: {path}", soft_wrap=True, highlight=False)
    if record.status == "diverged":
        raise UserError(
            f"{record.run_id} diverged: {record.error}; its last good checkpoint is in {path.parent / 'checkpoints'}"
        )


#: Settings that a table has no use for.
LANGUAGE_ONLY = (
    "revision", "trust_remote_code", "gold", "groups_per_step", "precision", "layout", "engine", "max_tokens",
    "max_length", "eval_samples", "eval_seed", "eval_limit", "micro_groups", "save_every", "gpu_memory",
)  # fmt: skip


def _print_spec(console: Any, spec: RunSpec) -> None:
    import yaml

    left_out = ("algo_options", "task_options", *(LANGUAGE_ONLY if spec.model == "table" else ()))
    data = {k: v for k, v in spec.__dict__.items() if k not in left_out}
    data |= {"algorithm": dict(spec.algo_options), "task_options": dict(spec.task_options)}
    text = yaml.safe_dump({"run_id": spec.run_id, **data}, sort_keys=False, default_flow_style=None, width=110)
    console.print(text.rstrip(), highlight=False, style="dim", soft_wrap=True, markup=False)


@app.command()
def table(
    runs: Annotated[list[str] | None, typer.Argument(help="Run ids; all of the folder by default.")] = None,
    results: Results = Path("results"),
    format: Annotated[str, typer.Option(help="rich, md or csv.")] = "rich",
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Mix records of different source versions.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Print the table of stored runs again, from their records alone."""
    from rich.console import Console

    from shiq_bench.api import tasks
    from shiq_bench.reporting import runs as store
    from shiq_bench.reporting import tables

    _plugins(plugin)
    records, problems = store.load_all(results, run_ids=runs or None)
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    if records:
        known = set(tasks.names())
        metrics = {name: tasks.get(name).metrics for name in {r.spec.task for r in records} if name in known}
        tables.print_table(records, metrics, format=format, allow_mixed=allow_mixed, console=Console())
    elif not problems:
        raise UserError(f"no runs in {results}: start one with shiq-bench run --algo shiq --task bfcl")
    if problems:
        raise typer.Exit(1)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="A shipped study, the path of a YAML file, or all.")] = "",
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

    from shiq_bench import study as studies

    _plugins(plugin)
    if list_ or not name:
        studies.print_list(Console())
        return
    failed = studies.main(
        name, results, out or results / "studies", Console(), Console(stderr=True),
        dry_run=dry_run, fresh=fresh, allow_mixed=allow_mixed,
    )  # fmt: skip
    if failed:
        raise UserError(f"{failed} runs failed, and are missing from what was drawn: see the lines above")


@app.command(name="list")
def list_(plugin: Plugins = None) -> None:
    """Algorithms and tasks, one line each."""
    from rich.console import Console
    from rich.table import Table

    from shiq_bench.api import algorithms, tasks

    _plugins(plugin)
    out = Table(box=None, show_header=False, pad_edge=False)
    for registry in (algorithms, tasks):
        out.add_row(f"[bold]{registry.kind}s[/bold]")
        for name in registry.names():
            out.add_row(f"  {name}", (registry.get(name).__doc__ or "–").strip().splitlines()[0])
    Console().print(out)


@bench.command()
def tokens(
    positions: Annotated[int, typer.Option(help="Action positions.")] = 4096,
    width: Annotated[int, typer.Option(help="Hidden size.")] = 1024,
    chunk: Annotated[int, typer.Option(help="Positions whose logits are held at once.")] = 1024,
    vocabulary: Annotated[list[int] | None, typer.Option(help="Vocabulary sizes; repeat the option.")] = None,
) -> None:
    """Token statistics: time and peak memory beside the naive full-logits form."""
    from shiq_bench.bench import print_tokens

    print_tokens(positions, width, chunk, vocabulary or [2048, 32768, 152064])


@bench.command()
def generation(
    task: Annotated[str, typer.Option(help="Task whose prompts are used.")] = "bfcl",
    prompts: Annotated[int, typer.Option(help="Prompts.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    model: Annotated[str, typer.Option(help="'tiny', a folder, or a hub id.")] = "tiny",
) -> None:
    """vLLM beside transformers on the same prompts: tokens a second, and the log-probability gap."""
    from shiq_bench.bench import print_generation

    print_generation(task, prompts, max_tokens, model)


@bench.command()
def seeds(
    algo: Annotated[str, typer.Option(help="Algorithm.")] = "shiq",
    task: Annotated[str, typer.Option(help="A tabular task.")] = "bandit",
    count: Annotated[int, typer.Option(help="Seeds.")] = 10,
    steps: Annotated[int, typer.Option(help="Updates.")] = 1000,
) -> None:
    """Seeds of a table trained at once beside the same seeds one by one."""
    from shiq_bench.bench import print_seeds

    print_seeds(algo, task, count, steps)


INTERRUPTED = 130


def main() -> None:
    """Entry point: bad input is one line and exit code 2, an interruption 130."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        from shiq_bench.console import one_line

        typer.echo(f"error: {one_line(error)}", err=True)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # Click's own errors (unknown option, missing value) carry their exit code and one line.
        show = getattr(error, "format_message", None)
        if show is None:
            raise
        typer.echo(f"error: {show()}", err=True)
        code = getattr(error, "exit_code", 2)
    if code == INTERRUPTED:
        typer.echo("interrupted: the same command goes on from here (shiq-bench run: with --resume)", err=True)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
