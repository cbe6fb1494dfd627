"""A measurement in a process of its own, whose memory nobody else has used; and what the machine can do at all."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak(device: str) -> float:
    """Peak memory of this process, in MiB: allocated on a GPU, or resident.

    Linux counts ``ru_maxrss`` from before exec, the parent's included; ``VmHWM`` is this program's own.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh_process(measure: Callable[..., dict[str, float]], *args: Any, **kwargs: Any) -> dict[str, float] | str:
    """What a function of a module measures in a fresh process, or why it measured nothing."""
    code = (
        f"import json; from {measure.__module__} import {measure.__name__}; "
        f"print(json.dumps({measure.__name__}(*{args!r}, **{kwargs!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode == 0:
        return {k: float(v) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}
    return "killed" if done.returncode < 0 else done.stderr.strip().rpartition("\n")[2]


def matrix_rate(precision: str, size: int = 2048, seconds: float = 2.0) -> dict[str, float]:
    """GFLOP/s of square matrix products, ``fp32`` or ``bf16``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    (a @ a).sum().item()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        (a @ a).sum().item()
        count += 1
    return {"gflops": 2 * size**3 * count / (time.perf_counter() - start) / 1e9}
