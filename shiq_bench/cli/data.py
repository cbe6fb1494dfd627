"""``shiq-bench data``: build a dataset, and show one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from shiq_bench.cli.options import SETTINGS_AS_FLAGS, Config, Model, Plugins, live, typed_settings
from shiq_bench.records.errors import UserError

data = typer.Typer(name="data", help="Offline data to keep, look at, and train from.", no_args_is_help=True)


@data.command(context_settings=SETTINGS_AS_FLAGS)
def build(
    context: typer.Context,
    task: Annotated[str, typer.Option(help="Task; see `shiq-bench list`.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to make; nothing is overwritten.")] = None,
    data: Annotated[str | None, typer.Option(help="The task's own data: a file, a folder or a hub name.")] = None,
    model: Model = None,
    config: Config = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: a setting that decides data, or of the task.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Draw offline data as a run would, and keep them: rows, tokenizer, manifest and card in one folder.

    Any setting of the data is also a flag of its own name, such as --samples 2: see `shiq-bench list --task NAME`.
    """
    from shiq_bench.data.dataset import check_free
    from shiq_bench.data.schema import BUILD, train_command
    from shiq_bench.runs.settings import known_data_settings, merged, parse_sets, read_yaml, resolve_data

    values: dict[str, Any] = read_yaml(config) if config else {}
    task = task or str(values.get("task", ""))
    if not task or out is None:
        raise UserError(
            f"{'--out' if task else '--task'} is missing: type, say, shiq-bench data build --task bfcl --out bfcl-data"
        )
    values = {k: v for k, v in values.items() if k != "task"}
    given = typed_settings(context, known_data_settings(task, BUILD), task, data, model=model)
    spec, made = resolve_data(task, merged(values, given, parse_sets(sets or [])), BUILD)
    check_free(out)

    from shiq_bench.runs.build_dataset import build_dataset

    with live() as report:
        manifest = build_dataset(spec, made, out, report, plugin or [])
    counts = manifest["counts"]
    by_source = ", ".join(f"{n} {source}" for source, n in sorted(counts["by_source"].items()))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{out}: {counts['trajectories']} trajectories of {counts['prompts']} prompts ({by_source}), "
        f"{counts['action_tokens']} action tokens, {counts['truncated']} truncated"
    )
    console.print(f"\nlook at it:    {shlex.join(['shiq-bench', 'data', 'show', str(out)])}")
    console.print(f"train from it: {train_command(manifest, str(out))}")


@data.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A dataset.")],
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="Dialogues at most.")] = 3,
    prompt: Annotated[str, typer.Option(help="Only of this prompt.")] = "",
    source: Annotated[str, typer.Option(help="Only of this source: gold, reference ...")] = "",
    seed: Annotated[int | None, typer.Option(help="Pick at random; without it, the first ones.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Do not shorten long observations.")] = False,
) -> None:
    """Print dialogues as the loss sees them: what is trained on, what is context, and where rewards are."""
    from shiq_bench.data.show import show as print_dialogues

    print_dialogues(folder, Console(), count=count, prompt=prompt, source=source, seed=seed, full=full)
