"""Seconds until something happens: a command answers, a run makes its first update, new weights say a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shiq_bench.api.registry import tasks
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec

#: What is started, by its name in the table; a process each.
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import shiq_bench": ["-c", "from shiq_bench import Algorithm, Batch, LossOutput, Stats"],
    "--help": ["-m", "shiq_bench.cli", "--help"],
    "run --task bandit": ["-m", "shiq_bench.cli", "run", "--algo", "shiq", "--task", "bandit"],
}


def print_startup(task: str, repeat: int, as_json: bool) -> None:
    """Whole processes, and a run of a cached tiny model up to its first update; the best of some repetitions.

    Raises:
        UserError: a command failed.
    """
    found = {name: min(_process(words) for _ in range(repeat)) for name, words in COMMANDS.items()}
    name = f"run --task {task}, from a filled cache, to its first update"
    _first_update(task)  # fills the cache
    found[name] = min(_first_update(task) for _ in range(repeat))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    out = Table("what", "seconds", title=f"a process each, the best of {repeat}")
    for label, seconds in found.items():
        out.add_row(label, f"{seconds:.2f}")
    Console().print(out)


def _process(words: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder, env=_environment())
        seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed: {done.stderr.strip().splitlines()[-1]}")
    return seconds


def _environment() -> dict[str, str]:
    """Ours, with this very package first."""
    here = str(Path(__file__).resolve().parent.parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _first_update(task: str) -> float:
    """Seconds until a run says that it has done an update; it is stopped then."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["run", "--algo", "shiq", "--task", task, "--model", "tiny", "--steps", "2", "--eval-limit", "4"]
        code = (
            "from shiq_bench.bench.startup import stop_at_first_update; stop_at_first_update(); "
            f"from shiq_bench.cli.app import app; app({words!r}, standalone_mode=False)"
        )
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=_environment()
        )
        if not done.stdout.strip().endswith("updated"):
            raise UserError(f"run --task {task} made no update: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return float(done.stdout.split()[-2]) - start


def stop_at_first_update() -> None:
    """Have this process end with the first update of a run, and say when that was."""
    from shiq_bench.runs.context import Run

    counter = Run.counter

    def stopping(run: Run, what: str) -> Any:
        seen = counter(run, what)

        def on_step(logs: Any) -> None:
            seen(logs)
            if "loss" in logs:
                print(time.perf_counter(), "updated", flush=True)
                os._exit(0)

        return on_step

    Run.counter = stopping  # type: ignore[assignment,method-assign]


def print_sync(task_name: str, engine: str, repeat: int, as_json: bool) -> None:
    """From an update to the first fresh token: weights saved, handed to a live sampler, one token drawn; and the same
    with the sampler opened anew.

    Raises:
        UserError: the engine cannot be used here.
    """
    from shiq_bench.generation.opening import make_generator
    from shiq_bench.models.source import quiet
    from shiq_bench.training.policy import load_policy
    from shiq_bench.training.starting_policy import resolve_model

    quiet()
    task = tasks.get(task_name)()
    spec = RunSpec("", task_name, **{**task.defaults, "model": "tiny"})
    source = resolve_model(spec, task, lambda *_: None)
    policy = load_policy(source)
    options: dict[str, Any] = {"tokenizer_vocab": len(source.tokenizer()), "max_length": spec.max_length}
    found: dict[str, list[float]] = {"handed over": [], "opened anew": []}

    def first_token(generator: Any) -> None:
        generator.generate([[0]], temperature=1.0, max_tokens=1, seeds=[0], stop_ids=[])

    with tempfile.TemporaryDirectory() as folder:
        policy.model.save_pretrained(folder)
        generator = make_generator(engine, Path(folder), **options)  # type: ignore[arg-type]
        for _ in range(repeat):
            start = time.perf_counter()
            policy.model.save_pretrained(folder)
            generator.load(Path(folder))
            first_token(generator)
            found["handed over"].append(time.perf_counter() - start)
        for _ in range(repeat):
            start = time.perf_counter()
            policy.model.save_pretrained(folder)
            generator.close()
            generator = make_generator(engine, Path(folder), **options)  # type: ignore[arg-type]
            first_token(generator)
            found["opened anew"].append(time.perf_counter() - start)
        generator.close()
    task.close()
    if as_json:
        print(json.dumps({"task": task_name, "engine": engine, "seconds": found}, indent=2))
        return
    out = Table("weights", "seconds, median", "least", "most", title=f"{task_name}, model tiny, engine {engine}")
    for name, seconds in found.items():
        middle = sorted(seconds)[len(seconds) // 2]
        out.add_row(name, f"{middle:.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}")
    Console().print(out)
