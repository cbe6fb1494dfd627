"""One run from its settings to its record: started, resumed, interrupted, diverged or refused."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import secrets
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from shiq_bench.records import event_log, run_store
from shiq_bench.records.cache import telling
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import check_writable
from shiq_bench.records.provenance import code_hash, git, packages, same_code, source_hash
from shiq_bench.records.record import RunRecord
from shiq_bench.runs.context import Report, Run
from shiq_bench.runs.resolved import Resolved
from shiq_bench.runs.tabular import table_stages
from shiq_bench.runs.validation import check_demands
from shiq_bench.training.stopping import Diverged, Interrupted, StopFlag, last_checkpoint

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
    watch = event_log.Watch(spec.results, spec.run_id, report)
    with telling(lambda what, who: watch(f"waiting for {who}: {what}", 0, 0)):
        check_demands(resolved)
        run = Run(resolved, watch, StopFlag(), _fresh_record(resolved))
        if spec.model != "table":  # importing transformers takes seconds, and a table needs none of it
            from shiq_bench.runs.language import open_language

            open_language(run)
        check_writable(Path(spec.results), need_mb=100)
        with event_log.claim(spec.results, spec.run_id) as run.lease:
            # Only now can nobody else change what is there, and it is looked at once more.
            if done := _earlier(run, resume, fresh) if needed() else run_store.load(run.folder):
                watch(f"{done.run_id} is done already: this is its record", 0, 0)
                return done
            resume = resume and (run.folder / run_store.RECORD).exists()
            run.keep()
            event_log.log(spec.results, spec.run_id, "start")
            try:
                _stages(run, resume)
            finally:
                if run.lease.held:  # or else it is another's, who says how it ends
                    ended: event_log.Event = "interrupted" if run.record.status == "started" else run.record.status
                    event_log.log(spec.results, spec.run_id, ended, run.record.error or "")
        return run.record


def _stages(run: Run, resume: bool) -> None:
    """The run itself, until its record is closed."""
    spec = run.spec
    with _signals(run.stop):
        try:
            if spec.model == "table":
                table_stages(run)
            else:
                from shiq_bench.runs.language import language_stages

                language_stages(run, resume)
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
    path = run.folder / run_store.RECORD
    if fresh is True:
        _delete(run.folder)
        return None
    if not path.exists():
        return None
    try:
        record = run_store.load(path)
    except UserError as error:
        raise UserError(f"{error}: delete {run.folder} to do this run again") from None
    ours, same = run.record, same_code(record, type(run.algorithm), type(run.task))
    if not same and fresh == "foreign":
        _delete(run.folder)
        return None
    if (
        not same
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
        away = folder.parent / event_log.FOLDER / f"deleted-{secrets.token_hex(6)}"
        try:
            folder.rename(away)
        except OSError as error:
            raise UserError(f"cannot replace {folder}: {error.strerror or error}") from error
        shutil.rmtree(away, ignore_errors=True)


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
        judges_hash=resolved.task.fingerprint(),
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
