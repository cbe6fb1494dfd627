"""A missing program skips a test, or fails it where nothing may be skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import needs


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with programs, and nothing that forbids a skip."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SHIQ_BENCH_NO_SKIPS", raising=False)
    return tmp_path


def install(folder: Path, name: str, code: int = 0) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_the_first_program_that_is_there(programs: Path) -> None:
    second = install(programs, "second")
    assert needs.program("first", "second", "third") == str(second)
    first = install(programs, "first")
    assert needs.program("first", "second", "third") == str(first)


def test_a_missing_program_skips_and_is_named() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"^needs first or second$"):
        needs.program("first", "second")


def test_a_missing_program_fails_where_nothing_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIQ_BENCH_NO_SKIPS", "programs")
    with pytest.raises(pytest.fail.Exception, match=r"^needs first or second, and "):
        needs.program("first", "second")


def test_a_tex_without_the_style_is_no_tex(programs: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="needs pdflatex"):
        needs.pdflatex("booktabs.sty")
    pdflatex, _ = install(programs, "pdflatex"), install(programs, "kpsewhich", code=1)
    with pytest.raises(pytest.skip.Exception, match=r"needs booktabs\.sty of LaTeX"):
        needs.pdflatex("booktabs.sty")
    install(programs, "kpsewhich")
    assert needs.pdflatex("booktabs.sty") == str(pdflatex)
