"""The log of executions, what it says of crashes, and how far a run is."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from shiq_bench.records import event_log, leases


def test_lines_of_many_are_all_there_and_in_order(tmp_path: Path) -> None:
    def write(name: str) -> None:
        for i in range(20):
            event_log.log(tmp_path, name, "start", str(i))

    threads = [threading.Thread(target=write, args=(f"run-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = event_log.events(tmp_path)
    assert {name: [e["note"] for e in lines] for name, lines in found.items()} == {
        f"run-{i}": [str(j) for j in range(20)] for i in range(4)
    }


def test_half_a_line_of_a_killed_process_costs_that_line_alone(tmp_path: Path) -> None:
    event_log.log(tmp_path, "a", "start")
    path = tmp_path / event_log.FOLDER / event_log.LOG
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    event_log.log(tmp_path, "b", "start")
    assert {name: len(lines) for name, lines in event_log.events(tmp_path).items()} == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([], 0),
        (["start"], 1),
        (["start", "crashed", "start"], 2),
        (["start", "crashed", "start", "crashed"], 2),
        (["start", "crashed", "start", "interrupted", "start", "crashed"], 1),
        (["start", "crashed", "start", "done"], 0),
    ],
)
def test_crashes_are_counted_in_a_row(events: list[str], count: int) -> None:
    assert event_log.crashes([{"event": event} for event in events]) == count


def test_a_claim_after_a_death_is_in_the_log(tmp_path: Path) -> None:
    event_log.claim(tmp_path, "a").release()
    assert event_log.events(tmp_path) == {}
    path = event_log.lease_path(tmp_path, "a")
    path.write_text(json.dumps({"where": leases._where(), "pid": 1, "born": "never"}))
    event_log.claim(tmp_path, "a").release()
    assert [e["event"] for e in event_log.events(tmp_path)["a"]] == ["crashed"]


def test_a_run_is_claimed_once(tmp_path: Path) -> None:
    with (
        event_log.claim(tmp_path, "a"),
        pytest.raises(leases.Held, match=r"^a is being run by process \d+ on .*: wait for it"),
    ):
        event_log.claim(tmp_path, "a")


def test_progress_is_passed_on_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "EVERY", 0.0)
    told: list[tuple[str, int, int]] = []
    watch = event_log.Watch(tmp_path, "a", lambda *what: told.append(what))
    (tmp_path / event_log.FOLDER).mkdir()
    watch("training", 4, 10)  # gone on with at 4
    time.sleep(0.01)
    watch.numbers({"loss": 0.5, "tokens": 100.0, "grad_norm": 3.0})
    watch("training", 6, 10)
    assert told == [("training", 4, 10), ("training", 6, 10)]
    found = event_log.progress(tmp_path, "a")
    assert found is not None and (found.stage, found.done, found.total) == ("training", 6, 10)
    assert found.numbers["loss"] == 0.5 and found.numbers["tokens/s"] > 0 and "grad_norm" not in found.numbers
    # Two of the six units that are left took what has passed since the stage began.
    assert found.left == pytest.approx((found.at - found.began) * 2)
    assert event_log.progress(tmp_path, "b") is None


def test_lines_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    event_log.log(tmp_path, "a", "start")
    path = tmp_path / event_log.FOLDER / event_log.LOG
    with path.open("a") as file:
        for line in ({"event": "paused", "time": 1.0, "note": ""}, {"event": "done"}, {"event": "done", "time": "now"}):
            file.write(json.dumps({"run_id": "a", **line}) + "\n")
    assert [e["event"] for e in event_log.events(tmp_path)["a"]] == ["start"]
