"""Executors: real processes, a real local Ray, and submitit's own local executor in the place of Slurm."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shiq_bench.records import event_log, leases, run_store
from shiq_bench.records.errors import UserError
from shiq_bench.sweep.executors import Executor, Inline, Local, Ray, Slurm, make_executor
from shiq_bench.sweep.grid import Job, fitting, of_flags
from shiq_bench.sweep.worker import Resources, places
from tests.sweep.plans import write_plan

SMALL = {"arms": "3", "contexts": "2", "draws": "6", "off_policy": "0"}


def jobs(results: Path, steps: int = 5, count: int = 4) -> list[Job]:
    given = {**SMALL, "steps": str(steps), "results": str(results)}
    betas = [str(0.1 * (i + 1)) for i in range(count)]
    return fitting(of_flags(["shiq"], ["bandit"], [0], given, {"beta": betas}))[0]


def finished(executor: Executor, within: float = 240.0) -> None:
    until = time.monotonic() + within
    while executor.alive():
        assert time.monotonic() < until, "the workers do not end"
        time.sleep(0.2)


def check_done(results: Path, todo: list[Job]) -> None:
    for job in todo:
        assert run_store.load(run_store.run_folder(results, job.run_id)).status == "done"
        assert [e["event"] for e in event_log.events(results)[job.run_id]].count("done") == 1


@pytest.mark.parametrize(
    ("resources", "count", "cores", "gpus", "expected"),
    [
        (Resources(), 9, 4, [], [("1", None)] * 4),
        (Resources(workers=2), 9, 8, [], [("4", None)] * 2),
        (Resources(cores=4), 9, 8, [], [("4", None)] * 2),
        (Resources(), 1, 8, [], [("8", None)]),
        (Resources(), 9, 8, ["0", "1"], [("4", "0"), ("4", "1")]),
        (Resources(gpus=2), 9, 8, ["0", "1", "2", "3"], [("4", "0,1"), ("4", "2,3")]),
        (Resources(gpus=0.5), 9, 8, ["5", "7"], [("2", "5"), ("2", "5"), ("2", "7"), ("2", "7")]),
        (Resources(gpus=0.4), 9, 8, ["5", "7"], [("2", "5"), ("2", "5"), ("2", "7"), ("2", "7")]),
        (Resources(gpus=0.6), 9, 8, ["5", "7"], [("4", "5"), ("4", "7")]),
        (Resources(gpus=1 / 3), 9, 6, ["5", "7"], [("1", "5")] * 3 + [("1", "7")] * 3),
        (Resources(gpus=0, workers=2), 9, 8, ["0"], [("4", ""), ("4", "")]),
    ],
)
def test_cores_and_gpus_are_shared_out(
    resources: Resources, count: int, cores: int, gpus: list[str], expected: list[tuple[str, str | None]]
) -> None:
    found = places(resources, count, cores, gpus)
    assert [(p["OMP_NUM_THREADS"], p.get("CUDA_VISIBLE_DEVICES")) for p in found] == expected


@pytest.mark.parametrize(
    ("resources", "gpus", "said"),
    [
        (Resources(gpus=2), ["0"], "this machine has 1"),
        (Resources(gpus=1, workers=3), ["0", "1"], "2 fit"),
        (Resources(gpus=0.6, workers=3), ["0", "1"], "2 fit"),
        (Resources(cores=9), [], "1 workers of --cores 9, and this machine has 8"),
        (Resources(cores=5, workers=2), [], "2 workers of --cores 5, and this machine has 8"),
    ],
)
def test_more_than_there_is(resources: Resources, gpus: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        places(resources, 9, 8, gpus)


@pytest.mark.parametrize("gpus", [-1.0, float("nan"), 1.5])
def test_gpus_that_are_no_number_of_them(gpus: float) -> None:
    with pytest.raises(UserError, match="--gpus"):
        Resources(gpus=gpus)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("rai", {}, "did you mean 'ray'"),
        ("local", {"address": "a:1"}, "--address is for --executor ray"),
        ("inline", {"options": {"a": "b"}}, "--slurm is for --executor slurm"),
        ("ray", {"options": {"a": "b"}}, "--slurm is for --executor slurm"),
    ],
)
def test_an_executor_that_is_none(name: str, more: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        make_executor(name, Resources(), tmp_path, **more)  # type: ignore[arg-type]


def test_inline_the_worker_is_this_process(tmp_path: Path) -> None:
    """A look is at most one run, so that they can be shown as they end."""
    todo = jobs(tmp_path)
    with Inline() as executor:
        executor.start(write_plan(tmp_path, todo), len(todo))
        ended = []
        while executor.alive():
            ended.append(len(list(tmp_path.glob("*/record.json"))))
    assert ended == [0, 1, 2, 3, 4]
    check_done(tmp_path, todo)
    pids = {e["pid"] for lines in event_log.events(tmp_path).values() for e in lines}
    assert pids == {os.getpid()} and executor.alive() == 0


@pytest.mark.proof
def test_a_worker_that_is_killed_is_followed_by_another(tmp_path: Path) -> None:
    todo = jobs(tmp_path, steps=1500)
    with Local(Resources(workers=1)) as executor:
        executor.start(write_plan(tmp_path, todo), len(todo))
        victim = wait_for_holder(tmp_path, todo)
        os.kill(victim, signal.SIGKILL)
        finished(executor)
    check_done(tmp_path, todo)
    assert "crashed" in [e["event"] for lines in event_log.events(tmp_path).values() for e in lines]


def test_a_worker_that_cannot_work_ends_the_sweep(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, jobs(tmp_path))
    plan.write_text("no plan")
    with Local(Resources(workers=1)) as executor, pytest.raises(UserError, match="is no plan of a sweep"):
        executor.start(plan, 1)
        finished(executor)


def test_workers_that_die_before_they_begin_are_not_followed_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(9)")
    with Local(Resources(workers=1)) as executor, pytest.raises(UserError, match="3 workers died one after the other"):
        executor.start(write_plan(tmp_path, jobs(tmp_path)), 1)
        finished(executor, within=60)


@pytest.mark.proof
def test_workers_that_are_killed_at_work_are_all_followed(tmp_path: Path) -> None:
    """Three at once, as where memory is short: they had begun."""
    todo = jobs(tmp_path, steps=200_000, count=3)
    with Local(Resources(workers=3, cores=0)) as executor:
        executor.start(write_plan(tmp_path, todo), len(todo))
        until = time.monotonic() + 200
        while len(event_log.events(tmp_path)) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        for worker in executor._workers:
            worker.kill()
            worker.wait()
        assert executor.alive() == 3


def test_workers_are_stopped_with_the_executor(tmp_path: Path) -> None:
    todo = jobs(tmp_path, steps=200_000, count=1)
    with Local(Resources(workers=1)) as executor:
        executor.start(write_plan(tmp_path, todo), 1)
        wait_for_holder(tmp_path, todo)
    assert executor.alive() == 0
    assert [e["event"] for e in event_log.events(tmp_path)[todo[0].run_id]] == ["start", "interrupted"]
    assert run_store.load(run_store.run_folder(tmp_path, todo[0].run_id)).status == "started"


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    todo = jobs(tmp_path, steps=200_000, count=1)
    plan = write_plan(tmp_path, todo)
    script = (
        "import sys, time; from pathlib import Path; from shiq_bench.sweep.executors import *\n"
        f"Local(Resources(workers=1)).start(Path({str(plan)!r}), 1); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    worker = wait_for_holder(tmp_path, todo)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 60
    while leases._born(worker) and time.monotonic() < until:
        time.sleep(0.1)
    assert not leases._born(worker)
    assert [e["event"] for e in event_log.events(tmp_path)[todo[0].run_id]] == ["start", "interrupted"]


def wait_for_holder(results: Path, todo: list[Job], within: float = 120.0) -> int:
    """The process of whichever run is at work first, once it trains."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        for job in todo:
            who = leases.holder(event_log.lease_path(results, job.run_id))
            found = event_log.progress(results, job.run_id)
            if who and found is not None and found.stage == "training":
                return int(who["pid"])
        time.sleep(0.05)
    raise AssertionError("no run was started")


# --- Ray -----------------------------------------------------------------------------------------


@pytest.fixture
def ray() -> Iterator[None]:
    pytest.importorskip("ray")
    yield
    import ray as module

    module.shutdown()


@pytest.mark.proof
@pytest.mark.timeout(400)
def test_two_workers_of_ray_and_one_is_killed_in_the_middle_of_a_run(tmp_path: Path, ray: None) -> None:
    todo = jobs(tmp_path, steps=1500, count=4)
    with Ray(Resources(workers=2)) as executor:
        try:
            executor.start(write_plan(tmp_path, todo), len(todo))
        except UserError as error:
            if "timed out during startup" in str(error):  # Ray's own limit, which cannot be raised
                pytest.skip(f"this machine is too busy for Ray: {error}")
            raise
        victim = wait_for_holder(tmp_path, todo)
        os.kill(victim, signal.SIGKILL)
        finished(executor)
    check_done(tmp_path, todo)
    events = [e for lines in event_log.events(tmp_path).values() for e in lines]
    assert sum(e["event"] == "crashed" for e in events) == 1
    assert len({e["pid"] for e in events if e["event"] == "start"}) >= 2


@pytest.mark.proof
def test_a_ray_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"no Ray answers at 127.0.0.1:{port}"):
        Ray(Resources(), f"127.0.0.1:{port}").start(tmp_path / "plan", 1)
    assert time.monotonic() - began < 30
    with pytest.raises(UserError, match="expected host:port"):
        Ray(Resources(), "somewhere").start(tmp_path / "plan", 1)


# --- Slurm ---------------------------------------------------------------------------------------


@pytest.mark.proof
def test_jobs_of_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    todo = jobs(tmp_path)
    with Slurm(Resources(workers=2), tmp_path / "slurm", cluster="local") as executor:
        executor.start(write_plan(tmp_path, todo), len(todo))
        finished(executor)
    check_done(tmp_path, todo)


@pytest.mark.proof
def test_a_job_of_submitit_that_is_killed_is_followed_by_another(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    todo = jobs(tmp_path, steps=1500, count=2)
    given = {"timeout_min": "60", "cluster": "local"}
    executor = make_executor("slurm", Resources(workers=1), tmp_path / "slurm", options=given)
    with executor:
        executor.start(write_plan(tmp_path, todo), len(todo))
        os.kill(wait_for_holder(tmp_path, todo), signal.SIGKILL)
        finished(executor)
    check_done(tmp_path, todo)
    assert "crashed" in [e["event"] for lines in event_log.events(tmp_path).values() for e in lines]


@dataclass
class Queued:
    """What is asked of a job of submitit, at one moment: ``ended`` is None while it runs, and else how it ended."""

    ended: str | None = None

    def done(self) -> bool:
        return self.ended is not None

    def exception(self) -> Exception | None:
        return RuntimeError("killed") if self.ended == "killed" else None

    def result(self) -> str:
        return ""


class Queue:
    """Refuses so many jobs."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals

    def submit(self, *_: object) -> Queued:
        if self.refusals:
            self.refusals -= 1
            raise RuntimeError("QOSMaxSubmitJobPerUserLimit")
        return Queued()


def test_a_job_that_slurm_refuses_for_now_is_asked_for_again(tmp_path: Path) -> None:
    executor = Slurm(Resources(workers=2), tmp_path)
    executor._plan, executor._executor = write_plan(tmp_path, jobs(tmp_path)), Queue(refusals=2)
    running, killed = Queued(), Queued("killed")
    executor._jobs = [running, killed]
    assert [executor.alive() for _ in range(3)] == [1, 1, 2], "the others go on meanwhile"
    executor._jobs, executor._executor = [Queued("killed")], Queue(refusals=1)
    with pytest.raises(UserError, match="Slurm takes no more jobs: QOSMaxSubmitJobPerUserLimit"):
        executor.alive()
    executor._jobs = [Queued("killed"), Queued("well")]
    assert executor.alive() == 0, "all is done: nobody is missed"


@pytest.mark.parametrize(
    ("text", "value"),
    [("60", 60), ("0", 0), ("12:00:00", "12:00:00"), ("0123", "0123"), ("[a|b]", "[a|b]"), ("no", "no"),
     ("run: a: b", "run: a: b"), ("true", True), ("8GB", "8GB")],
)  # fmt: skip
def test_options_of_slurm_stay_what_they_are(text: str, value: object, tmp_path: Path) -> None:
    executor = make_executor("slurm", Resources(workers=1), tmp_path, options={"slurm_x": text})
    assert isinstance(executor, Slurm) and executor.options == {"slurm_x": value}
    assert type(executor.options["slurm_x"]) is type(value)


@pytest.mark.proof
def test_an_error_of_a_job_of_submitit_ends_the_sweep(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    plan = write_plan(tmp_path, jobs(tmp_path))
    plan.write_text("no plan")
    with Slurm(Resources(workers=1), tmp_path / "slurm", cluster="local") as executor:
        executor.start(plan, 1)
        with pytest.raises(UserError, match="is no plan of a sweep"):
            finished(executor)


def test_slurm_says_what_it_lacks(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="--workers is missing"):
        Slurm(Resources(), tmp_path).start(tmp_path / "plan", 1)
    with pytest.raises(UserError, match="Slurm takes no jobs"):
        Slurm(Resources(workers=1), tmp_path).start(tmp_path / "plan", 1)
    with pytest.raises(UserError, match="Slurm gives whole GPUs"):
        Slurm(Resources(workers=1, gpus=0.5), tmp_path)
    with pytest.raises(UserError, match="Slurm takes no jobs"):
        make_executor("slurm", Resources(workers=1), tmp_path, options={"cluster": "local", "nodes": "many"}).start(
            tmp_path / "plan", 1
        )
