"""The command line. Anything heavy is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiq_bench.cli.reward import reward
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import RunRecord
from shiq_bench.records.spec import RunSpec

if TYPE_CHECKING:
    from shiq_bench.records.metric import Metric
    from shiq_bench.runs.progress import LiveReport

app = typer.Typer(
    name="shiq-bench",
    help="A fair comparison of reinforcement-learning fine-tuning methods for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure the engine beside a peer, in one run.", no_args_is_help=True)
app.add_typer(bench, name="bench")
data = typer.Typer(help="Offline data to keep, look at, and train from.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(reward, name="reward")

Results = Annotated[Path, typer.Option(help="Folder of run records.")]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file that registers algorithms or tasks.")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value: any setting of the run, the algorithm or the task.")
]
Categories = Annotated[str | None, typer.Option(help="bfcl: categories and groups, joined by commas.")]
ToolFormat = Annotated[str | None, typer.Option(help="bfcl: how the model is to write calls.")]
Reward = Annotated[str | None, typer.Option(help="When the task pays; bfcl: turn or final.")]


def _plugins(paths: list[Path] | None) -> None:
    from shiq_bench.api.registry import load_plugin

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
    data: Annotated[
        str | None,
        typer.Option(
            help="The task's own data (ultrafeedback: a file, a folder or a hub name), or a dataset made by "
            "`shiq-bench data build` to train from.",
        ),
    ] = None,
    categories: Categories = None,
    tool_format: ToolFormat = None,
    reward: Reward = None,
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
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")] = None,
    sets: Sets = None,
    plugin: Plugins = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where this run was interrupted.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Throw away an earlier attempt of this very run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")] = False,
) -> None:
    """Train one method on one task, evaluate it beside its reference, and print the table."""
    from rich.console import Console

    from shiq_bench.runs.resolved import collects_fresh
    from shiq_bench.runs.settings import data_setting, merged, parse_sets, read_yaml, resolve
    from shiq_bench.runs.validation import check_demands

    _plugins(plugin)
    values: dict[str, Any] = read_yaml(config) if config else {}
    algo, task = algo or str(values.pop("algo", "")), task or str(values.pop("task", ""))
    # Printed settings can be given again: run_id follows from the others.
    values = {k: v for k, v in values.items() if k not in ("algo", "task", "run_id")}
    if not algo or not task:
        raise UserError(
            f"{'--algo' if not algo else '--task'} is missing: type, say, shiq-bench run --algo shiq --task bfcl"
        )
    flags = {
        "model": model, "seed": seed, "steps": steps, "engine": engine, "center_rewards": center_rewards,
        "allow_off_policy": allow_off_policy or None, "results": None if results is None else str(results),
        "task.categories": categories, "task.tool_format": tool_format,
        "task.reward": reward, "lm_eval": lm_eval, "lora": lora, "pairs": pairs,
    }  # fmt: skip
    given = {k: v for k, v in flags.items() if v is not None}
    if data is not None:
        given[data_setting(task, data)] = data
    resolved = resolve(algo, task, merged(values, given, parse_sets(sets or [])))
    check_demands(resolved, collects_fresh(resolved))
    console = Console()
    _print_spec(console, resolved.spec)
    if dry_run:
        return
    if resume and fresh:
        raise UserError("--resume goes on and --fresh starts again: give one of them")

    from shiq_bench.records.run_store import RECORD, run_folder
    from shiq_bench.report.tables import run_table
    from shiq_bench.runs.execute import execute

    with _live() as report:
        record = execute(resolved, resume=resume, fresh=fresh, report=report)
    run_table(record, metrics=resolved.task.metrics, console=console)
    settled = [f"{name}: {value}" for name, value in record.data.get("settled", {}).items()]
    for note in (*settled, *resolved.task.notes()):
        console.print(f"{task}: {note}", style="dim", highlight=False)
    path = run_folder(resolved.spec.results, record.run_id) / RECORD
    console.print(f"\nrecord: {path}", soft_wrap=True, highlight=False)
    if record.status == "diverged":
        raise UserError(
            f"{record.run_id} diverged: {record.error}; its last good checkpoint is in {path.parent / 'checkpoints'}"
        )


#: Settings that a table has no use for.
LANGUAGE_ONLY = (
    "revision", "trust_remote_code", "gold", "data", "data_hash", "groups_per_step", "precision", "layout", "engine",
    "max_tokens", "max_length", "pairs", "lora", "lm_eval", "lm_eval_limit",
    "eval_samples", "eval_splits", "eval_seed", "eval_limit", "micro_groups", "save_every",
    "gpu_memory", "track",
)  # fmt: skip


@data.command()
def build(
    task: Annotated[str, typer.Option(help="Task; see `shiq-bench list`.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder to make; nothing is overwritten.")] = None,
    data: Annotated[str | None, typer.Option(help="The task's own data: a file, a folder or a hub name.")] = None,
    model: Annotated[str | None, typer.Option(help="'tiny', a folder, or a hub id.")] = None,
    categories: Categories = None,
    tool_format: ToolFormat = None,
    reward: Reward = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags win over it.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="key=value: a setting that decides data, or of the task.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Draw offline data as a run would, and keep them: rows, tokenizer, manifest and card in one folder."""
    from rich.console import Console

    from shiq_bench.data.dataset import check_free
    from shiq_bench.data.schema import BUILD, train_command
    from shiq_bench.runs.settings import data_setting, merged, parse_sets, read_yaml, resolve_data

    _plugins(plugin)
    values: dict[str, Any] = read_yaml(config) if config else {}
    task = task or str(values.get("task", ""))
    if not task or out is None:
        raise UserError(
            f"{'--out' if task else '--task'} is missing: type, say, shiq-bench data build --task bfcl --out bfcl-data"
        )
    values = {k: v for k, v in values.items() if k != "task"}
    flags = {"model": model, "task.categories": categories, "task.tool_format": tool_format, "task.reward": reward}
    given = {k: v for k, v in flags.items() if v is not None}
    if data is not None:
        given[data_setting(task, data)] = data
    spec, made = resolve_data(task, merged(values, given, parse_sets(sets or [])), BUILD)
    check_free(out)

    from shiq_bench.runs.build_dataset import build_dataset

    with _live() as report:
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
    from rich.console import Console

    from shiq_bench.data.show import show as print_dialogues

    print_dialogues(folder, Console(), count=count, prompt=prompt, source=source, seed=seed, full=full)


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
    results: Annotated[
        list[Path] | None, typer.Option(help="Folder of run records (results); may be given several times.")
    ] = None,
    format: Annotated[str, typer.Option(help="rich, md, latex (booktabs), html or csv.")] = "rich",
    out: Annotated[Path | None, typer.Option(help="File to write instead of printing; the folder of --paper.")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Write every table, and every study there are runs of, with a manifest.")
    ] = False,
    study: Annotated[
        list[Path] | None,
        typer.Option("--study", help="With --paper: a study beside the shipped ones; repeat for more."),
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Mix records of different source versions.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Print the table of stored runs again, from their records alone."""
    from rich.console import Console

    from shiq_bench.report import tables

    _plugins(plugin)
    folders = results or [Path("results")]
    if paper:
        if format != "rich":
            raise UserError("--paper writes every format: leave out --format")
        _paper(runs, folders, out or folders[0], study or [], allow_mixed)
        return
    if study:
        raise UserError("--study is for --paper: to draw one study type shiq-bench study")
    records, torn = _records(folders, runs)
    metrics = _metrics(records)
    tables.print_table(records, metrics, format=format, out=out, allow_mixed=allow_mixed, console=Console())
    if torn:
        raise typer.Exit(1)


def _records(folders: list[Path], run_ids: list[str] | None = None) -> tuple[list[RunRecord], bool]:
    """The readable records of some folders, at least one, and whether others could not be read, which is said."""
    from shiq_bench.records.run_store import load_several

    records, problems = load_several(folders, run_ids=run_ids or None)
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    if not records and problems:
        raise typer.Exit(1)
    if not records:
        raise UserError(
            f"no runs in {', '.join(map(str, folders))}: start one with shiq-bench run --algo shiq --task bfcl"
        )
    return records, bool(problems)


def _metrics(records: list[RunRecord]) -> dict[str, Sequence[Metric]]:
    """Of every task that is known here, what its records may hold."""
    from shiq_bench.api.registry import tasks

    known = set(tasks.names())
    return {name: tasks.get(name).metrics for name in {r.spec.task for r in records} if name in known}


def _live() -> LiveReport:
    """Progress on standard error."""
    from rich.console import Console

    from shiq_bench.runs.progress import LiveReport

    return LiveReport(Console(stderr=True))


def _paper(runs: list[str] | None, folders: list[Path], out: Path, given: list[Path], allow_mixed: bool) -> None:
    from shiq_bench.studies.paper import MANIFEST, paper

    if runs:
        raise UserError("--paper is of whole folders: leave out the run ids")
    with _live() as report:
        made, problems = paper(folders, out, [str(path) for path in given], allow_mixed=allow_mixed, report=report)
    for problem in problems:
        typer.echo(f"skipped: {problem}", err=True)
    typer.echo(f"{len(made)} files in {out}, and what each shows in {out / MANIFEST}")
    if problems:
        raise typer.Exit(1)


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="A run id, or a method: algo, or algo:key=value,key=value.")],
    other: Annotated[str, typer.Argument(metavar="B", help="What A is compared with, named alike.")],
    task: Annotated[str, typer.Option(help="Task whose runs a method stands for.")] = "",
    results: Annotated[
        list[Path] | None, typer.Option(help="Folder of run records (results); may be given several times.")
    ] = None,
    format: Annotated[str, typer.Option(help="rich, md or csv.")] = "rich",
    examples: Annotated[int, typer.Option(min=0, help="Prompts to show on which the two differ most.")] = 5,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare records of different source versions.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Two runs, or two methods over their shared seeds: differences, settings, and the prompts that tell them apart."""
    from rich.console import Console

    from shiq_bench.report import pairwise as comparing
    from shiq_bench.report import pairwise_text as printing

    _plugins(plugin)
    records, torn = _records(results or [Path("results")])
    found = [comparing.select(records, name, task) for name in (one, other)]
    known = _metrics(found[0]).get(found[0][0].spec.task, ())
    made = comparing.versus(found[0], found[1], (one, other), known, count=examples, allow_mixed=allow_mixed)
    printing.print_versus(made, format=format, console=Console())
    if torn:
        raise typer.Exit(1)


@app.command()
def report(
    results: Annotated[
        list[Path] | None, typer.Option(help="Folder of run records (results); may be given several times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write; report.html in the first folder by default.")] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Mix records of different source versions.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Write one HTML page of all stored runs, to be opened anywhere: tables, pictures, episodes, settings."""
    from rich.console import Console

    from shiq_bench.records.files import write_atomic
    from shiq_bench.report.page import page
    from shiq_bench.report.payload import payload

    _plugins(plugin)
    folders = results or [Path("results")]
    records, torn = _records(folders)
    path = out or folders[0] / "report.html"
    said = Console(stderr=True)
    with said.status(f"comparing {len(records)} runs") if said.is_terminal else nullcontext():
        html = page(payload(records, _metrics(records), allow_mixed=allow_mixed))
    write_atomic(path, html)
    typer.echo(f"{path}: {len(records)} runs, {len(html) / 1e6:.1f} MB; open it in a browser, it needs no network")
    if torn:
        raise typer.Exit(1)


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


@app.command()
def score(
    answers: Annotated[Path, typer.Argument(metavar="IN", help="JSON lines: one answer each.")],
    task: Annotated[str, typer.Option(help="Task the answers belong to; see `shiq-bench list`.")],
    out: Annotated[Path, typer.Option(help="File of verdicts, one a line.")],
    plugin: Plugins = None,
) -> None:
    """Score answers from a file with the task's own checkers: no model, no torch."""
    from rich.console import Console
    from rich.table import Table

    from shiq_bench.api.registry import tasks
    from shiq_bench.records.answer_file import check_out, read_lines
    from shiq_bench.records.files import write_atomic

    _plugins(plugin)
    lines = read_lines(answers)
    check_out(out, answers)
    scorer = tasks.get(task)()
    try:
        with _live() as report:
            scores = scorer.score_lines(lines, report)
    finally:
        scorer.close()
    for problem in scores.problems:
        typer.echo(f"{answers}: {problem}", err=True)
    if not scores.results:
        raise UserError(f"{answers} holds no answer that can be scored: nothing was written")
    write_atomic(out, "".join(json.dumps(dict(result)) + "\n" for result in scores.results).encode())
    headings, *rows = scores.table
    printed = Table(*headings, box=None, pad_edge=False)
    for at, row in enumerate(rows, 1):
        printed.add_row(*row, style="bold" if at >= scores.groups else None)
    console = Console()
    console.print(printed)
    for note in scores.notes:
        console.print(note, style="dim", highlight=False)
    if scores.problems:
        raise typer.Exit(1)


@app.command(name="list")
def list_(
    algo: Annotated[str, typer.Option(help="One algorithm, with its settings.")] = "",
    task: Annotated[str, typer.Option(help="One task, with its settings.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="All that it says of itself.")] = False,
    plugin: Plugins = None,
) -> None:
    """Algorithms and tasks, one line each; or one of them in full."""
    from rich.console import Console

    from shiq_bench.cli.listing import print_list, print_one

    _plugins(plugin)
    if not algo and not task:
        print_list(Console())
    for kind, name in (("algorithm", algo), ("task", task)):
        if name:
            print_one(Console(), kind, name, verbose)


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
def rollout(
    task: Annotated[str, typer.Option(help="A task with demonstrations.")] = "bfcl",
    split: Annotated[str, typer.Option(help="Split whose demonstrations are played.")] = "rl",
    sets: Sets = None,
) -> None:
    """Demonstrations through the whole rollout: what everything but the model costs."""
    from shiq_bench.bench import print_rollout

    print_rollout(task, sets or [], split)


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
