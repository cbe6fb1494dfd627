"""What one worker of a sweep gets of a machine: cores, and GPUs or shares of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shiq_bench.records.errors import UserError
from shiq_bench.sweep.worker import environment


@dataclass(frozen=True)
class Resources:
    """What one worker gets, and how many there are.

    Attributes:
        workers: 0: as many as fit this machine, one a GPU or else one a core.
        cores: of each worker; 0: an equal share.
        gpus: of each worker; a share of one places several workers on it. None: one where there are any.
    """

    workers: int = 0
    cores: int = 0
    gpus: float | None = None

    def __post_init__(self) -> None:
        gpus = self.gpus or 0.0
        if self.workers < 0 or self.cores < 0 or not gpus >= 0:
            raise UserError("expected --workers, --cores and --gpus of 0 or more")
        if gpus > 1 and gpus != int(gpus):
            raise UserError(f"--gpus {gpus:g}: expected whole GPUs, or a share of one")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name for name in told.split(",") if name.strip() and name != "-1"]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in found.splitlines() if line.startswith("GPU "))]


def places(resources: Resources, count: int, cores: int, gpus: Sequence[str]) -> list[Mapping[str, str]]:
    """What each worker's environment says of cores and GPUs; as many entries as there are workers.

    Raises:
        UserError: a worker asks for more GPUs than there are.
    """
    each = resources.gpus if resources.gpus is not None else float(bool(gpus))
    if each > len(gpus):
        raise UserError(f"--gpus {each:g} a worker, and this machine has {len(gpus)}")
    if resources.cores * (resources.workers or 1) > cores:
        asked = f"{resources.workers or 1} workers of --cores {resources.cores}"
        raise UserError(f"{asked}, and this machine has {cores}: lower --workers or --cores")
    whole = max(1, int(each))
    on_one = int(1 / each + 1e-9) if 0 < each < 1 else 1  # a worker does not lie on two halves
    fit = len(gpus) // whole * on_one if each else max(1, cores // (resources.cores or 1))
    workers = max(1, min(resources.workers or fit, count))
    if each and workers > fit:
        raise UserError(f"{workers} workers of --gpus {each:g}, and this machine has {len(gpus)}: {fit} fit")
    threads = resources.cores or max(1, cores // workers)
    out = []
    for i in range(workers):
        first = i // on_one * whole
        devices = ",".join(gpus[first : first + whole]) if each else "" if gpus else None
        out.append(environment(threads, devices))
    return out
