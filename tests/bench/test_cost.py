"""The page of costs: one thing grows in each plot, and what was not measured is not drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from shiq_bench.bench import cost
from shiq_bench.bench.cost import AXES, BASE, FORMS, drawn, print_cost


@pytest.mark.parametrize("axis", AXES)
def test_one_thing_grows(axis: str) -> None:
    base = asdict(BASE)
    grown = {name for work in AXES[axis].values() for name, value in asdict(work).items() if value != base[name]}
    (name,) = grown
    assert [asdict(work)[name] for work in AXES[axis].values()] == sorted(AXES[axis])


def test_what_was_not_measured_is_not_drawn() -> None:
    seconds = {n: {"seconds": n / 64} for n in (64, 256)}
    whole = drawn({"layers": {"padded": seconds, "tree": seconds}})
    less = drawn({"layers": {"padded": {**seconds, 256: "killed"}, "tree": seconds}})
    assert whole.startswith(b"\x89PNG") and less.startswith(b"\x89PNG") and whole != less
    assert drawn({"layers": {form: {64: "killed"} for form in FORMS}}).startswith(b"\x89PNG")


@pytest.mark.proof
def test_points_are_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(BASE, prompt=8, answer=4, answers=2, updates=1, width=64, layers=1, vocabulary=256)
    monkeypatch.setattr(cost, "AXES", {"layers": {1: small, 2: replace(small, layers=2)}})
    print_cost(tmp_path)
    found = json.loads((tmp_path / "cost.json").read_text())["found"]["layers"]
    assert found["tree"]["1"]["laid"] < found["padded"]["1"]["laid"] == found["padded"]["2"]["laid"]
    assert found["tree"]["1"]["gflop"] < found["tree"]["2"]["gflop"] and found["tree"]["2"]["seconds"] > 0
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
