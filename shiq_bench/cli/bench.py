"""``shiq-bench bench``: tokens, training, cost, sync, startup, generation, rollout, seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from shiq_bench.cli.options import Sets

bench = typer.Typer(name="bench", help="Benchmark the engine against a baseline, in one run.", no_args_is_help=True)


@bench.command()
def tokens(
    positions: Annotated[int, typer.Option(help="Action positions.")] = 4096,
    width: Annotated[int, typer.Option(help="Hidden size.")] = 1024,
    chunk: Annotated[int, typer.Option(help="Positions whose logits are held at once.")] = 1024,
    vocabulary: Annotated[list[int] | None, typer.Option(help="Vocabulary sizes; repeat the option.")] = None,
) -> None:
    """Token statistics: time and peak memory beside the naive full-logits form."""
    from shiq_bench.bench.engine import print_tokens

    print_tokens(positions, width, chunk, vocabulary or [2048, 32768, 152064])


@bench.command()
def training(
    model: Annotated[str, typer.Option(help="A folder; by default random weights, shaped like a Llama of 135 M.")] = "",
    algo: Annotated[str, typer.Option(help="Algorithm.")] = "dpo",
    data: Annotated[str, typer.Option(help="JSON lines of prompt, chosen and rejected, cut at --max-length.")] = "",
    prompt: Annotated[int, typer.Option(help="Without data: tokens of a prompt.")] = 600,
    answer: Annotated[int, typer.Option(help="Without data: tokens of an answer.")] = 35,
    answers: Annotated[int, typer.Option(help="Without data: answers to a prompt.")] = 2,
    prompts: Annotated[int, typer.Option(help="Prompts in an update.")] = 4,
    updates: Annotated[int, typer.Option(help="Updates measured, behind one that is not.")] = 3,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    max_length: Annotated[int, typer.Option(help="With data: longest prompt and answer.")] = 512,
    forms: Annotated[str, typer.Option(help="Some of trl, padded, tree, joined by commas.")] = "trl,padded,tree",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Updates of a language model in either layout, beside TRL's DPOTrainer: tokens a second and peak memory."""
    from shiq_bench.bench.training import Work, print_training

    work = Work(model, algo, data, prompt, answer, answers, prompts, updates, precision, max_length)
    print_training(work, [form.strip() for form in forms.split(",")], json)


@bench.command()
def cost(
    out: Annotated[Path, typer.Option(help="Folder for cost.png and cost.json.")] = Path("results/cost"),
) -> None:
    """How an update's cost grows with prompts, answers, vocabulary and layers, in both layouts: four plots."""
    from shiq_bench.bench.cost import print_cost

    print_cost(out)


@bench.command()
def sync(
    task: Annotated[str, typer.Option(help="Task whose tiny model is used.")] = "bfcl",
    engine: Annotated[Literal["vllm", "hf"], typer.Option(help="Sampler.")] = "vllm",
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """From an update to the first fresh token: weights handed to a live sampler, beside a sampler opened anew."""
    from shiq_bench.bench.startup import print_sync

    print_sync(task, engine, repeat, json)


@bench.command()
def startup(
    task: Annotated[str, typer.Option(help="Task whose tiny model is trained.")] = "bfcl",
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions, of which the best counts.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Seconds until a command answers and until a run makes its first update, beside a bare Python."""
    from shiq_bench.bench.startup import print_startup

    print_startup(task, repeat, json)


@bench.command()
def generation(
    task: Annotated[str, typer.Option(help="Task whose prompts are used.")] = "bfcl",
    prompts: Annotated[int, typer.Option(help="Prompts.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    model: Annotated[str, typer.Option(help="'tiny', a folder, or a hub id.")] = "tiny",
) -> None:
    """vLLM beside transformers on the same prompts: tokens a second, and the log-probability gap."""
    from shiq_bench.bench.engine import print_generation

    print_generation(task, prompts, max_tokens, model)


@bench.command()
def rollout(
    task: Annotated[str, typer.Option(help="A task with demonstrations.")] = "bfcl",
    split: Annotated[str, typer.Option(help="Split whose demonstrations are played.")] = "rl",
    sets: Sets = None,
) -> None:
    """Demonstrations through the whole rollout: what everything but the model costs."""
    from shiq_bench.bench.engine import print_rollout

    print_rollout(task, sets or [], split)


@bench.command()
def seeds(
    algo: Annotated[str, typer.Option(help="Algorithm.")] = "shiq",
    task: Annotated[str, typer.Option(help="A tabular task.")] = "bandit",
    count: Annotated[int, typer.Option(help="Seeds.")] = 10,
    steps: Annotated[int, typer.Option(help="Updates.")] = 1000,
) -> None:
    """Seeds of a table trained at once beside the same seeds one by one."""
    from shiq_bench.bench.engine import print_seeds

    print_seeds(algo, task, count, steps)
