"""``shiq-bench score`` and ``shiq-bench reward``: answers, and models that score them."""

from __future__ import annotations

import json
import shlex
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from shiq_bench.cli.options import Plugins, lacking, live
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import check_out, read_lines, write_atomic, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from shiq_bench.rewards.fit import Judgement
    from shiq_bench.stats.intervals import Estimate

reward = typer.Typer(
    name="reward", help="Reward models: fit one to preference pairs, and score answers with one.", no_args_is_help=True
)


@reward.command()
def train(
    task: Annotated[str, typer.Option(help="A task with preference pairs; see `shiq-bench list`.")],
    base: Annotated[str, typer.Option(help="Model to start from: 'tiny', a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to make; nothing is overwritten.")],
    data: Annotated[Path | None, typer.Option(help="The task's file of pairs: its setting `dataset`.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pairs: 1 (tiny: 2).", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate: 1e-5 (tiny: 3e-4).")] = None,
    batch: Annotated[int | None, typer.Option(help="Pairs an update: 16.", min=1)] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a dialogue: 2048 (tiny: 512); a longer one loses its beginning.", min=2),
    ] = None,
    seed: Annotated[int, typer.Option(help="Training seed.", min=0, max=2**32 - 1)] = 0,
    sets: Annotated[list[str] | None, typer.Option("--set", help="key=value: any setting of the task.")] = None,
    plugin: Plugins = None,
) -> None:
    """Fit a reward model to the pairs of a task, and judge it on those held out."""
    from shiq_bench.api.registry import tasks
    from shiq_bench.data.dataset import check_free
    from shiq_bench.runs.settings import merged, parse_sets, resolve_data, settings

    if data is not None and "dataset" not in settings(tasks.get(task)):
        raise UserError(f"task {task} reads no file of pairs: leave out --data")
    given = {} if data is None else {"dataset": str(data)}
    spec, made = resolve_data(task, merged(given, parse_sets(sets or [])), ())
    check_free(out)

    from shiq_bench.models.hardware import fast_precision
    from shiq_bench.models.source import REPORT, locate, quiet
    from shiq_bench.records.provenance import source_hash
    from shiq_bench.rewards.fit import DEFAULTS, RECIPE, fit_reward_model, judge_pairs
    from shiq_bench.rewards.model import RewardModel
    from shiq_bench.training.starting_policy import build_tiny

    quiet()
    with closing(made):
        pairs, heldout = made.preferences("start"), made.preferences("heldout")
        if not pairs or not heldout:
            split = "start" if not pairs else "heldout"
            raise UserError(f"task {task} has no preference pairs in split {split}: name a task that has, or more data")
        asked = {"epochs": epochs, "learning_rate": learning_rate, "batch": batch, "max_length": max_length}
        options: dict[str, Any] = {
            **(RECIPE if base == "tiny" else DEFAULTS),
            **{name: value for name, value in asked.items() if value is not None},
            "precision": fast_precision(), "seed": seed,
        }  # fmt: skip
        with live() as report:
            folder = build_tiny(task, made, report) if base == "tiny" else locate(base)
            fit = fit_reward_model(folder, pairs, out, report=report, **options)
            model = RewardModel(str(out))
            judgement = judge_pairs(model, heldout, report)
    found = {
        "task": task, "task_options": dict(spec.task_options), "base": base, "settings": options, "fit": asdict(fit),
        "heldout": asdict(judgement), "fingerprint": model.fingerprint, "source_hash": source_hash(),
    }  # fmt: skip
    write_json(out / REPORT, found)
    console = Console(highlight=False)
    console.print(_table(judgement))
    console.print(
        f"fitted to {fit.pairs} pairs in {fit.steps} updates; left out as equal: {fit.equal}; cut to fit: "
        f"{fit.cut} answers fitted to, {judgement.cut} judged",
        style="dim",
    )
    if model.plain_template:
        console.print("the tokenizer has no chat template: dialogues are read as plain text", style="dim")
    command = shlex.join(["shiq-bench", "reward", "score", "--model", str(out), "IN.jsonl", "--out", "OUT.jsonl"])
    console.print(f"\nscore with it: {command}", soft_wrap=True)


def _table(judgement: Judgement) -> Table:
    from rich.table import Table

    def share(estimate: Estimate) -> str:
        if estimate.mean is None:
            return "-"
        between = ""
        if estimate.low is not None and estimate.high is not None and estimate.half:  # all alike bounds nothing
            between = f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
        return f"{100 * estimate.mean:.1f}%{between}"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    table = Table("held-out pairs", str(judgement.accuracy.n), box=None, pad_edge=False)
    for name, value in {
        "accuracy (95%, clustered by prompt)": share(judgement.accuracy),
        "always the longer answer": share(judgement.longer),
        "mean margin": number(judgement.margin),
        "expected calibration error": number(judgement.calibration_error),
        "Brier score (0.25 knows nothing)": number(judgement.brier),
        "correlation with length (Spearman)": number(judgement.length_correlation),
    }.items():
        table.add_row(name, value)
    return table


def score(
    answers: Annotated[Path, typer.Argument(metavar="IN", help="JSON lines: one answer each.")],
    task: Annotated[str, typer.Option(help="Task the answers belong to; see `shiq-bench list`.")],
    out: Annotated[Path, typer.Option(help="File of verdicts, one a line.")],
    plugin: Plugins = None,
) -> None:
    """Score answers from a file with the task's own checkers: no model, no torch."""
    from rich.table import Table

    from shiq_bench.api.registry import tasks

    lines = read_lines(answers)
    check_out(out, answers)
    with closing(tasks.get(task)()) as scorer, live() as report:
        scores = scorer.score_lines(lines, report)
    with lacking(scores.problems, answers):
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


@reward.command("score")
def score_by_model(
    answers: Annotated[
        Path, typer.Argument(metavar="IN", help='JSON lines: {"messages": [...]} or {"prompt": ..., "answer": ...}.')
    ],
    model: Annotated[str, typer.Option(help="A reward model: a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="The same lines with a score each.")],
    revision: Annotated[str, typer.Option(help="Revision of a hub's model.")] = "main",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Precision of the weights.")] = "fp32",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that came with the model.")
    ] = False,
) -> None:
    """Score the answers of a file with a reward model."""
    from shiq_bench.models.source import quiet
    from shiq_bench.rewards.model import RewardModel, read_answers
    from shiq_bench.runs.progress import say

    lines = read_lines(answers)
    check_out(out, answers)
    quiet()
    opened = RewardModel(model, revision=revision, precision=precision, trust_remote_code=trust_remote_code)
    rows, dialogues, problems = read_answers(lines, opened.encode)
    with lacking(problems, answers):
        if not rows:
            raise UserError(f"{answers} holds no answer that can be scored: nothing was written")
        with live() as report:
            scores = opened.score(dialogues, report)
        written = "".join(json.dumps({**row, "score": one}) + "\n" for row, one in zip(rows, scores, strict=True))
        write_atomic(out, written.encode())
        console = Console()
        say(console, f"{out}: {len(scores)} scores, mean {sum(scores) / len(scores):.4g}")
        if opened.cut:
            say(console, f"{opened.cut} dialogues were longer than the model can read, and lost their beginning")
