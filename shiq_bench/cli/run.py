"""``shiq-bench run``, and ``shiq-bench list``: what there is to run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from shiq_bench.cli.options import Config, Model, Plugins, Sets, live, typed_settings
from shiq_bench.records.errors import UserError

if TYPE_CHECKING:
    from shiq_bench.records.spec import RunSpec


def run(
    context: typer.Context,
    algo: Annotated[str, typer.Option(help="Algorithm; see `shiq-bench list`.")] = "",
    task: Annotated[str, typer.Option(help="Task; see `shiq-bench list`.")] = "",
    model: Model = None,
    seed: Annotated[int | None, typer.Option(help="Training seed.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser updates.")] = None,
    engine: Annotated[str | None, typer.Option(help="Sampler: vllm, hf or auto.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The task's own data (ultrafeedback: a file, a folder or a hub name), or a dataset made by "
            "`shiq-bench data build` to train from.",
        ),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="Preference pairs of a prompt's answers: all, best_worst or random.")
    ] = None,
    lora: Annotated[
        str | None, typer.Option(help="Train low-rank adapters alone: r=16, or r=16,alpha=32,dropout=0.05.")
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            metavar="TASKS",
            help="Tasks of lm-eval to run before and after training, joined by commas; ours (shiq_preference, "
            "shiq_bfcl_function) are in tasks/_lm_eval, for `lm_eval --include_path` too.",
        ),
    ] = None,
    center_rewards: Annotated[bool | None, typer.Option(help="Subtract each prompt's mean return.")] = None,
    allow_off_policy: Annotated[
        bool, typer.Option("--allow-off-policy", help="Let an on-policy method learn from stored trajectories.")
    ] = False,
    results: Annotated[Path | None, typer.Option(help="Folder of run records.")] = None,
    config: Config = None,
    sets: Sets = None,
    plugin: Plugins = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where this run was interrupted.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away an earlier attempt of this very run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")] = False,
) -> None:
    """Train one method on one task, evaluate it beside its reference, and print the table.

    Any setting is also a flag of its own name, such as --beta 0.3: see `shiq-bench list --task NAME`, and --algo.
    """
    from shiq_bench.runs.settings import known_settings, merged, parse_sets, read_yaml, resolve
    from shiq_bench.runs.validation import check_demands

    values: dict[str, Any] = read_yaml(config) if config else {}
    algo, task = algo or str(values.pop("algo", "")), task or str(values.pop("task", ""))
    # Printed settings can be given again: run_id follows from the others.
    values = {k: v for k, v in values.items() if k not in ("algo", "task", "run_id")}
    if not algo or not task:
        raise UserError(
            f"{'--algo' if not algo else '--task'} is missing: type, say, shiq-bench run --algo shiq --task bfcl"
        )
    given = typed_settings(
        context, known_settings(algo, task), task, data,
        model=model, seed=seed, steps=steps, engine=engine, center_rewards=center_rewards, lm_eval=lm_eval, lora=lora,
        pairs=pairs, allow_off_policy=allow_off_policy or None, results=None if results is None else str(results),
    )  # fmt: skip
    resolved = resolve(algo, task, merged(values, given, parse_sets(sets or [])))
    check_demands(resolved)
    console = Console()
    _print_spec(console, resolved.spec)
    if dry_run:
        return
    if resume and fresh:
        raise UserError("--resume goes on and --fresh starts again: give one of them")

    from shiq_bench.records.run_store import RECORD, run_folder
    from shiq_bench.report.tables import print_table
    from shiq_bench.runs.execute import execute

    with live() as report:
        record = execute(resolved, resume=resume, fresh=fresh, report=report)
    print_table([record], resolved.task.metrics, console=console)
    settled = [f"{name}: {value}" for name, value in record.data.get("settled", {}).items()]
    for note in (*settled, *resolved.task.notes()):
        console.print(f"{task}: {note}", style="dim", highlight=False)
    path = run_folder(resolved.spec.results, record.run_id) / RECORD
    console.print(f"\nrecord: {path}", soft_wrap=True, highlight=False)
    if record.status == "diverged":
        raise UserError(
            f"{record.run_id} diverged: {record.error}; its last good checkpoint is in {path.parent / 'checkpoints'}"
        )


def _print_spec(console: Console, spec: RunSpec) -> None:
    import yaml

    shown = [f.name for f in fields(spec) if spec.model != "table" or f.metadata.get("tables", True)]
    data = {name: getattr(spec, name) for name in shown if name not in ("algo_options", "task_options")}
    data |= {"algorithm": dict(spec.algo_options), "task_options": dict(spec.task_options)}
    text = yaml.safe_dump({"run_id": spec.run_id, **data}, sort_keys=False, default_flow_style=None, width=110)
    console.print(text.rstrip(), highlight=False, style="dim", soft_wrap=True, markup=False)


def list_(
    algo: Annotated[str, typer.Option(help="One algorithm, with its settings.")] = "",
    task: Annotated[str, typer.Option(help="One task, with its settings.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="All that it says of itself.")] = False,
    plugin: Plugins = None,
) -> None:
    """Algorithms and tasks, one line each; or one of them in full."""
    from shiq_bench.cli.listing import print_list, print_one

    if not algo and not task:
        print_list(Console())
    for kind, name in (("algorithm", algo), ("task", task)):
        if name:
            print_one(Console(), kind, name, verbose)
