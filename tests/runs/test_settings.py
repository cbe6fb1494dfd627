"""Settings: typed, checked, suggested; defaults in the dataclasses alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from shiq_bench.records.errors import UserError
from shiq_bench.runs.settings import coerce, parse_flags, parse_sets, read_yaml, resolve
from tests.command import shiq_bench


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


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        ("yes", bool, True), ("ON", bool, True), (1, bool, True), (True, bool, True), ("0", bool, False),
        ("3", int, 3), (3.0, int, 3), ("none", int | None, None), (None, int | None, None), ("3", int | None, 3),
        ("1e-3", float, 1e-3), (2, float, 2.0), (0.1 + 0.2, float, 0.1 + 0.2),
        (3, str, "3"), ("", str, ""), ("a", Literal["a", "b"], "a"),
    ],
)  # fmt: skip
def test_a_value_becomes_what_its_field_is(value: Any, kind: Any, found: Any) -> None:
    got = coerce("key", value, kind)
    assert got == found and type(got) is type(found)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (2, bool, "true or false"), ("", bool, "true or false"), (3.5, int, "a whole number"),
        (True, int, "a whole number"), ("x", int | None, "a whole number"), (True, float, "a number"),
        ("inf", float, "a number"), (float("nan"), float, "a number"), (None, str, "text"), (["a"], str, "text"),
        (None, Literal["a", "b"], "one of a, b"),
        ("padded ", Literal["padded"], "one of padded: did you mean 'padded'?"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_said_to_be_expected_otherwise(value: Any, kind: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        coerce("key", value, kind)
    assert str(caught.value) == f"key={value}: expected {expected}"


def test_flags() -> None:
    known: dict[str, dict[str, Any]] = {
        "run": {"steps": int, "samples": int},
        "algorithm": {"shift": bool, "samples": int, "no_op": bool},
    }
    for words, found in (
        ("--steps 3 --shift", {"steps": "3", "shift": "true"}),
        ("--steps=3 --no-shift --no-op", {"steps": "3", "shift": "false", "no_op": "true"}),
        ("--shift no --steps -1", {"shift": "no", "steps": "-1"}),
        ("--algorithm.samples 2 --run.samples=", {"algorithm.samples": "2", "run.samples": ""}),
        ("", {}),
    ):
        assert parse_flags(words.split(), known) == found
    for words, message in (
        ("--stps 3", r"^No such option: --stps: did you mean '--steps'\?$"),
        ("--dry-rum", "did you mean '--dry-run'"),
        ("--wholly-unknown", "^No such option: --wholly-unknown$"),
        ("--no-thing", "^No such option: --no-thing"),
        ("--steps 3 4", "^'4' belongs to no option"),
        ("--steps 3 --steps=4", "^--steps is given twice$"),
    ):
        with pytest.raises(UserError, match=message):
            parse_flags(words.split(), known, ["--dry-run"])


def test_a_dry_run_refuses_a_split_that_the_task_does_not_know() -> None:
    command = ["run", "--algo", "shiq", "--task", "bfcl", "--dry-run", "--set"]
    done = shiq_bench(*command, "eval_splits=rl,heldot")
    assert done.code == 2 and "did you mean 'heldout'" in done.err
    done = shiq_bench(*command, "eval_splits=all, rl,rl")
    assert done.code == 0 and "eval_splits: rl,all" in done.out
