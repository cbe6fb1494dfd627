"""Settings of the run, the method and the task as flags of their own names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command import Finished, shiq_bench


def dry(*words: str | Path) -> Finished:
    return shiq_bench("run", "--algo", "shiq", "--task", "tree", "--dry-run", *words)


def test_a_setting_is_a_flag_of_its_own_name() -> None:
    """The same as ``--set``, wherever it stands among the command's own options, booleans with or without a value."""
    flags = dry("--depth", "2", "--seed", "3", "--reward=final", "--beta", "0.3", "--no-shift", "--max-tokens", "3")
    sets = ["depth=2", "seed=3", "reward=final", "beta=0.3", "shift=no", "max_tokens=3"]
    assert flags.code == 0, flags.err
    assert flags == dry(*(f"--set={s}" for s in sets))
    assert "algorithm: {beta: 0.3, shift: false," in flags.out and "reward: final" in flags.out


def test_flags_win_over_the_file_and_sets_over_flags(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("depth: 4\nalgorithm: {beta: 0.2}\n")
    done = dry("--config", tmp_path / "run.yaml", "--beta", "0.3", "--depth", "3", "--set", "depth=2")
    assert "beta: 0.3" in done.out and "depth: 2" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dpeth", "2"], "No such option: --dpeth: did you mean '--depth'?"),
        (["--dry-rn"], "No such option: --dry-rn: did you mean '--dry-run'?"),
        (["--categories", "simple"], "No such option: --categories"),
        (["--reward", "finl"], "reward=finl: expected one of token, final: did you mean 'final'?"),
        (["--beta"], "beta=true: expected a number"),
        (["--seed", "x"], "Invalid value for '--seed'"),
        (["tree"], "'tree' belongs to no option: expected --name value, such as --beta 0.3"),
        (["--beta", "0.3", "--task.beta", "1"], "no setting is called 'task.beta'"),
    ],
)
def test_what_is_no_setting_is_one_line(words: list[str], message: str) -> None:
    done = dry(*words)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith(f"error: {message}") and done.err.count("\n") == 1


def test_a_name_of_two_owners_is_asked_for() -> None:
    words = ("run", "--algo", "reinforce", "--task", "tree", "--dry-run")
    assert "write run.samples or algorithm.samples" in shiq_bench(*words, "--samples", "2").err
    assert "samples: 2" in shiq_bench(*words, "--algorithm.samples", "2").out


def test_the_command_line_itself_names_no_setting_of_a_task() -> None:
    for words in (["run"], ["data", "build"]):
        printed = shiq_bench(*words, "--help").out
        assert "shiq-bench list --task NAME" in " ".join(printed.split())
        assert not {"--categories", "--tool-format", "--reward"} & set(re.findall(r"--[a-z-]+", printed))


def test_data_are_built_with_flags_too(tmp_path: Path) -> None:
    words = ("data", "build", "--task", "tree", "--model", "tiny", "--engine", "hf", "--out", tmp_path / "out")
    done = shiq_bench(*words, "--contexts", "2", "--samples=1", "--max-tokens", "3", SHIQ_BENCH_HOME=str(tmp_path))
    assert done.code == 0, done.err
    assert "of 2 prompts" in done.out and "2 reference" in done.out
