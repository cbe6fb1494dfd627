"""One run under way: what it was asked, what it found so far, and the engine it samples with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.task import Task
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.generation.generator import Generator, Guide
from shiq_bench.generation.opening import make_generator
from shiq_bench.models.lora import is_adapter, parse_lora
from shiq_bench.records import event_log, leases, run_store
from shiq_bench.records.record import RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.resolved import Resolved
from shiq_bench.training.stopping import StopFlag

if TYPE_CHECKING:
    from shiq_bench.models.source import ModelSource

Report = Callable[[str, int, int], None]


@dataclass
class Run:
    """One run under way: what it was asked, what it found so far, and the engine it samples with.

    ``given`` holds the trajectories of the dataset that ``spec.data`` names, where it names one.
    """

    resolved: Resolved
    report: event_log.Watch
    stop: StopFlag
    record: RunRecord
    timings: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    deviations: list[str] = field(default_factory=list)
    given: list[Trajectory] = field(default_factory=list)
    lease: leases.Lease | None = None
    _generator: Generator | None = None
    _serving: Path | None = None

    @property
    def spec(self) -> RunSpec:
        return self.resolved.spec

    @property
    def task(self) -> Task:
        return self.resolved.task

    @property
    def algorithm(self) -> Algorithm:
        return self.resolved.algorithm

    @property
    def folder(self) -> Path:
        return run_store.run_folder(self.spec.results, self.spec.run_id)

    def keep(self, **changes: Any) -> None:
        """Change the record and store it."""
        if self.lease is not None:
            self.lease.check()
        self.record = replace(self.record, **changes)
        run_store.save(self.record, self.spec.results)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(what, done, total)

    def counter(self, what: str) -> Callable[[Mapping[str, float]], None]:
        """Reports the progress of a training, from what its trainer logs."""
        steps = 0

        def on_step(logs: Mapping[str, float]) -> None:
            nonlocal steps
            steps = int(logs.get("step", steps + 1)) if "loss" in logs else steps
            self.report.numbers(logs)
            self.report(what, steps, self.spec.steps)

        return on_step

    def generator(
        self, source: ModelSource, folder: Path, *, guide: Guide | None = None, stale: bool = False
    ) -> Generator:
        """The sampler with the weights of ``folder`` in place, made on first use.

        Args:
            guide: has the last word on what is drawn, for acting by two models; transformers samples then.
            stale: the folder holds other weights than when it was last asked for.
        """
        if guide is not None:
            self._close_generator()
        if self._generator is None:
            self._generator = start_generator(self.spec, source, folder, self.report, guide)
        elif self._serving != folder or stale:
            self._generator.load(folder)
        self._serving = folder
        return self._generator

    def _close_generator(self) -> None:
        if self._generator is not None:
            self._generator.close()
            self._generator = None

    def close(self) -> None:
        """Free the sampler and the task's workers."""
        self._close_generator()
        self.task.close()


def start_generator(
    spec: RunSpec, source: ModelSource, folder: Path, report: Report, guide: Guide | None = None
) -> Generator:
    """The sampler of a run, with the weights of ``folder``; with a ``guide``, that of transformers."""
    engine = "hf" if guide is not None else spec.engine
    report(f"starting {engine}", 0, 0)
    generator = make_generator(
        engine,
        source.folder if is_adapter(folder) else folder,
        tokenizer_vocab=len(source.tokenizer()),
        max_length=spec.max_length,
        # A guide computes in float32, and what it guides must be what it scores.
        dtype="bfloat16" if torch.cuda.is_available() and not (source.tiny or guide) else "float32",
        gpu_memory=spec.gpu_memory,
        trust_remote_code=source.trust_remote_code,
        guide=guide,
        lora_rank=parse_lora(spec.lora).r if spec.lora and not guide else 0,
    )
    if is_adapter(folder):
        generator.load(folder)
    return generator
