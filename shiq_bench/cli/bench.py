"""``shiq-bench bench``: tokens, generation, rollout, seeds."""

from __future__ import annotations

from typing import Annotated

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
