"""Who may import whom: layers by the syntax tree, third parties by folder, and what a fresh process has loaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shiq_bench"
STANDARD = sys.stdlib_module_names

#: The rooms, one way: each may import itself and those before it.
LAYERS = (
    "records", "stats", "api", "data", "tabular", "models", "generation", "training", "rewards", "evaluation", "runs",
    "sweep", "report", "studies", "bench", "cli",
)  # fmt: skip
#: Rooms that may import less than what lies below them, and what.
FEWER = {
    "records": set(),
    "stats": set(),
    "api": {"records", "tabular"},  # the latter for annotations alone
    "report": {"records", "stats"},
    "algorithms": set(),
    "tasks": {"records", "rewards", "stats", "api", "models"},
}
#: Third parties that a room may import at all, where it is not free to.
THIRD = {
    "records": {"pydantic"},
    "stats": {"numpy", "scipy"},
    "api": {"numpy", "torch"},
    "data": {"numpy", "pyarrow", "rich", "tokenizers", "torch", "transformers", "yaml"},
    "tabular": {"numpy", "scipy", "torch"},
    "models": {"huggingface_hub", "tokenizers", "torch", "transformers"},
    "generation": {"numpy", "peft", "torch", "transformers", "vllm"},
    "training": {"numpy", "peft", "safetensors", "torch", "transformers"},
    "rewards": {"numpy", "safetensors", "scipy", "torch", "transformers"},
    "evaluation": {"jinja2", "lm_eval", "numpy", "torch"},
    "report": {"jinja2", "matplotlib", "numpy", "pandas", "plotly", "rich", "scipy"},
    "algorithms": {"numpy", "torch"},
    "tasks": {"bfcl_eval", "datasets", "huggingface_hub", "numpy", "pyarrow", "rich"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    for name in ("algorithms", "tasks"):  # beside the package, and part of it
        for path in sorted((ROOT / name).rglob("*.py")):
            found[".".join(("shiq_bench", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")] = (
                path
            )
    return found


MODULES = modules()
ROOMS = sorted({name.split(".")[1] for name in MODULES if "." in name})


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules that a file names, wherever in it; those of ours down to the module that gives the name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}: a relative import hides where it goes"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in MODULES} or {node.module}
    return frozenset(found)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def trespasses(room: str, path: Path) -> list[str]:
    """What a file of a room imports that the tables do not let it."""
    below = set(LAYERS[: LAYERS.index(room)]) if room in LAYERS else set()
    allowed = {room, *FEWER.get(room, below)}
    found = []
    for module in sorted(imports(path)):
        top = module.split(".")[0]
        if top == "shiq_bench":
            # The public surface is for methods and tasks; the engine says where a thing is from.
            surface = module == "shiq_bench" and room in ("algorithms", "tasks")
            if not surface and room_of(module) not in allowed:
                found.append(module)
        elif top not in STANDARD and room in THIRD and top not in THIRD[room]:
            found.append(module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_lies_below_it(room: str) -> None:
    found = {name: trespasses(room, path) for name, path in MODULES.items() if room_of(name) == room}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_every_room_has_its_place() -> None:
    assert set(ROOMS) == {*LAYERS, "algorithms", "tasks"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also inside functions and for type checkers alone."""
    edges = {name: imports(path) & MODULES.keys() for name, path in MODULES.items() if path.name != "__init__.py"}

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for module in edges.get(todo.pop(), ()):
                if module not in seen:
                    seen.add(module)
                    todo.append(module)
        return seen

    assert [name for name in edges if name in reach(name)] == []


def test_the_table_catches_a_trespass(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from shiq_bench.runs.execute import execute\n    import torch\n")
    assert trespasses("report", bad) == ["shiq_bench.runs.execute", "torch"]
    assert trespasses("sweep", bad) == []


def test_the_api_names_the_oracles_for_annotations_alone() -> None:
    for name, path in MODULES.items():
        if room_of(name) != "api":
            continue
        tree = ast.parse(path.read_text())
        guarded = {
            n for b in ast.walk(tree) if isinstance(b, ast.If) and ast.unparse(b.test) == "TYPE_CHECKING"
            for n in ast.walk(b)
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and room_of(node.module or "") == "tabular":
                assert node in guarded, f"{name}:{node.lineno}"


def test_files_are_one_thing_each() -> None:
    """No source file over 400 lines, no test file over 600."""
    tests = sorted((ROOT / "tests").rglob("*.py"))
    lengths = {p: len(p.read_text().splitlines()) for p in (*MODULES.values(), *tests)}
    long = {p.relative_to(ROOT).as_posix(): n for p, n in lengths.items() if n > (600 if p in tests else 400)}
    assert long == {}


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
    for module, file in MODULES.items():
        if room_of(module) in ("algorithms", "tasks"):
            continue
        ours = {m for m in imports(file) if m.startswith("shiq_bench.")}
        assert not {m for m in ours if room_of(m) in ("algorithms", "tasks")}, file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                constants = {
                    c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                }
                assert not constants & names, f"{file}:{node.lineno} compares with the name of an algorithm or a task"


#: Commands from beginning to end, saying nothing.
COMMAND = """
import contextlib, io, tempfile
from shiq_bench.cli.app import app
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    app({words} + [folder][:{results}], standalone_mode=False)
"""
HELP = COMMAND.format(words=["--help"], results=0)
SMALL = ["--task", "tree", "--steps", "2", "--seeds", "2"]
TABLE = COMMAND.format(words=["run", "--algo", "shiq", *SMALL, "--results"], results=1)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import shiq_bench.records.run_store, shiq_bench.records.cache", ("torch", "numpy", "pandas", "transformers")),
        ("import shiq_bench.api.registry, shiq_bench.api.batch", ("torch", "numpy", "pandas", "transformers")),
        ("from shiq_bench import Algorithm, Batch, LossOutput, Stats, algorithm, log_ratio", ("torch", "numpy")),
        ("import shiq_bench.report.tables", ("torch", "transformers", "vllm")),
        ("import shiq_bench.cli.app", ("torch", "numpy", "pandas", "transformers", "vllm", "datasets")),
        (
            "import shiq_bench.cli.app",
            ("rich.progress", "shiq_bench.api", "shiq_bench.runs", "shiq_bench.records.spec"),
        ),
        ("import shiq_bench.tasks.bfcl", ("torch", "numpy", "transformers")),
        ("import shiq_bench.tasks.ultrafeedback", ("torch", "numpy", "transformers", "datasets", "pyarrow")),
        ("import shiq_bench.models.lora", ("torch", "peft")),
        ("from shiq_bench.tasks import tree, bandit, gridworld", ("torch", "transformers")),
        ("import shiq_bench.tabular.exact, shiq_bench.tabular.world", ("torch", "transformers")),
        ("import shiq_bench.data.dataset, shiq_bench.data.show", ("torch", "transformers", "datasets", "pyarrow")),
        ("import shiq_bench.tabular.training, shiq_bench.runs.tabular", ("transformers", "vllm")),
        ("import shiq_bench.algorithms.shiq", ("transformers", "vllm", "pandas")),
        ("import shiq_bench.runs.language, shiq_bench.runs.validation", ("lm_eval",)),
        ("import shiq_bench.generation.opening", ("torch", "transformers", "vllm")),
        (HELP, ("torch", "numpy", "rich.markdown", "shiq_bench.api", "shiq_bench.records.spec")),
        (TABLE, ("torch._dynamo", "sympy", "scipy.optimize", "pandas", "transformers", "vllm", "pyarrow")),
    ],
)
def test_transitive_imports(code: str, absent: tuple[str, ...]) -> None:
    script = f"{code}\nimport sys; print(*[m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""
