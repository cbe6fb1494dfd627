"""Programs and libraries that some tests need beside Python.

Where one is missing the test is skipped and says which; with ``SHIQ_BENCH_NO_SKIPS=programs`` it fails instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import NoReturn

import pytest


def program(*names: str) -> str:
    """Path of the first of these programs that is installed."""
    for name in names:
        if found := shutil.which(name):
            return found
    missing(" or ".join(names))


def pdflatex(*styles: str) -> str:
    """Path of pdflatex, on a machine whose TeX has these style files."""
    found, lookup = program("pdflatex"), program("kpsewhich")
    for style in styles:
        if subprocess.run([lookup, style], capture_output=True, check=False).returncode:
            missing(f"{style} of LaTeX")
    return found


def vllm() -> None:
    """Skip where vllm cannot be used."""
    from shiq_bench.generation.opening import vllm_lacks  # planted bugs are tried before anything of ours is imported

    if lacks := vllm_lacks():
        missing(f"vllm, and {lacks}")


def missing(what: str) -> NoReturn:
    if os.environ.get("SHIQ_BENCH_NO_SKIPS") == "programs":
        pytest.fail(f"needs {what}, and SHIQ_BENCH_NO_SKIPS=programs lets nothing be skipped for that", pytrace=False)
    pytest.skip(f"needs {what}")
