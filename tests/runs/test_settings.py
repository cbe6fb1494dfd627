"""Settings: typed, checked, suggested; defaults in the dataclasses alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from shiq_bench.cli.app import app
from shiq_bench.records.errors import UserError
from shiq_bench.runs.settings import parse_sets, read_yaml, resolve


def test_defaults_and_overrides() -> None:
    plain = resolve("shiq", "tree", {})
    assert plain.spec.algo_options == {
        "beta": plain.algorithm.beta,
        "shift": True,
        "multi_step": True,
        "token_wise": True,
    }  # type: ignore[attr-defined]
    assert plain.spec.samples == 0, "the task's own default"
    changed = resolve("shiq", "tree", {"beta": "0.3", "depth": "2", "samples": "1", "shift": "no", "reward": "final"})
    assert changed.algorithm.beta == 0.3 and changed.algorithm.shift is False  # type: ignore[attr-defined]
    assert (changed.spec.samples, changed.spec.task_options["depth"], changed.spec.task_options["reward"]) == (
        1,
        2,
        "final",
    )
    assert changed.spec.run_id != plain.spec.run_id
    assert (
        resolve(
            "shiq",
            "tree",
            {"algorithm.beta": 0.3, "task.depth": 2, "run.samples": 1, "shift": False, "reward": "final"},
        ).spec
        == changed.spec
    )


@pytest.mark.parametrize(
    ("algo", "task", "values", "message"),
    [
        ("shic", "tree", {}, "did you mean 'shiq'"),
        ("shiq", "tre", {}, "did you mean 'tree'"),
        ("shiq", "tree", {"betta": "0.1"}, "did you mean 'beta'"),
        ("shiq", "tree", {"algorithm.betta": "0.1"}, "did you mean 'beta'"),
        ("shiq", "tree", {"beta": "abc"}, "beta=abc: expected a number"),
        ("shiq", "tree", {"beta": "nan"}, "expected a number"),
        ("shiq", "tree", {"beta": "0"}, "expected a positive"),
        ("dpo", "tree", {"beta": "-1"}, "expected a positive"),
        ("shiq", "tree", {"steps": "1.5"}, "expected a whole number"),
        ("shiq", "tree", {"steps": "-1"}, "expected 0 or more"),
        ("shiq", "tree", {"shift": "perhaps"}, "expected true or false"),
        ("shiq", "tree", {"layout": "paded"}, "did you mean 'padded'"),
        ("shiq", "tree", {"multi_step": "no", "token_wise": "no"}, "token_wise=false needs multi_step"),
        ("shiq", "tree", {"learning_rate": "0"}, "positive"),
        ("shiq", "tree", {"max_tokens": "96"}, "leaves no room"),
        ("shiq", "tree", {"actions": "1"}, "expected at least 2 actions"),
        ("shiq", "bandit", {"coverage": "0"}, "expected a share"),
        ("shiq", "bandit", {"off_policy": "-1"}, "off_policy"),
        ("shiq", "bandit", {"kl_strength": "0"}, "kl_strength"),
        ("reinforce", "bandit", {"samples": "x", "algorithm.samples": "0"}, "samples"),
    ],
)
def test_bad_settings_are_one_clear_line(algo: str, task: str, values: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(algo, task, values)


def test_sets() -> None:
    assert parse_sets(["beta=0.3", "name=a=b"]) == {"beta": "0.3", "name": "a=b"}
    for bad, message in ((["beta"], "key=value"), (["=1"], "key=value"), (["a=1", "a=2"], "twice")):
        with pytest.raises(UserError, match=message):
            parse_sets(bad)


def test_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("algo: shiq\ntask: tree\nsteps: 3\nalgorithm: {beta: 0.2}\ntask_options: {depth: 2}\n")
    assert read_yaml(file) == {"algo": "shiq", "task": "tree", "steps": 3, "algorithm.beta": 0.2, "task.depth": 2}
    for text, message in (("- 1", "expected a mapping"), ("a: [", "is no YAML")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_yaml(file)
    with pytest.raises(UserError, match="cannot read"):
        read_yaml(tmp_path / "absent.yaml")


def test_a_dry_run_refuses_a_split_that_the_task_does_not_know() -> None:
    command = ["run", "--algo", "shiq", "--task", "bfcl", "--dry-run", "--set"]
    done = CliRunner().invoke(app, [*command, "eval_splits=rl,heldot"])
    assert isinstance(done.exception, UserError) and "did you mean 'heldout'" in str(done.exception)
    done = CliRunner().invoke(app, [*command, "eval_splits=all, rl,rl"])
    assert done.exit_code == 0 and "eval_splits: rl,all" in done.stdout
