"""One dataset of the token tree for all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.datasets import build


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", autouse=True)
def home(cache: Path) -> Iterator[None]:
    """One cache for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIQ_BENCH_HOME", str(cache))
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the token tree: its enumerated completions, and two samples a prompt."""
    out = tmp_path_factory.mktemp("data") / "tree"
    build(out)
    return out


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """One to be spoilt."""
    return shutil.copytree(tree, tmp_path / "copy")
