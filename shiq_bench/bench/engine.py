"""Token statistics, sampling, the rollout and seeds of a table."""

from __future__ import annotations

import time
from collections import defaultdict
from itertools import groupby
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from shiq_bench.api.needs import OnPolicy
from shiq_bench.api.registry import tasks
from shiq_bench.api.token_stats import stats_from_logits, token_stats
from shiq_bench.api.trajectory import Transcript
from shiq_bench.bench.process import fresh_process, peak
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.progress import LiveReport
from shiq_bench.training.policy import load_policy


def measure_tokens(form: str, positions: int, width: int, vocabulary: int, chunk: int) -> dict[str, float]:
    """Seconds and additional peak memory (MiB) of one forward and backward pass, in this process."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden = torch.randn(positions, width, device=device, requires_grad=True)
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (positions,), device=device)
    small = torch.randn(8, width, device=device)  # loads the matrix library before memory is read
    (small @ weight[:8].detach().T).sum().item()

    before = peak(device)
    start = time.perf_counter()
    if form == "chunked":
        logp, lse = token_stats(hidden, weight, targets, chunk=chunk)
    else:
        logp, lse = stats_from_logits(hidden @ weight.T, targets)
    (logp.sum() + 0.1 * lse.square().sum()).backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "mib": peak(device) - before}


def print_tokens(positions: int, width: int, chunk: int, vocabularies: list[int]) -> None:
    """Each form in a process of its own, since a process's peak memory never comes down."""
    counts = {"positions": positions, "width": width, "chunk": chunk, "vocabulary": min(vocabularies)}
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"--{name} is {value}; expected 1 or more")
    out = Table(
        title=f"token statistics, forward and backward: {positions} positions, width {width}, chunk {chunk}, float32"
    )
    for column in ("vocabulary", "form", "seconds", "peak MiB", "bound MiB"):
        out.add_column(column, justify="left" if column == "form" else "right")
    for vocabulary in vocabularies:
        bound = (2 * min(chunk, positions) * vocabulary + vocabulary * width) * 4 / 2**20
        for form in ("chunked", "naive"):
            got = fresh_process(measure_tokens, form, positions, width, vocabulary, chunk)
            cells = (got, "–") if isinstance(got, str) else (f"{got['seconds']:.2f}", f"{got['mib']:.0f}")
            out.add_row(str(vocabulary), form, *cells, f"{bound:.0f}" if form == "chunked" else "")
    console = Console()
    console.print(out)
    console.print(
        "bound: two chunks of logits and the head's gradient; peaks count what the pass added to its inputs",
        style="dim",
    )


def print_generation(task_name: str, count: int, max_tokens: int, model: str) -> None:
    """The same prompts, sampled once by each engine with the same seeds."""
    from transformers.utils import logging as transformers_logging

    from shiq_bench.evaluation.evaluate import score_paths
    from shiq_bench.generation.opening import make_generator
    from shiq_bench.training.starting_policy import resolve_model

    transformers_logging.disable_progress_bar()
    if count < 1 or max_tokens < 1:
        raise UserError(f"--prompts {count} --max-tokens {max_tokens}: expected 1 or more of each")
    task = tasks.get(task_name)()
    spec = RunSpec("", task_name, **{**task.defaults, "model": model, "max_tokens": max_tokens})
    with LiveReport(Console(stderr=True)) as report:
        source = resolve_model(spec, task, report)
        codec, policy = source.codec(), load_policy(source)
        ids = task.prompts("rl") + task.prompts("heldout")
        chosen = [ids[i % len(ids)] for i in range(count)]
        prompts = [e.transcript.token_ids for e in task.episodes(chosen, codec, spec.max_length)]
        out = Table(
            title=f"{count} prompts of {task_name}, at most {max_tokens} tokens, temperature 1, model {model}, one run"
        )
        for column in ("engine", "tokens", "seconds", "tokens/s", "mean gap, nats a token", "largest"):
            out.add_column(column, justify="left" if column == "engine" else "right")
        for engine in ("vllm", "hf"):
            report(f"sampling with {engine}", 0, 0)
            try:
                generator = make_generator(
                    engine, source.folder, tokenizer_vocab=len(source.tokenizer()), max_length=spec.max_length,
                    dtype="float32", gpu_memory=spec.gpu_memory,
                )  # fmt: skip
            except UserError as error:
                out.add_row(engine, str(error))
                continue
            settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": max_tokens, "stop_ids": codec.end_ids}
            generator.generate(prompts[:8], seeds=range(len(prompts[:8])), **settings)  # warm up
            start = time.perf_counter()
            completions = generator.generate(prompts, seeds=range(count), **settings)
            seconds = time.perf_counter() - start
            generator.close()
            paths = []
            for prompt, completion, name in zip(prompts, completions, chosen, strict=True):
                transcript = Transcript(prompt)
                transcript.act(completion)
                paths.append(transcript.trajectory(name, {}, engine))
            gap, _ = score_paths(paths, policy, None)
            worst = max(score_paths([p], policy, None)[0] for p in paths)
            tokens = sum(len(c.token_ids) for c in completions)
            out.add_row(engine, str(tokens), f"{seconds:.2f}", f"{tokens / seconds:.0f}", f"{gap:.1e}", f"{worst:.1e}")
        task.close()
    Console().print(out)
    Console().print(
        "gap: |log-probability of the sampler - of the transformers model in float32|; largest: by completion",
        style="dim",
    )


def print_seeds(algo: str, task_name: str, count: int, steps: int) -> None:
    """All seeds of a table at once, one alone, and the same seeds one after the other; and how far their losses differ.

    Raises:
        UserError: the task is no table, or the method learns from samples that this does not draw.
    """
    from shiq_bench.data.groups import in_unit_range
    from shiq_bench.runs.settings import resolve
    from shiq_bench.tabular.task import TabularTask
    from shiq_bench.tabular.training import tabulate, train_tables

    resolved = resolve(algo, task_name, {"steps": steps, "seeds": count})
    task, algorithm = resolved.task, resolved.algorithm
    if not isinstance(task, TabularTask):
        raise UserError(f"task {task_name} is no table: expected bandit, tree, gridworld or the like")
    if algorithm.need(OnPolicy):
        raise UserError(f"{algo} learns from its own samples: take a method that learns from stored data")

    def train(numbers: list[int]) -> tuple[float, torch.Tensor]:
        worlds = [task.world(n) for n in numbers]
        data = [in_unit_range(task.data(n), algorithm, task.largest_return) for n in numbers]
        tables = tabulate(worlds, data, algorithm, resolved.spec.labels, seeds=numbers)
        start = time.perf_counter()
        found = train_tables(algorithm, tables, resolved.spec)
        return time.perf_counter() - start, found.log_pi

    train([0])  # the first call loads what later ones find loaded
    one, _ = train([0])
    together, policies = train(list(range(count)))
    apart = [train([n]) for n in range(count)]
    gap = float((policies - torch.cat([found for _, found in apart])).abs().max())
    out = Table("seeds", "seconds", "times one seed", title=f"{algo} on {task_name}, {steps} updates")
    rows = {"1": one, f"{count} at once": together, f"{count} one by one": sum(s for s, _ in apart)}
    for label, seconds in rows.items():
        out.add_row(label, f"{seconds:.2f}", f"{seconds / one:.2f}")
    Console().print(out)
    Console().print(f"largest difference of a log-probability, at once and one by one: {gap:.1e}", style="dim")


class _Stopwatch:
    """An object whose methods add to the clock: seconds by the name given."""

    def __init__(self, inner: Any, name: str, clock: dict[str, float]) -> None:
        self._inner, self._name, self._clock = inner, name, clock

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)
        if not callable(found):
            return found

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return found(*args, **kwargs)
            finally:
                self._clock[self._name] += time.perf_counter() - start

        return timed


def print_rollout(task_name: str, sets: list[str], split: str) -> None:
    """The task's demonstrations through the whole rollout: what a step costs beside the model.

    Raises:
        UserError: the task has no demonstrations, or no tokenizer of its own.
    """
    from shiq_bench.generation.rollout import replay
    from shiq_bench.runs.settings import parse_sets, resolve_data
    from shiq_bench.training.starting_policy import resolve_model

    plain = tasks.get(task_name)()  # its tokenizer serves whatever the options are
    _, task = resolve_data(task_name, parse_sets(sets), ())
    clock: dict[str, float] = defaultdict(float)
    try:
        with LiveReport(Console(stderr=True)) as report:
            codec: Any = resolve_model(RunSpec("", task_name), plain, report).codec()
            watched: Any = _Stopwatch(codec, "tokenising", clock)
            executor = getattr(task, "executor", None)
            if executor is not None:
                executor.run = _Stopwatch(executor, "executing calls", clock).run
            report("playing the demonstrations", 0, 0)
            start = time.perf_counter()
            episodes = task.episodes(task.prompts(split), watched, 1 << 20)
            played = replay(task, episodes, watched)
            stepped = time.perf_counter()
            scored = task.finish(played, "gold")
            done = time.perf_counter()
    finally:
        plain.close()
        task.close()
    # An answer is a run of action tokens.
    answers = sum(is_action for t, _ in scored for is_action, _ in groupby(t.action_mask))
    if not answers:
        raise UserError(f"task {task_name} has no demonstrations to play")
    out = Table(title=f"{len(scored)} episodes of {task_name}, {split}; {answers} answers, all live episodes together")
    for column in ("stage", "seconds", "ms an answer"):
        out.add_column(column, justify="left" if column == "stage" else "right")
    playing = stepped - start
    rows = {
        "playing": playing,
        **{f"  {name}": seconds for name, seconds in clock.items()},
        "  the loop itself": playing - sum(clock.values()),
        "scoring": done - stepped,
        "in all": done - start,
    }
    for stage, seconds in rows.items():
        out.add_row(stage, f"{seconds:.2f}", f"{1e3 * seconds / answers:.2f}")
    Console().print(out)
