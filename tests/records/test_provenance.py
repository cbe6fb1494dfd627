"""What a record says of its code: changed by what decides a number, and by nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from shiq_bench.algorithms.dpo import DPO as BaseMethod
from shiq_bench.records import provenance
from shiq_bench.records.record import RunRecord
from shiq_bench.records.spec import RunSpec
from tests.test_imports import MODULES, imports

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "shiq_bench"

#: In the copy: hashes as they stand, and with one line more in each of the files that are named.
SCRIPT = """
import json, sys
from pathlib import Path
from shiq_bench.algorithms.dpo import DPO
from shiq_bench.records import provenance
from shiq_bench.tasks.bfcl import Bfcl

def hashes():
    provenance.source_hash.cache_clear()
    return [provenance.source_hash(), *provenance.code_hash(DPO, Bfcl).split("-")]

assert Path(provenance.__file__).is_relative_to(Path.cwd())
before, changed = hashes(), {}
for name in json.load(sys.stdin):
    file = Path(name)
    content = file.read_bytes()
    file.write_bytes(content + b"# another line\\n")
    changed[name] = [part for part, old, new in zip(("engine", "algorithm", "task"), before, hashes()) if old != new]
    file.write_bytes(content)
assert hashes() == before
print(json.dumps(changed))
"""

DECIDES = {
    "shiq_bench/api/batch.py": ["engine"],
    "shiq_bench/data/collation.py": ["engine"],
    "shiq_bench/tabular/training.py": ["engine"],
    "shiq_bench/models/chat.py": ["engine"],
    "shiq_bench/training/trainer.py": ["engine"],
    "shiq_bench/generation/hf.py": ["engine"],
    "shiq_bench/rewards/model.py": ["engine"],
    "shiq_bench/evaluation/evaluate.py": ["engine"],
    "shiq_bench/runs/language.py": ["engine"],
    "algorithms/dpo.py": ["algorithm"],
    "tasks/bfcl/score.py": ["task"],
    "tasks/bfcl/data.py": ["engine", "task"],
    "tasks/_lm_eval/utils.py": ["engine"],
    "tasks/_lm_eval/shiq_preference.yaml": ["engine"],
}


def shows() -> list[str]:
    """Files that print, draw, ask for runs or schedule them, and methods and tasks of other runs."""
    folders = [PACKAGE / name for name in ("report", "studies", "cli", "sweep")]
    files = [f for folder in folders for f in sorted(folder.iterdir()) if f.suffix in (".py", ".yaml", ".js", ".css")]
    alone = ("shiq_bench/data/card.py", "shiq_bench/stats/ranking.py", "algorithms/ipo.py", "tasks/bandit.py")
    return [*(f.relative_to(ROOT).as_posix() for f in files), *alone]


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    """By file of a copy of the package: which of a record's hashes an edit of it changes."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("shiq_bench", "algorithms", "tasks"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps([*DECIDES, *shows()]),
        cwd=copy, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("file", DECIDES)
def test_another_line_in_what_decides_is_other_code(changed: Mapping[str, list[str]], file: str) -> None:
    assert changed[file] == DECIDES[file]


def test_another_line_in_what_shows_is_the_same_code(changed: Mapping[str, list[str]]) -> None:
    assert {file for file in changed if changed[file]} == set(DECIDES)
    assert {Path(file).parent.name for file in changed} >= {"report", "studies", "cli", "sweep"}


def test_every_file_that_is_said_to_decide_is_there() -> None:
    """A name that has moved would be left out of the hash without a word."""
    assert [name for name in (*provenance.DECIDES, *provenance._SHOWS) if not (PACKAGE / name).exists()] == []


def test_what_decides_imports_only_what_decides() -> None:
    """But for the records' bookkeeping, and checks that refuse a run or let it be."""

    def decides(module: str) -> bool:
        name = "/".join(module.split(".")[1:])
        return any(name == d.removesuffix(".py") or name.startswith(f"{d}/") for d in provenance.DECIDES)

    used = set().union(*(imports(path) & MODULES.keys() for name, path in MODULES.items() if decides(name)))
    rest = {m for m in used if not decides(m) and not m.startswith("shiq_bench.records.")}
    assert rest == {"shiq_bench", "shiq_bench.runs.validation"}


class Inherits(BaseMethod):
    """A method made of another file's."""


def test_what_a_class_inherits_is_its_code() -> None:
    files = provenance._files_of(Inherits)
    assert {f.name for f in files} == {"test_provenance.py", "dpo.py"}, "and no file of the engine's"


def record(algo: str = "dpo", task: str = "bfcl", source: str = "e", code: str = "a-t") -> RunRecord:
    spec = RunSpec(algo=algo, task=task)
    return RunRecord(spec.run_id, "done", spec, source_hash=source, code_hash=code)


def test_records_of_one_version() -> None:
    assert provenance.code_versions([]) == []
    assert (
        provenance.code_versions([record(), record(), record("ipo", code="b-t"), record(task="tree", code="a-u")]) == []
    )


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (record(source="f"), ["engine e, f"]),
        (record(source=""), ["engine e, unknown"]),
        (record(code="b-t"), ["algorithm dpo a, b"]),
        (record("ipo", code="b-u"), ["task bfcl t, u"]),
        (record(source="f", code="b-u"), ["algorithm dpo a, b", "engine e, f", "task bfcl t, u"]),
    ],
)
def test_another_version_is_named(other: RunRecord, says: list[str]) -> None:
    assert provenance.code_versions([record(), other]) == says


def test_records_that_hashed_algorithm_and_task_as_one() -> None:
    old = record(code="at")
    assert provenance.code_versions([old, record(code="at"), record("ipo", code="bt")]) == []
    assert provenance.code_versions([old, record(code="bu")]) == ["dpo on bfcl at, bu"]
    assert provenance.code_versions([old, record(code="")]) == ["dpo on bfcl at, unknown"]


def test_a_record_of_this_very_code() -> None:
    from shiq_bench.algorithms.dpo import DPO
    from shiq_bench.tasks.bandit import Bandit
    from shiq_bench.tasks.tree import Tree

    source, code = provenance.source_hash(), provenance.code_hash(DPO, Bandit)
    assert provenance.same_code(record(source=source, code=code), DPO, Bandit)
    for other in (record(source="e", code=code), record(source=source, code="a-t"), record(source=source, code="at")):
        assert not provenance.same_code(other, DPO, Bandit)
    assert not provenance.same_code(record(source=source, code=code), DPO, Tree)
