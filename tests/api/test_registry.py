"""The registry: lazy, collision-proof, helpful; third parties by file."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.registry import Registry, algorithms, load_plugin, tasks
from shiq_bench.api.task import Task
from shiq_bench.api.trajectory import Trajectory, Transcript
from shiq_bench.records.errors import UserError

PLUGIN = """
from dataclasses import dataclass
from shiq_bench import Algorithm, LossOutput, algorithm

@algorithm({name!r})
@dataclass(frozen=True)
class {cls}(Algorithm):
    "A stranger's method."
    def loss(self, stats, batch):
        return LossOutput(-stats.policy.logp.sum())
"""


def test_knows_the_built_in_ones() -> None:
    assert {"shiq", "sft", "dpo"} <= set(algorithms.names())
    assert {"bfcl", "tree"} <= set(tasks.names())


@pytest.mark.parametrize("registry", [algorithms, tasks], ids=["algorithms", "tasks"])
def test_everything_registered_is_a_documented_frozen_dataclass(registry: Registry[Algorithm] | Registry[Task]) -> None:
    for name in registry.names():
        cls = registry.get(name)
        assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen, name  # type: ignore[attr-defined]
        assert (cls.__doc__ or "").strip() and not (cls.__doc__ or "").startswith(f"{cls.__name__}("), name


def test_lookup_imports_one_module_only() -> None:
    code = (
        "import sys; from shiq_bench.api.registry import algorithms; algorithms.get('sft');"
        "print('shiq_bench.algorithms.sft' in sys.modules, 'shiq_bench.algorithms.dpo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_typo_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'shiq'"):
        algorithms.get("shiqq")
    with pytest.raises(UserError, match="no task is called 'zzzz'"):
        tasks.get("zzzz")
    with pytest.raises(UserError):
        algorithms.get("../dpo")


def test_a_plugin_file_registers(tmp_path: Path) -> None:
    file = tmp_path / "stranger.py"
    file.write_text(PLUGIN.format(name="stranger", cls="Stranger"))
    load_plugin(file)
    assert algorithms.get("stranger").__name__ == "Stranger"
    load_plugin(file)  # the same file again is the same class
    algorithms._classes.pop("stranger")


def test_a_name_taken_twice_raises(tmp_path: Path) -> None:
    algorithms.get("dpo")
    file = tmp_path / "thief.py"
    file.write_text(PLUGIN.format(name="dpo", cls="Thief"))
    with pytest.raises(UserError, match="two algorithms are called 'dpo'"):
        load_plugin(file)
    assert algorithms.get("dpo").__name__ == "DPO"


@pytest.mark.parametrize("text", ["raise RuntimeError('no')", "def ("])
def test_a_broken_plugin_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserError, match=r"broken\.py cannot be imported"):
        load_plugin(file)
    with pytest.raises(UserError, match="no plugin file"):
        load_plugin(tmp_path / "absent.py")


def test_trajectories_hold_their_invariants() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Trajectory("p", (1, 2), (False,), (0.0, 0.0))
    with pytest.raises(ValueError, match="no action"):
        Trajectory("p", (1, 2), (False, True), (1.0, 0.0))
    with pytest.raises(ValueError, match="no context"):
        Trajectory("p", (1, 2), (True, True), (0.0, 0.0))
    transcript = Transcript([5, 6])
    assert transcript.last_action == -1
    transcript.observe([7])
    assert transcript.trajectory("p", {}, "x").total_reward == 0
