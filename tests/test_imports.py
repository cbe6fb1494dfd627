"""Who may import whom: directly by the syntax tree, transitively by what a fresh process has loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("shiq_bench", "algorithms", "tasks")
STANDARD = sys.stdlib_module_names

#: For each folder or file: which of our modules it may import, and which third parties.
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "shiq_bench/records.py": (set(), set()),
    "shiq_bench/leases.py": ({"shiq_bench.records"}, set()),
    "shiq_bench/claims.py": ({"shiq_bench.leases", "shiq_bench.records"}, set()),
    "shiq_bench/store.py": ({"shiq_bench.leases", "shiq_bench.records"}, set()),
    "shiq_bench/api.py": (  # the last three for type checkers alone
        {"shiq_bench.records", "shiq_bench.batch", "shiq_bench.exact", "shiq_bench.world"},
        {"torch", "numpy"},
    ),
    "shiq_bench/world.py": ({"shiq_bench.api", "shiq_bench.records", "shiq_bench.exact"}, {"numpy"}),
    "shiq_bench/exact.py": ({"shiq_bench.world"}, {"numpy", "scipy"}),
    "shiq_bench/batch.py": (set(), {"torch"}),
    "shiq_bench/ops.py": ({"shiq_bench.batch"}, {"torch"}),
    "algorithms": ({"shiq_bench.api", "shiq_bench.batch", "shiq_bench.exact", "shiq_bench.ops"}, {"numpy", "torch"}),
    "tasks/bandit.py": ({"shiq_bench.api", "shiq_bench.records", "shiq_bench.world"}, {"numpy"}),
    "tasks/gridworld.py": ({"shiq_bench.api", "shiq_bench.records", "shiq_bench.world"}, {"numpy"}),
    "tasks/tree.py": ({"shiq_bench.api", "shiq_bench.records", "shiq_bench.world"}, {"numpy"}),
    "tasks/bfcl": (
        {"shiq_bench.api", "shiq_bench.records", "shiq_bench.store", "tasks.bfcl"},
        {"bfcl_eval", "rich"},
    ),
    "tasks/ultrafeedback": (
        {"shiq_bench.api", "shiq_bench.records", "shiq_bench.reporting", "shiq_bench.rewards", "tasks.ultrafeedback"},
        {"datasets", "huggingface_hub", "pyarrow"},
    ),
    "tasks/_lm_eval": ({"shiq_bench.api", "shiq_bench.records", "tasks.bfcl"}, {"datasets"}),
    "shiq_bench/dataset.py": (
        {"shiq_bench.api", "shiq_bench.records"},
        {"pyarrow", "rich", "tokenizers", "transformers", "yaml"},
    ),
    "shiq_bench/toolcalls.py": ({"shiq_bench.api", "shiq_bench.records"}, {"transformers"}),
    "shiq_bench/hardware.py": (set(), {"torch"}),
    "shiq_bench/listing.py": ({"shiq_bench.api"}, {"rich"}),
    "shiq_bench/adapters.py": ({"shiq_bench.api", "shiq_bench.records"}, set()),
    "shiq_bench/training": (
        {
            "shiq_bench.adapters",
            "shiq_bench.api",
            "shiq_bench.batch",
            "shiq_bench.exact",
            "shiq_bench.ops",
            "shiq_bench.records",
            "shiq_bench.store",
            "shiq_bench.training",
            "shiq_bench.world",
        },
        {"numpy", "peft", "safetensors", "torch", "transformers"},
    ),
    "shiq_bench/generation": (
        {"shiq_bench.adapters", "shiq_bench.api", "shiq_bench.records", "shiq_bench.generation"},
        {"numpy", "peft", "safetensors", "torch", "transformers", "vllm"},
    ),
    "shiq_bench/evaluation": (
        {
            "shiq_bench.api",
            "shiq_bench.records",
            "shiq_bench.generation",
            "shiq_bench.ops",
            "shiq_bench.training",
            "shiq_bench.reporting",
        },
        {"jinja2", "lm_eval", "numpy", "torch"},
    ),
    "shiq_bench/lines.py": ({"shiq_bench.records"}, set()),
    "shiq_bench/rewards": (
        {
            "shiq_bench.api",
            "shiq_bench.chat",
            "shiq_bench.config",
            "shiq_bench.console",
            "shiq_bench.dataset",
            "shiq_bench.hardware",
            "shiq_bench.lines",
            "shiq_bench.models",
            "shiq_bench.records",
            "shiq_bench.reporting",
            "shiq_bench.rewards",
            "shiq_bench.store",
        },
        {"numpy", "rich", "safetensors", "scipy", "torch", "transformers", "typer"},
    ),
    "shiq_bench/reporting": (
        {"shiq_bench.api", "shiq_bench.records", "shiq_bench.store", "shiq_bench.reporting"},
        {"jinja2", "matplotlib", "numpy", "pandas", "plotly", "pydantic", "rich", "scipy"},
    ),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}: a relative import hides where it goes"
            found.add(node.module)
    return found


def inside(module: str, allowed: set[str]) -> bool:
    return any(module == a or module.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("place", TABLE)
def test_direct_imports(place: str) -> None:
    ours, third = TABLE[place]
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    for file in files:
        for module in imports(file):
            top = module.split(".")[0]
            if top in STANDARD:
                continue
            allowed = inside(module, ours) if top in OURS else top in third
            # ``from tasks.bfcl import data`` names the package; the submodule is its own.
            assert allowed, f"{file.relative_to(ROOT)} imports {module}"


def test_the_table_catches_a_trespass(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from tasks.tree import Tree\n")
    assert "tasks.tree" in imports(bad)


@pytest.mark.parametrize("file", sorted((ROOT / "algorithms").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_an_algorithm_is_under_sixty_lines_of_code(file: Path) -> None:
    tree = ast.parse(file.read_text())
    docs: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            first = node.body[0]
            docs |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = [
        line
        for n, line in enumerate(file.read_text().splitlines(), 1)
        if n not in docs and line.strip() and not line.strip().startswith("#")
    ]
    assert len(lines) < 60


def test_the_engine_names_no_algorithm_and_no_task() -> None:
    """No import of a concrete one, and no comparison with a registered name."""
    names = {
        p.stem for place in ("algorithms", "tasks") for p in (ROOT / place).iterdir() if not p.stem.startswith("_")
    }
    for file in sorted((ROOT / "shiq_bench").rglob("*.py")):
        assert not {m for m in imports(file) if m.split(".")[0] in ("algorithms", "tasks")}, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                constants = {
                    c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                }
                assert not constants & names, f"{file}:{node.lineno} compares with the name of an algorithm or a task"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import shiq_bench.records, shiq_bench.store, shiq_bench.api", ("torch", "numpy", "pandas", "transformers")),
        ("import shiq_bench.reporting.tables, shiq_bench.reporting.runs", ("torch", "transformers", "vllm")),
        ("import shiq_bench.cli", ("torch", "numpy", "pandas", "transformers", "vllm", "datasets")),
        ("import tasks.bfcl", ("torch", "numpy", "transformers")),
        ("import tasks.ultrafeedback", ("torch", "numpy", "transformers", "datasets", "pyarrow")),
        ("import shiq_bench.adapters", ("torch", "peft")),
        ("import tasks.tree, tasks.bandit, tasks.gridworld", ("torch", "transformers")),
        ("import shiq_bench.exact, shiq_bench.world", ("torch", "transformers")),
        ("import shiq_bench.dataset", ("torch", "transformers", "datasets", "pandas", "pyarrow")),
        ("import shiq_bench.training.tabular, shiq_bench.table_run", ("transformers", "vllm")),
        ("import algorithms.shiq", ("transformers", "vllm", "pandas")),
        ("import shiq_bench.language_run, shiq_bench.demands", ("lm_eval",)),
        ("import shiq_bench.generation", ("torch", "transformers", "vllm")),
        ("import shiq_bench.rewards", ("torch", "transformers", "numpy", "pandas")),
    ],
)
def test_transitive_imports(code: str, absent: tuple[str, ...]) -> None:
    script = f"{code}; import sys; print(*[m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""
