"""What a sweep is made of, out of flags, and the plan that workers read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shiq_bench.records.errors import UserError
from shiq_bench.sweep.grid import Job, Options, fitting, of_flags, parse_grid, read_plan, whole_numbers
from tests.sweep.plans import write_plan


@pytest.mark.parametrize(("text", "seeds"), [("0", [0]), ("0-2", [0, 1, 2]), ("4,1-2", [4, 1, 2])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert whole_numbers(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "0,0", "0-2,1", "²", "0-9999999999"])
def test_no_seeds(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        whole_numbers(text)


def test_a_grid() -> None:
    assert parse_grid(["beta=0.1, 0.3", "steps=10"]) == {"beta": ["0.1", "0.3"], "steps": ["10"]}
    for wrong in (["beta"], ["beta="], ["=1"], ["beta=1,1"], ["beta=1", "beta=2"], ["beta=1,,2"]):
        with pytest.raises(UserError, match="--grid"):
            parse_grid(wrong)


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("seed=1,2", "seeds are given by --seeds"),
        ("run.seeds=1,2", "seeds are given by --seeds"),
        ("save_every=1,2", "save_every changes nothing about a run"),
        ("results=a,b", "results changes nothing about a run"),
    ],
)
def test_what_makes_no_other_run_is_not_varied(pair: str, said: str) -> None:
    with pytest.raises(UserError, match=f"--tune {pair}: {said}"):
        parse_grid([pair], "--tune")


def test_a_table_trains_adjoining_seeds_in_one_run_and_a_language_model_each_in_its_own(tmp_path: Path) -> None:
    values = {"results": str(tmp_path)}
    table = list(of_flags(["shiq"], ["bandit"], [0, 1, 2, 7], values, {}))
    assert [(j.values["seed"], j.values["seeds"]) for j in table] == [(0, 3), (7, 1)]
    tiny = list(of_flags(["shiq"], ["tree"], [0, 1], {**values, "model": "tiny"}, {}))
    assert [j.resolved().spec.seed for j in tiny] == [0, 1]
    assert [j.run_id for j in tiny] == [j.resolved().spec.run_id for j in tiny]


def test_every_combination_and_no_run_twice(tmp_path: Path) -> None:
    jobs = list(of_flags(["shiq", "dpo"], ["bandit", "tree"], [0], {}, {"beta": ["0.1", "0.3"], "steps": ["5", "6"]}))
    assert len({j.run_id for j in jobs}) == len(jobs) == 16
    good, bad = fitting([*jobs, *jobs])
    assert good == jobs and not bad


def test_what_does_not_fit_is_a_job_with_a_problem() -> None:
    jobs = list(
        of_flags(
            ["shiq", "sft", "ilql"], ["bandit"], [0], {"collect": "fresh", "samples": "4"}, {"beta": ["0.1", "0.3"]}
        )
    )
    good, bad = fitting(jobs)
    assert {j.algo for j in good} == {"shiq"} and len(good) == 2
    assert "has no setting beta" in next(j.problem for j in bad if j.algo == "sft")
    assert all(not j.run_id for j in bad)
    with pytest.raises(UserError, match=r"nothing to run: shiq on bandit: steps is -1; expected 0 or more"):
        fitting(of_flags(["shiq"], ["bandit"], [0], {"steps": "-1"}, {}))


@pytest.mark.parametrize(
    ("algos", "tasks", "varied", "said"),
    [
        (["shik"], ["bandit"], {}, "did you mean 'shiq'"),
        (["shiq"], ["bandid"], {}, "did you mean 'bandit'"),
        (
            ["shiq", "dpo"],
            ["bandit"],
            {"betta": ["1"]},
            "no method and no task has the setting betta: did you mean 'beta'",
        ),
    ],
)
def test_a_name_that_is_none_ends_the_sweep(
    algos: list[str], tasks: list[str], varied: dict[str, list[str]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        list(of_flags(algos, tasks, [0], {}, varied))


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    jobs = [Job("a", "shiq", "bandit", {"beta": 0.1, "seeds": 3}, "shiq-bandit-1"), Job("b", "dpo", "tree", {}, "x")]
    path = write_plan(tmp_path, jobs, Options(retry=True))
    plan = read_plan(path)
    assert list(plan.jobs) == jobs and plan.options == Options(retry=True) and plan.folder == str(Path.cwd())
    assert write_plan(tmp_path, jobs) != path, "a second sweep of the same jobs leaves the first its own"
    assert read_plan(path) == plan


def test_a_plan_that_is_cut_or_newer_is_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path, [Job("a", "shiq", "bandit", {}, "x"), Job("b", "shiq", "tree", {}, "y")])
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match="cut: 1 of 2 jobs"):
        read_plan(path)
    path.write_text("\n".join(lines)[:-10])
    with pytest.raises(UserError, match="no plan of a sweep"):
        read_plan(path)
    path.write_text("\n".join([json.dumps({**json.loads(lines[0]), "schema_version": 99}), *lines[1:]]))
    with pytest.raises(UserError, match="schema 99 is newer"):
        read_plan(path)


def test_a_job_that_this_code_would_run_otherwise_is_refused() -> None:
    with pytest.raises(UserError, match="was planned as shiq-bandit-1 and is shiq-bandit-"):
        Job("a", "shiq", "bandit", {}, "shiq-bandit-1").resolved()
