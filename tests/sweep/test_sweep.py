"""Sweeps as they are typed: from the command to the records, killed, interrupted, tuned, and watched."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shiq_bench.records import event_log, run_store
from tests import command
from tests.sweep.kills import TABLES, killed

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "arms=3", "--set", "contexts=2", "--set", "off_policy=0", "--set", "steps=5"]


INLINE = ["--executor", "inline"]


def shiq_bench(*words: str | Path, code: int = 0) -> command.Finished:
    done = command.shiq_bench(*words)
    assert done.code == code, done.out + done.err
    return done


def sweep(results: Path, *words: str) -> command.Finished:
    grid = ["--algo", "shiq,dpo,sft", "--task", "bandit", "--grid", "beta=0.1,0.3", *SMALL]
    return shiq_bench("sweep", *grid, "--results", results, *words)


def test_from_flags_to_records_and_never_again(tmp_path: Path) -> None:
    planned = sweep(tmp_path, "--dry-run")
    assert "4 runs: 4 missing; 1 left out" in planned.out and not list(tmp_path.glob("*/record.json"))
    assert re.search(r"left out: sft on bandit: it has no setting beta", planned.out)
    first = sweep(tmp_path, "--workers", "2")
    assert "4 runs: 4 done; 1 left out" in first.out and "[4/4]" in first.err
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/record.json")}
    assert len(before) == 4
    second = sweep(tmp_path)
    assert "4 runs: 4 done" in second.out and "[" not in second.err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/record.json")} == before
    shown = shiq_bench("status", "--results", tmp_path).out
    assert "4 done" in shown and "dpo on bandit beta=0.3" in shown


def test_failures_are_shown_and_retried_when_asked(tmp_path: Path) -> None:
    words = [
        "sweep",
        "--algo",
        "shiq,dpo",
        "--task",
        "bandit",
        *SMALL,
        "--set",
        "draws=1",
        "--results",
        str(tmp_path),
        *INLINE,
    ]
    failed = shiq_bench(*words, code=2)
    assert "2 runs: 1 failed, 1 done" in failed.out
    assert re.search(r"failed: dpo on bandit.*: one episode a context: dpo compares two", failed.out)
    assert "1 of 2 runs did not end well" in failed.err and "--retry" in failed.err
    (dpo,) = [i for i in event_log.events(tmp_path) if i.startswith("dpo")]
    count = len(event_log.events(tmp_path)[dpo])
    shiq_bench(*words, "--retry", code=2)
    assert len(event_log.events(tmp_path)[dpo]) == count + 2


def test_a_study_by_workers_is_the_study(tmp_path: Path) -> None:
    """What a sweep has run, the study draws without running anything."""
    study = tmp_path / "small.yaml"
    study.write_text(
        "{title: Small, kind: table, metric: regret, task: bandit, methods: {ShiQ: {algo: shiq}, RWR: {algo: rwr}},"
        " settings: {arms: 3, contexts: 2, off_policy: 0, steps: 5, seeds: 2}}"
    )
    done = shiq_bench("sweep", study, "--results", tmp_path / "r", *INLINE)
    assert "2 runs: 2 done" in done.out and "draw it: shiq-bench study" in done.out
    events = event_log.events(tmp_path / "r")
    shiq_bench("study", study, "--results", tmp_path / "r")
    assert event_log.events(tmp_path / "r") == events and (tmp_path / "r" / "studies" / "small.md").exists()


def test_tuned_on_validation_and_then_run(tmp_path: Path) -> None:
    words = ["--algo", "shiq", "--task", "bandit", "--tune", "beta=0.03,0.1", "--budget", "2", "--seeds", "0-1"]
    done = shiq_bench("sweep", *words, *SMALL, "--results", tmp_path, *INLINE)
    assert re.search(r"chosen for shiq on bandit: beta=0\.\d+", done.out)
    specs = [run_store.load(p).spec for p in tmp_path.glob("*/record.json")]
    assert sorted((s.seed, s.seeds) for s in specs) == [(0, 2), (2, 2), (2, 2)]


@pytest.mark.timeout(900)
@pytest.mark.proof
def test_killed_at_random_moments_it_ends_in_the_same_records(tmp_path: Path) -> None:
    found = killed([*TABLES, "--algo", "shiq,dpo"], tmp_path, kills=3, longest=3.0)
    assert found.kills and found.again == 0 and found.differing == () and found.runs == 32
    assert found.executions >= found.runs


def test_ctrl_c_stops_the_workers_and_the_same_command_goes_on(tmp_path: Path) -> None:
    words = ["sweep", "--algo", "shiq,dpo", "--task", "bandit", "--seeds", "0-3", "--set", "steps=20000"]
    typed = [sys.executable, "-m", "shiq_bench.cli", *words, "--results", str(tmp_path), "--workers", "1"]
    process = subprocess.Popen(typed, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not event_log.events(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
    assert not list((tmp_path / event_log.FOLDER).glob("*.lease"))
    (lines,) = event_log.events(tmp_path).values()
    assert [e["event"] for e in lines] == ["start", "interrupted"]
    assert "interrupted" in shiq_bench("status", "--results", tmp_path).out


def test_two_sweeps_at_once_share_the_work(tmp_path: Path) -> None:
    words = ["sweep", "--algo", "shiq,dpo,copg", "--task", "bandit", "--grid", "beta=0.1,0.3", "--set", "steps=200"]
    typed = [sys.executable, "-m", "shiq_bench.cli", *words, "--results", str(tmp_path), *INLINE]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(typed, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(300) for p in both] == [0, 0]
    assert {tuple(e["event"] for e in lines) for lines in event_log.events(tmp_path).values()} == {("start", "done")}
    assert len(list(tmp_path.glob("*/record.json"))) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "bandit"], "--algo is missing"),
        (["--algo", "shik", "--task", "bandit"], "did you mean 'shiq'"),
        (["--algo", "shiq,shiq", "--task", "bandit"], "a name is given twice"),
        (["--algo", "shiq", "--task", "bandit", "--grid", "beta"], "--grid beta: expected"),
        (["--algo", "shiq", "--task", "bandit", "--executor", "rai"], "did you mean 'ray'"),
        (["--algo", "shiq", "--task", "bandit", "--executor", "ray", "--address", "nowhere"], "expected host:port"),
        (["curves-bandid"], "did you mean 'curves-bandit'"),
        (["curves-bandit", "--algo", "shiq"], "--algo is for sweeps without a study"),
        (["curves-bandit", "--tune", "beta=1,2"], "--tune chooses"),
        (["all"], "a sweep is of one study"),
        (["curves-bandit", "--seeds", "0-3"], "--seeds is for sweeps without a study"),
        (["--algo", "shiq", "--task", "bandit", "--set", "seed=5"], "--set seed: seeds are given by --seeds"),
        (["--algo", "shiq", "--task", "bandit", "--tune", "beta"], "--tune beta: expected"),
        (["--algo", "shiq", "--task", "bandit", "--executor", "slurm", "--slurm", "a"], "--slurm a: expected"),
        (["--algo", "shiq", "--task", "bandit", "--cores", "99"], "workers of --cores 99, and this machine has"),
        (["--algo", "shiq", "--task", "bandit", "--workers", "2", *INLINE], "inline runs all in this process"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = shiq_bench("sweep", *words, "--results", tmp_path / "r", code=2)
    assert said in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").glob("*/record.json"))


def test_status_of_nothing(tmp_path: Path) -> None:
    assert "nothing was run" in shiq_bench("status", "--results", tmp_path, code=2).err
    assert "does not exist" in shiq_bench("status", "--results", tmp_path / "no", code=2).err


def test_status_of_records_alone_and_of_torn_ones(tmp_path: Path) -> None:
    """As they come from another machine, without what lies beside them."""
    words = ["run", "--algo", "shiq", "--task", "bandit", *SMALL, "--results", str(tmp_path / "r")]
    shiq_bench(*words)
    (run_id,) = (p.name for p in (tmp_path / "r").glob("shiq-*"))
    shutil.copytree(tmp_path / "r" / run_id, tmp_path / "copy" / run_id)
    assert "1 done" in shiq_bench("status", "--results", tmp_path / "copy").out
    path = tmp_path / "copy" / run_id / "record.json"
    path.write_text(path.read_text()[:-20])
    shown = shiq_bench("status", "--results", tmp_path / "copy", code=2)
    assert f"skipped: {path}" in shown.out and "1 records cannot be read" in shown.err


def test_a_run_that_is_at_work_is_not_run_beside_it(tmp_path: Path) -> None:
    words = ["run", "--algo", "shiq", "--task", "bandit", *SMALL, "--results", str(tmp_path)]
    run_id = re.search(r"run_id: (\S+)", shiq_bench(*words, "--dry-run").out)
    assert run_id
    with event_log.claim(tmp_path, run_id[1]):
        assert "is being run by process" in shiq_bench(*words, code=2).err
    shiq_bench(*words)
