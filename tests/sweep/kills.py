"""Kill a sweep at random moments, start it again each time, and compare what it leaves with an uninterrupted one's.

``python -m tests.sweep.kills --kills 20`` prints what it counted; the tests do the same with fewer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiq_bench.records.event_log import events, logged

#: A run takes about as long as the moments between two kills: some end, and some are torn.
TABLES = [
    "--algo", "shiq,dpo,copg", "--task", "bandit,tree", "--seeds", "0-3", "--set", "steps=600",
    "--grid", "beta=0.03,0.05,0.1,0.2,0.3,0.5,1,2",
]  # fmt: skip
#: What a killed run has trained so far is gone on from.
MODELS = [
    "--algo", "shiq,sft", "--task", "tree", "--seeds", "0,1", "--model", "tiny", "--set", "engine=hf",
    "--set", "steps=300", "--set", "save_every=10", "--set", "depth=2", "--set", "eval_samples=0",
]  # fmt: skip

#: What a second execution may do otherwise: it takes its own time, and counts its own memory.
OWN = ("timings", "peak_memory_mb", "hardware", "git_dirty", "git_commit")


@dataclass(frozen=True)
class Outcome:
    """What was counted.

    Attributes:
        kills: how often the sweep was killed while runs were left.
        runs: of the sweep.
        executions: lines of the log that start one.
        again: executions of a run that was finished already.
        differing: runs whose record is not the uninterrupted sweep's.
    """

    kills: int
    runs: int
    executions: int
    again: int
    differing: tuple[str, ...]


def command(results: Path, flags: list[str], workers: int) -> list[str]:
    shiq_bench = [sys.executable, "-m", "shiq_bench.cli", "sweep"]
    return [*shiq_bench, *flags, "--results", str(results), "--workers", str(workers)]


def family(pid: int) -> list[int]:
    """A process and all that it started, sessions of their own or not."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(p for child in children for p in family(int(child)))]
    return [pid]


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to all of a sweep at once."""
    for pid in family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def content(record: Path) -> dict[str, Any]:
    data = {k: v for k, v in json.loads(record.read_text()).items() if k not in OWN}
    data["spec"] = {k: v for k, v in data["spec"].items() if k != "results"}
    return data


def killed(flags: list[str], folder: Path, kills: int, longest: float, seed: int = 0, workers: int = 2) -> Outcome:
    """Run a sweep to its end, and another one with kills at random moments."""
    whole, torn = folder / "whole", folder / "torn"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(whole, flags, workers), check=True, capture_output=True, env=env)
    draw, done = random.Random(seed), 0
    for _ in range(kills):
        process = subprocess.Popen(
            command(torn, flags, workers), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = logged(torn)
        # What is killed before it starts anything proves little.
        while process.poll() is None and logged(torn) == before:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, longest))
        if process.poll() is None:
            kill(process)
            done += 1
        else:
            break
    subprocess.run(command(torn, flags, workers), check=True, capture_output=True, env=env)
    records = {p.parent.name: content(p) for p in whole.glob("*/record.json")}
    found = {p.parent.name: content(p) for p in torn.glob("*/record.json")}
    log = events(torn)
    starts, again = 0, 0
    for lines in log.values():
        over = False
        for line in lines:
            starts += line["event"] == "start"
            again += over and line["event"] == "start"
            over = over or line["event"] == "done"
    differing = tuple(sorted(i for i in {*records, *found} if records.get(i) != found.get(i)))
    return Outcome(done, len(records), starts, again, differing)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds from a run's start to a kill, at most")
    parser.add_argument("--of", choices=["tables", "models"], nargs="*", default=["tables", "models"])
    asked = parser.parse_args()
    for name, flags in {"tables": TABLES, "models": MODELS}.items():
        if name not in asked.of:
            continue
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            found = killed(flags, Path(folder), asked.kills, asked.longest)
            print(f"{name}: {found}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
