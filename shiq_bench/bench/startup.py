"""Seconds until something happens: a command answers, a run makes its first update, new weights say a token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from shiq_bench.api.registry import tasks
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.progress import LiveReport

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
    last = f"run --task {task}, from a filled cache, to its first update"
    found: dict[str, float] = {}
    with LiveReport(Console(stderr=True)) as report, tempfile.TemporaryDirectory() as compiled:
        environment = _environment(compiled)
        timers = {name: partial(_process, words, environment) for name, words in COMMANDS.items()}
        timers[last] = partial(_first_update, task, environment)
        for done, (name, timer) in enumerate(timers.items()):
            report("filling caches", done, len(timers))
            timer()
            report("starting processes", done, len(timers))
            found[name] = min(timer() for _ in range(repeat))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    out = Table("what", "seconds", title=f"a process each, the best of {repeat}")
    for label, seconds in found.items():
        out.add_row(label, f"{seconds:.2f}")
    Console().print(out)


def _process(words: list[str], environment: Mapping[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder, env=environment)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed: {_last_line(done.stderr)}")
    return seconds


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "it said nothing"


def _environment(compiled: str) -> dict[str, str]:
    """Ours, with this very package first; modules are compiled into a folder, and once, as where they are installed.

    Where nothing was compiled at installation and nothing may be written, every start compiles all
    it imports, and torch alone takes three seconds more.
    """
    here = str(Path(__file__).resolve().parent.parent.parent)
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**ours, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": compiled}


def _first_update(task: str, environment: Mapping[str, str]) -> float:
    """Seconds until a run says that it has done an update; it is stopped then."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["run", "--algo", "shiq", "--task", task, "--model", "tiny", "--steps", "2", "--eval-limit", "4"]
        code = (
            "from shiq_bench.bench.startup import stop_at_first_update; stop_at_first_update(); "
            f"from shiq_bench.cli.app import app; app({words!r}, standalone_mode=False)"
        )
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment)
        if not done.stdout.strip().endswith("updated"):
            raise UserError(f"run --task {task} made no update: {_last_line(done.stderr)}")
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


def print_sync(task_name: str, engine: Literal["vllm", "hf"], repeat: int, as_json: bool) -> None:
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
    found: dict[str, list[float]] = {"handed over": [], "opened anew": []}
    with ExitStack() as opened:
        report = opened.enter_context(LiveReport(Console(stderr=True)))
        task = opened.enter_context(closing(tasks.get(task_name)()))
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        spec = RunSpec("", task_name, **{**task.defaults, "model": "tiny"})
        source = resolve_model(spec, task, report)
        policy = load_policy(source)
        policy.model.save_pretrained(folder)
        opening = partial(
            make_generator, engine, folder, tokenizer_vocab=len(source.tokenizer()), max_length=spec.max_length
        )
        generator = opening()
        opened.callback(lambda: generator.close())
        for way in found:
            for done in range(repeat):
                report(f"weights {way}", done, repeat)
                start = time.perf_counter()
                policy.model.save_pretrained(folder)
                if way == "handed over":
                    generator.load(folder)
                else:
                    generator.close()
                    generator = opening()
                generator.generate([[0]], temperature=1.0, max_tokens=1, seeds=[0], stop_ids=[])
                found[way].append(time.perf_counter() - start)
    if as_json:
        print(json.dumps({"task": task_name, "engine": engine, "seconds": found}, indent=2))
        return
    out = Table("weights", "seconds, median", "least", "most", title=f"{task_name}, model tiny, engine {engine}")
    for name, seconds in found.items():
        middle = sorted(seconds)[len(seconds) // 2]
        out.add_row(name, f"{middle:.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}")
    Console().print(out)
