"""The main job on the token tree: through the command line, interrupted, resumed, diverged, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.runs.execute import execute
from shiq_bench.runs.settings import resolve
from tests.command import Finished, shiq_bench

SETTINGS = [
    "--model", "tiny", "--engine", "hf", "--steps", "12", "--eval-samples", "5", "--save-every", "1", "--contexts", "3",
]  # fmt: skip
FREE = {"timings", "peak_memory_mb"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "shiq_bench.cli", *arguments]


def process(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    env = {**os.environ, "SHIQ_BENCH_HOME": str(home), "COLUMNS": "200", **environment}
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=env, timeout=300)


def words(results: Path, *more: str, algo: str = "shiq") -> list[str]:
    return ["run", "--algo", algo, "--task", "tree", "--results", str(results), *SETTINGS, *more]


def run(home: Path, results: Path, *more: str, algo: str = "shiq") -> Finished:
    return shiq_bench(*words(results, *more, algo=algo), SHIQ_BENCH_HOME=str(home))


def record(results: Path) -> dict[str, Any]:
    (path,) = results.glob("*/record.json")
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def without_freedom(data: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k not in FREE} | {"spec": {**data["spec"], "results": ""}}


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run, in a process of its own."""
    results = tmp_path_factory.mktemp("whole")
    done = process(home, *words(results))
    assert done.returncode == 0, done.stderr
    assert "mean reward" in done.stdout
    assert "record.json" in done.stdout
    return results


def test_record_is_complete(whole: Path) -> None:
    data = record(whole)
    assert data["status"] == "done" and data["error"] is None
    assert len(data["training"]) == 12 and [h["step"] for h in data["training"]] == list(range(1, 13))
    assert {(e["policy"], e["split"], e["mode"]) for e in data["evaluations"]} == {
        (p, s, m) for p in ("reference", "trained") for s in ("rl", "heldout") for m in ("greedy", "sampled")
    }
    for e in data["evaluations"]:
        assert all(m["n"] for m in e["metrics"].values()) and e["examples"]
    assert max(data["gaps"].values()) < 1e-3, "sampler and scorer must be the same policy"
    assert data["training"][0]["abs_w"] < 1e-5, "at step 0 the policy is the reference"
    assert data["consumed"]["updates"] == 12
    assert data["source_hash"] and data["packages"]["torch"]


def test_the_policy_loads_with_transformers(whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (folder,) = whole.glob("*/policy")
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 4
    assert len(AutoTokenizer.from_pretrained(folder)) == 4
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))


def test_a_finished_run_is_not_run_again(home: Path, whole: Path) -> None:
    (path,) = whole.glob("*/record.json")
    before = path.stat().st_mtime_ns
    done = run(home, whole)
    assert done.code == 0 and "mean reward" in done.out.lower()
    assert path.stat().st_mtime_ns == before


def test_table_prints_it_again(home: Path, whole: Path) -> None:
    done = shiq_bench("table", "--results", str(whole), "--format", "md")
    assert done.code == 0, done.err
    assert "shiq" in done.out and "reference" in done.out
    again = shiq_bench("table", "--results", str(whole), "--format", "md")
    assert done.out == again.out


def interrupt(home: Path, results: Path, how: signal.Signals, ready: Callable[[], bool]) -> tuple[int, str]:
    """Start a run, send a signal once ``ready``; its exit code and error output."""
    env = {**os.environ, "SHIQ_BENCH_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    with (results.parent / f"{results.name}.err").open("w+") as log:
        started = subprocess.Popen(command(*words(results)), stdout=subprocess.DEVNULL, stderr=log, env=env)
        deadline = time.monotonic() + 120
        while not ready():
            assert started.poll() is None and time.monotonic() < deadline, "over before the signal"
            time.sleep(0.002)
        started.send_signal(how)
        code = started.wait(timeout=60)
        log.seek(0)
        return code, log.read()


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.proof),
        pytest.param(signal.SIGKILL, marks=pytest.mark.proof),
    ],
    ids=lambda s: s.name,
)
def test_interrupted_and_resumed_is_the_same_run(home: Path, whole: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Stopped in training by a signal, mid-epoch or not, and resumed: the uninterrupted record, to the bit."""
    results = tmp_path / "results"
    code, err = interrupt(
        home, results, how, lambda: bool(list(results.glob("*/checkpoints/checkpoint-*/trainer_state.json")))
    )
    assert record(results)["status"] == "started", "the signal came after the end"
    if how != signal.SIGKILL:
        assert code == 130 and "--resume" in err, err
    assert "Traceback" not in err

    refused = run(home, results)
    assert refused.code == 2 and "--resume" in refused.err and "--fresh" in refused.err
    resumed = run(home, results, "--resume")
    assert resumed.code == 0, resumed.err
    assert without_freedom(record(results)) == without_freedom(record(whole))


def test_off_policy_use_must_be_allowed(home: Path, tmp_path: Path) -> None:
    offline = ("--set", "collect=offline")
    refused = run(home, tmp_path / "results", *offline, algo="reinforce")
    assert refused.code == 2 and "--allow-off-policy" in refused.err and not (tmp_path / "results").exists()
    allowed = run(home, tmp_path / "results", *offline, "--allow-off-policy", "--dry-run", algo="reinforce")
    assert allowed.code == 0 and "allow_off_policy: true" in allowed.out


@pytest.mark.proof
def test_interrupted_after_training_trains_no_further(home: Path, whole: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    code, err = interrupt(home, results, signal.SIGINT, lambda: bool(list(results.glob("*/policy/*.safetensors"))))
    assert code == 130, err
    assert run(home, results, "--resume").code == 0
    assert without_freedom(record(results)) == without_freedom(record(whole))


def test_divergence_stops_and_keeps_the_last_good_checkpoint(home: Path, tmp_path: Path) -> None:
    """A loss that becomes NaN at its third step, from a plugin."""
    plugin = tmp_path / "fragile.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from shiq_bench import Algorithm, LossOutput, algorithm\n"
        "calls = 0\n"
        "@algorithm('fragile')\n"
        "@dataclass(frozen=True)\n"
        "class Fragile(Algorithm):\n"
        "    'Breaks at its third step.'\n"
        "    def loss(self, stats, batch):\n"
        "        global calls\n"
        "        calls += 1\n"
        "        return LossOutput(-stats.policy.logp.sum() * (float('nan') if calls == 3 else 1.0))\n"
    )
    results = tmp_path / "results"
    done = run(home, results, "--plugin", str(plugin), algo="fragile")
    assert done.code == 2
    assert "diverged" in done.err and "Traceback" not in done.err
    assert record(results)["status"] == "diverged"
    kept = sorted(p.name for p in results.glob("*/checkpoints/checkpoint-*"))
    assert kept == ["checkpoint-1", "checkpoint-2"]
    table = shiq_bench("table", "--results", str(results), "--plugin", str(plugin))
    assert "diverged" in table.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "shic"], "did you mean 'shiq'"),
        (["--task", "tre"], "did you mean 'tree'"),
        (["--set", "beta=abc"], "expected a number"),
        (["--set", "betta=0.1"], "did you mean 'beta'"),
        (["--model", "./no/such/folder"], "no model folder"),
        (["--engine", "vlm"], "expected one of"),
        (["--plugin", "absent.py"], "no plugin file"),
        (["--config", "absent.yaml"], "cannot read"),
        (["--no-such-flag"], "No such option"),
        (["--set", "groups_per_step=3", "--set", "micro_groups=2"], "multiple"),
        (["--resume", "--fresh"], "one of them"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(home: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    results = tmp_path / "results"
    base = {"--algo": "shiq", "--task": "tree", "--engine": "hf", "--model": "tiny"}
    for key, value in zip(arguments[::2], arguments[1::2], strict=False):
        base.pop(key, None) if value else None
    flat = [x for pair in base.items() for x in pair]
    done = shiq_bench("run", *flat, "--results", results, *arguments)
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert done.code == 2, done.err
    assert len(errors) == 1 and message in errors[0], done.err
    assert "Traceback" not in done.err
    assert not results.exists(), "nothing may be written"


def test_unwritable_results_are_found_before_training(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    done = run(home, tmp_path / "file")
    assert done.code == 2 and "is a file" in done.err and "training" not in done.err
    assert (tmp_path / "file").read_text() == "precious"


def test_an_unreachable_hub_is_one_line(home: Path, tmp_path: Path) -> None:
    done = process(
        home, "run", "--algo", "shiq", "--task", "tree", "--model", "no-one/nothing", "--engine", "hf",
        "--results", str(tmp_path), HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.returncode == 2 and "hf download no-one/nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_record_of_a_newer_schema_is_refused_by_name(home: Path, whole: Path, tmp_path: Path) -> None:
    (path,) = whole.glob("*/record.json")
    copy = tmp_path / path.parent.name / "record.json"
    copy.parent.mkdir()
    copy.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    done = shiq_bench("table", "--results", str(tmp_path))
    assert done.code != 0
    assert "99" in done.err and path.parent.name in done.err and "upgrade" in done.err


def test_list_names_everything_with_a_line(home: Path) -> None:
    done = shiq_bench("list")
    assert done.code == 0
    for name in ("shiq", "sft", "dpo", "bfcl", "tree"):
        (line,) = [x for x in done.out.splitlines() if x.split()[:1] == [name]]
        assert len(line.split()) > 4


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['x', '--help']\nfrom shiq_bench.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit: pass\n"
    code += "print('HEAVY', [m for m in ('torch', 'pandas', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_methods_share_data_and_reference_evaluations(home: Path, whole: Path, tmp_path: Path) -> None:
    """A second method on the same settings gets the same reference numbers and trajectories, from the cache."""
    before = {p.name for p in (home / "reference-evaluation").iterdir()}
    done = run(home, tmp_path, algo="sft")
    assert done.code == 0, done.err
    assert {p.name for p in (home / "reference-evaluation").iterdir()} == before
    theirs, ours = record(tmp_path), record(whole)
    pick = [e for e in theirs["evaluations"] if e["policy"] == "reference"]
    assert pick == [e for e in ours["evaluations"] if e["policy"] == "reference"]
    assert theirs["data"]["mean_return"] == ours["data"]["mean_return"]


def test_another_learning_rate_shares_the_reference_pass(home: Path, whole: Path, tmp_path: Path) -> None:
    before = {p.name for p in (home / "reference").iterdir()}
    assert run(home, tmp_path, "--set", "learning_rate=1e-3", "--seed", "7").code == 0
    assert {p.name for p in (home / "reference").iterdir()} == before
    assert record(tmp_path)["training"] != record(whole)["training"]


def test_two_methods_stand_in_one_table(home: Path, whole: Path, tmp_path: Path) -> None:
    """Different algorithms from one version of the source are what a table is for."""
    assert run(home, tmp_path).code == 0
    assert run(home, tmp_path, algo="sft").code == 0
    done = shiq_bench("table", "--results", str(tmp_path), "--format", "md")
    assert done.code == 0, done.err
    assert "shiq" in done.out and "sft" in done.out


def test_an_edited_plugin_is_not_passed_off_as_the_run_it_was(home: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    text = (
        "from dataclasses import dataclass\n"
        "from shiq_bench import Algorithm, LossOutput, algorithm\n"
        "@algorithm('mine')\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Algorithm):\n"
        "    'Likelihood.'\n"
        "    def loss(self, stats, batch):\n"
        "        return LossOutput(-1.0 * stats.policy.logp.sum())\n"
    )
    plugin.write_text(text)
    results = tmp_path / "results"
    assert run(home, results, "--plugin", str(plugin), algo="mine").code == 0
    plugin.write_text(text.replace("-1.0", "-2.0"))
    again = run(home, results, "--plugin", str(plugin), algo="mine")
    assert again.code == 2 and "--fresh" in again.err


def test_a_table_is_trained_on_unit_returns_and_judged_on_its_own(tmp_path: Path) -> None:
    """Where a method wants returns in [0, 1] its fixed point is of those; what is reported is what the task pays."""
    settings = {"reward_scale": 5, "enumerated": True, "arms": 4, "seeds": 2, "steps": 150, "results": str(tmp_path)}
    made = execute(resolve("qsft", "bandit", settings), resume=False, fresh=False, report=lambda *_: None)
    (before, after) = (e.metrics for e in made.evaluations)
    assert (after["kl_fixed"]["mean"] or 0) < 1e-4 < (before["kl_fixed"]["mean"] or 0)
    assert (after["reward"]["mean"] or 0) > 1
