"""One worker: what it runs, what it leaves to others, and when it gives up."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, LossOutput, Stats
from shiq_bench.api.registry import algorithms
from shiq_bench.records import event_log, leases, run_store
from shiq_bench.sweep.grid import Job, Options, Plan, fitting, of_flags, read_plan
from shiq_bench.sweep.worker import CRASHES, log_path, over, work
from tests.sweep.plans import write_plan

SMALL = {"arms": "3", "contexts": "2", "steps": "5", "draws": "6", "off_policy": "0"}


def jobs(results: Path, algos: str = "shiq dpo", **settings: str) -> list[Job]:
    return fitting(of_flags(algos.split(), ["bandit"], [0, 1], {**SMALL, "results": str(results), **settings}, {}))[0]


def kinds(results: Path, run_id: str) -> list[str]:
    return [e["event"] for e in event_log.events(results).get(run_id, [])]


def test_everything_is_run_once_and_then_nothing(tmp_path: Path) -> None:
    todo = jobs(tmp_path)
    for _ in range(2):
        work(write_plan(tmp_path, todo))
    for job in todo:
        assert run_store.load(run_store.run_folder(tmp_path, job.run_id)).status == "done"
        assert kinds(tmp_path, job.run_id) == ["start", "done"]
        assert job.name in log_path(tmp_path, job.run_id).read_text()
        shown = event_log.progress(tmp_path, job.run_id)
        assert shown is not None and shown.numbers["regret"] > 0
    assert not list((tmp_path / event_log.FOLDER).glob("*.lease"))


def test_what_another_process_has_is_left_to_it_until_it_dies(tmp_path: Path) -> None:
    first, second = jobs(tmp_path)
    script = (
        f"import time; from shiq_bench.records import event_log; event_log.claim({str(tmp_path)!r}, {first.run_id!r}); "
    )
    script += "import time; print('held', flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    plan = write_plan(tmp_path, [first, second])
    worker = subprocess.Popen(
        [sys.executable, "-m", "shiq_bench.sweep.worker", str(plan), str(os.getpid())], cwd=Path(__file__).parents[2]
    )
    until = time.monotonic() + 120
    while kinds(tmp_path, second.run_id) != ["start", "done"] and time.monotonic() < until:
        time.sleep(0.1)
    assert kinds(tmp_path, second.run_id) == ["start", "done"] and kinds(tmp_path, first.run_id) == []
    other.kill()
    other.wait()
    assert worker.wait(120) == 0
    assert kinds(tmp_path, first.run_id) == ["crashed", "start", "done"]


@pytest.mark.parametrize("before", ["failed", "diverged"])
def test_what_failed_is_tried_again_once_and_only_when_asked(tmp_path: Path, before: str) -> None:
    (job,) = jobs(tmp_path, "shiq")
    work(write_plan(tmp_path, [job]))
    record = run_store.load(run_store.run_folder(tmp_path, job.run_id))
    run_store.save(replace(record, status=before, error="boom"), tmp_path)  # type: ignore[arg-type]
    work(write_plan(tmp_path, [job]))
    assert run_store.load(run_store.run_folder(tmp_path, job.run_id)).status == before
    work(write_plan(tmp_path, [job], Options(retry=True)))
    assert run_store.load(run_store.run_folder(tmp_path, job.run_id)).status == "done"


def test_a_refusal_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Data that lack what a method needs are found when they are drawn."""
    bad = jobs(tmp_path, "dpo", draws="1")[0]
    good = jobs(tmp_path, "shiq")[0]
    work(write_plan(tmp_path, [bad, good]))
    lines = event_log.events(tmp_path)
    assert [e["event"] for e in lines[good.run_id]] == ["start", "done"]
    assert lines[bad.run_id][-1]["event"] == "failed" and "raise draws" in lines[bad.run_id][-1]["note"]
    assert "error:" in log_path(tmp_path, bad.run_id).read_text()


def test_other_code_s_runs_are_run_again_only_when_asked(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "shiq")
    work(write_plan(tmp_path, [job]))
    record = run_store.load(run_store.run_folder(tmp_path, job.run_id))
    run_store.save(replace(record, source_hash="other"), tmp_path)
    work(write_plan(tmp_path, [job]))
    assert run_store.load(run_store.run_folder(tmp_path, job.run_id)).source_hash == "other"
    work(write_plan(tmp_path, [job], Options(fresh=True)))
    assert run_store.load(run_store.run_folder(tmp_path, job.run_id)).source_hash == record.source_hash


def test_what_other_code_left_unfinished_is_begun_anew(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "shiq")
    work(write_plan(tmp_path, [job]))
    record = run_store.load(run_store.run_folder(tmp_path, job.run_id))
    run_store.save(replace(record, source_hash="other", status="started"), tmp_path)
    work(write_plan(tmp_path, [job]))
    assert run_store.load(run_store.run_folder(tmp_path, job.run_id)) == replace(
        record, timings=run_store.load(run_store.run_folder(tmp_path, job.run_id)).timings,
        peak_memory_mb=run_store.load(run_store.run_folder(tmp_path, job.run_id)).peak_memory_mb,
    )  # fmt: skip


@dataclass(frozen=True)
class Deadly(Algorithm):
    """Takes its process down."""

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it lives")


def test_a_run_that_takes_its_process_down_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(algorithms._classes, "deadly", Deadly)
    monkeypatch.setattr(Deadly, "name", "deadly", raising=False)
    (job,) = jobs(tmp_path, "deadly")
    plan = write_plan(tmp_path, [job])
    codes: list[int | None] = []
    while not codes or (codes[-1] and len(codes) < 10):
        worker = multiprocessing.get_context("fork").Process(target=work, args=(plan,))
        worker.start()
        worker.join(100)
        codes.append(worker.exitcode)
    assert codes == [-signal.SIGKILL] * CRASHES + [0]
    assert kinds(tmp_path, job.run_id).count("start") == CRASHES
    record = run_store.load(run_store.run_folder(tmp_path, job.run_id))
    assert record.status == "failed" and "took its process down" in (record.error or "")
    assert kinds(tmp_path, job.run_id)[-1] == "failed"


def test_a_failure_of_an_earlier_sweep_is_not_one_of_this(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "shiq")
    event_log.log(tmp_path, job.run_id, "failed", "before")
    plan = read_plan(write_plan(tmp_path, [job]))
    assert not over(plan, job, event_log.events(tmp_path, plan.since).get(job.run_id, []))
    event_log.log(tmp_path, job.run_id, "failed", "now")
    (now,) = event_log.events(tmp_path, plan.since)[job.run_id]
    assert now["note"] == "now" and over(plan, job, [now])
    assert not over(plan, job, [now, {"event": "start"}])


def test_a_lost_lease_ends_the_run_without_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever took it over writes; this one does not."""
    from shiq_bench.runs import execute as running
    from shiq_bench.runs.context import Run

    (job,) = jobs(tmp_path, "shiq")

    def stolen(run: Run) -> None:
        event_log.lease_path(tmp_path, job.run_id).unlink()

    monkeypatch.setattr(running, "table_stages", stolen)
    with pytest.raises(leases.Lost):
        running.execute(job.resolved(), resume=False, fresh=False, report=lambda *_: None)
    assert run_store.load(run_store.run_folder(tmp_path, job.run_id)).status == "started"
    assert kinds(tmp_path, job.run_id) == ["start"], "how it ends is for the other to say"


def test_what_this_code_left_is_gone_on_from(tmp_path: Path) -> None:
    """Only what other code has made is deleted, for its checkpoints are of no use."""
    from shiq_bench.runs.execute import execute

    (job,) = jobs(tmp_path, "shiq")
    work(write_plan(tmp_path, [job]))
    record = run_store.load(run_store.run_folder(tmp_path, job.run_id))
    checkpoint = tmp_path / job.run_id / "checkpoints" / "checkpoint-3"
    for source, stays in ((record.source_hash, True), ("other", False)):
        checkpoint.mkdir(parents=True, exist_ok=True)
        run_store.save(replace(record, source_hash=source, status="started"), tmp_path)
        execute(job.resolved(), resume=True, fresh="foreign", report=lambda *_: None)
        assert checkpoint.exists() == stays
    assert not list((tmp_path / event_log.FOLDER).glob("deleted-*"))


def test_several_workers_replace_what_other_code_left_once(tmp_path: Path) -> None:
    """Each finds all of it unfinished at first; what the first has done since is not deleted by the second."""
    todo = fitting(
        of_flags(
            ["shiq"], ["bandit"], [0], {**SMALL, "results": str(tmp_path)}, {"beta": [str(i) for i in range(1, 9)]}
        )
    )[0]
    work(write_plan(tmp_path, todo))
    for job in todo:
        record = run_store.load(run_store.run_folder(tmp_path, job.run_id))
        run_store.save(replace(record, source_hash="other", status="started"), tmp_path)
    plan = write_plan(tmp_path, todo)
    since = read_plan(plan).since
    workers = [multiprocessing.get_context("fork").Process(target=work, args=(plan,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [0] * 4
    found = event_log.events(tmp_path, since)
    assert {tuple(e["event"] for e in found[job.run_id]) for job in todo} == {("start", "done")}


def test_a_claimed_run_that_is_needed_no_more_stays_as_it_is(tmp_path: Path) -> None:
    from shiq_bench.runs.execute import execute

    (job,) = jobs(tmp_path, "shiq")
    work(write_plan(tmp_path, [job]))
    record = run_store.load(run_store.run_folder(tmp_path, job.run_id))
    run_store.save(replace(record, status="failed", error="boom"), tmp_path)
    found = execute(job.resolved(), resume=True, fresh="foreign", report=lambda *_: None, needed=lambda: False)
    assert found.error == "boom" and kinds(tmp_path, job.run_id) == ["start", "done"]


def test_an_error_of_a_plugin_fails_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> str:
        raise ZeroDivisionError("of a plugin")

    first, second = jobs(tmp_path)
    monkeypatch.setattr(type(first.resolved().task), "fingerprint", broken)
    work(write_plan(tmp_path, [first, second]))
    for job in (first, second):
        (event,) = event_log.events(tmp_path)[job.run_id]
        assert event["event"] == "failed" and event["note"] == "ZeroDivisionError: of a plugin"
    assert "Traceback" in log_path(tmp_path, first.run_id).read_text()


def test_a_run_that_was_killed_behind_its_record_is_done(tmp_path: Path) -> None:
    from shiq_bench.sweep.status import line

    (job,) = jobs(tmp_path, "shiq")
    work(write_plan(tmp_path, [job]))
    events = event_log.events(tmp_path)[job.run_id][:1]
    assert line(tmp_path, job.run_id, job.name, events, "waiting").state == "done"
    record = run_store.load(run_store.run_folder(tmp_path, job.run_id))
    run_store.save(replace(record, status="started"), tmp_path)
    assert line(tmp_path, job.run_id, job.name, events, "waiting").state == "interrupted"


def test_a_torn_record_says_what_to_delete(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "shiq")
    work(write_plan(tmp_path, [job]))
    path = tmp_path / job.run_id / "record.json"
    path.write_text(path.read_text()[:100])
    plan = write_plan(tmp_path, [job])
    work(plan)
    (event,) = event_log.events(tmp_path, read_plan(plan).since)[job.run_id]
    assert event["event"] == "failed" and f"delete {tmp_path / job.run_id}" in event["note"]
    assert path.read_text()


def test_relative_paths_are_meant_from_the_plan_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    todo = jobs(Path("results"), "shiq")
    plan: Plan = read_plan(write_plan(Path("results"), todo))
    path = (tmp_path / "results" / event_log.FOLDER).resolve()
    monkeypatch.chdir("/")
    work(next(path.glob("plan-*.jsonl")))
    assert plan.folder == str(tmp_path)
    assert (tmp_path / "results" / todo[0].run_id / "record.json").exists()
