"""Every planted bug is caught by the test that was named for it beforehand.

Every worker of pytest has its own copy of the project. One process imports torch and transformers, and nothing of
ours; for every test it is asked for it forks a child that imports the copy as it stands and runs that test.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from tests import needs
from tests.mutations import MUTATIONS, Mutation
from tests.mutations.planting import planted

ROOT = Path(__file__).parent.parent
COPIED = ("shiq_bench", "algorithms", "tasks", "tests", "README.md", "pyproject.toml")
OURS = ("shiq_bench",)
#: Third parties that most of the named tests import, down to where importing takes its time.
HEAVY = (
    "numpy", "scipy.optimize", "scipy.special", "scipy.stats", "torch", "torch.func", "torch.distributed",
    "safetensors.torch", "tokenizers", "accelerate", "transformers.trainer", "transformers.generation.utils",
    "transformers.models.llama.modeling_llama", "transformers.models.cohere.modeling_cohere",
)  # fmt: skip

State = Literal["passed", "caught", "skipped", "broken"]


# --- in the child: one test ---


class Witness:
    """Notes how the one test ended: ``caught`` only where an assertion of the test failed."""

    def __init__(self) -> None:
        self.state: State = "broken"
        self.reason = ""
        self.tests = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Generator[None, Any, Any]:
        report = yield
        self.tests += report.when == "setup"
        if call.excinfo and call.excinfo.errisinstance(pytest.skip.Exception):
            self.state, self.reason = "skipped", str(call.excinfo.value)
        elif report.when == "call":
            asserted = call.excinfo and isinstance(call.excinfo.value, AssertionError | pytest.fail.Exception)
            self.state = "passed" if report.passed else "caught" if report.failed and asserted else "broken"
        elif report.failed:
            self.state = "broken"
        return report


def run_one(test: str, folder: str) -> NoReturn:
    """Run a test in the current directory, write ``state``, ``reason`` and ``log`` into ``folder``, and end."""
    out = Path(folder)
    log = os.open(out / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    witness = Witness()
    # A timeout in a thread ends the process; by a signal it would look like a failed assertion.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "--timeout=200", "--timeout-method=thread"]
    pytest.main([test, *options, "-m", "", f"--basetemp={out / 'tmp'}"], plugins=[witness])
    loaded = [str(sys.modules[name].__file__) for name in OURS if name in sys.modules]
    if witness.tests != 1 or not all(Path(file).is_relative_to(Path.cwd()) for file in loaded):
        print(f"{witness.tests} tests ran, on {loaded}; expected one, on a copy in {Path.cwd()}", flush=True)
        witness.state = "broken"
    (out / "reason").write_text(witness.reason)
    (out / "state").write_text(witness.state)
    sys.stdout.flush()
    os._exit(0)


def serve() -> None:
    """Fork a child for every line of standard input, ``[test, folder]``, and answer with a line when it has ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()
    assert threading.active_count() == 1, "a fork would lose the other threads"
    assert not set(OURS) & set(sys.modules), "the children would not see their mutations"
    for line in sys.stdin:
        test, folder = json.loads(line)
        if (pid := os.fork()) == 0:
            run_one(test, folder)
        os.waitpid(pid, 0)
        print(pid, file=answers, flush=True)


# --- in the session ---


@dataclass
class Bench:
    """A copy of the project, and the process that runs its tests."""

    folder: Path
    server: subprocess.Popen[str]
    environment: dict[str, str]
    runs: int = 0
    clean: dict[str, tuple[State, str]] = field(default_factory=dict)

    @property
    def copy(self) -> Path:
        return self.folder / "copy"

    def run(self, test: str) -> tuple[State, str]:
        """How a test of the copy ends; and why it was skipped, or what it printed."""
        self.runs += 1
        out = self.folder / str(self.runs)
        out.mkdir()
        if "vllm" in test and shutil.which("nvidia-smi"):  # it opens the GPU, which cannot be done behind a fork
            code = f"from tests.test_mutations import run_one; run_one({test!r}, {str(out)!r})"
            subprocess.run([sys.executable, "-c", code], cwd=self.copy, env=self.environment, check=False)
        else:
            assert self.server.stdin is not None and self.server.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                self.server.stdin.write(json.dumps([test, str(out)]) + "\n")
                self.server.stdin.flush()
            assert self.server.stdout.readline(), (self.folder / "server.log").read_text()
        said = {name: (out / name).read_text() for name in ("state", "reason", "log") if (out / name).exists()}
        state: State = said.get("state", "broken")  # type: ignore[assignment]
        return state, said["reason"] if state == "skipped" else said.get("log", "")[-4000:]

    def complaint(self, mutation: Mutation) -> str | None:
        """What is wrong with a mutation; None where the test named for it caught it.

        Raises:
            pytest.skip.Exception: if that test is skipped here without any bug.
        """
        path = self.copy / mutation.file
        text = path.read_text()
        found = text.count(mutation.old)
        if found != 1:
            return (
                f"{mutation.name!r} no longer fits: its text occurs {found} times in {mutation.file}, expected once. "
                f"Write the bug anew for the code as it is:\n{mutation.old}"
            )
        mutated = text.replace(mutation.old, mutation.new)
        try:
            compile(mutated, mutation.file, "exec")
        except SyntaxError as error:
            return f"{mutation.name!r} leaves no Python: {error}"
        if mutation.test not in self.clean:
            self.clean[mutation.test] = self.run(mutation.test)
        state, log = self.clean[mutation.test]
        if state == "skipped":
            pytest.skip(f"{mutation.test}: {log}")
        if state != "passed":
            return f"{mutation.test} does not pass without any bug, so it catches none:\n{log}"
        path.write_text(mutated)
        try:
            state, log = self.run(mutation.test)
        finally:
            path.write_text(text)
        if state == "passed":
            return f"{mutation.name!r} SURVIVES: {mutation.test} passes with it in {mutation.file}"
        if state != "caught":
            return f"{mutation.name!r} breaks {mutation.test} otherwise than by a failed assertion:\n{log}"
        return None


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("mutations")
    (folder / "copy").mkdir()
    for name in COPIED:
        source, target = ROOT / name, folder / "copy" / name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # Two bugs of equal length within a second would be one file to a cache of compiled ones.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", "from tests.test_mutations import serve; serve()"],
            cwd=folder / "copy", env={**environment, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    yield Bench(folder, server, environment)
    server.kill()
    server.communicate()


#: As good as the list's, to be spoiled.
CAUGHT = Mutation(
    "sign of w",
    "shiq_bench/api/batch.py",
    "return stats.policy.logp - reference_of(stats).logp",
    "return reference_of(stats).logp - stats.policy.logp",
    "tests/algorithms/test_values.py::test_shiq_multi_step",
)


def test_the_list_is_a_list() -> None:
    assert MUTATIONS, "no bug is planted"
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
    for m in MUTATIONS:
        assert m.file.split("/")[0] in COPIED[:3], f"{m.name}: a bug in a test proves nothing"
        assert m.old.strip() and m.old != m.new, m.name


def _parameters() -> list[Any]:
    """Those of one test side by side: most of them go to one worker, which runs it once without any bug."""
    names = {m.name for m in planted()[0]}
    return [
        pytest.param(m, id=m.name, marks=[pytest.mark.proof, *([pytest.mark.changed] if m.name in names else [])])
        for m in sorted(MUTATIONS, key=lambda m: m.test)
    ]


@pytest.mark.parametrize("mutation", _parameters())
def test_planted_bug_is_caught(bench: Bench, mutation: Mutation) -> None:
    if complaint := bench.complaint(mutation):
        pytest.fail(complaint, pytrace=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"old": "never reach a loss, so", "new": "never reach a loss; so"}, "SURVIVES"),
        ({"old": "no such text"}, "occurs 0 times"),
        ({"old": "def "}, r"occurs \d times"),
        ({"new": "return ("}, "leaves no Python"),
        ({"new": "return stats.nothing"}, "otherwise than by a failed assertion"),
        ({"new": 'import pytest; pytest.skip("without a reason")'}, "otherwise than by a failed assertion:\nwithout a"),
        ({"test": "tests/api/test_ops.py::test_of_nothing"}, "does not pass without any bug"),
        ({"test": "tests/algorithms/test_values.py::test_copg_and_rebel"}, "2 tests ran"),
    ],
    ids=["survivor", "gone", "ambiguous", "no Python", "another error", "a skip", "no test", "two tests"],
)
def test_what_proves_nothing_is_told(bench: Bench, changes: dict[str, str], says: str) -> None:
    before = (bench.copy / CAUGHT.file).read_text()
    complaint = bench.complaint(replace(CAUGHT, **changes))
    assert complaint is not None and re.search(says, complaint)
    assert (bench.copy / CAUGHT.file).read_text() == before


@pytest.mark.parametrize("how", ["in_its_body", "by_a_mark", "by_a_fixture"])
def test_a_bug_whose_test_is_skipped_is_skipped_with_the_reason(bench: Bench, how: str) -> None:
    file = bench.copy / "tests" / "test_skipped.py"
    file.write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def program(): pytest.skip('needs a program')\n"
        "def test_in_its_body(): pytest.skip('needs a program')\n"
        "@pytest.mark.skipif(True, reason='needs a program')\n"
        "def test_by_a_mark(): pass\n"
        "def test_by_a_fixture(program): pass\n"
    )
    skipped = replace(CAUGHT, test=f"tests/test_skipped.py::test_{how}")
    with pytest.raises(pytest.skip.Exception, match=f"^{re.escape(skipped.test)}: needs a program$"):
        bench.complaint(skipped)
    assert "occurs 0 times" in str(bench.complaint(replace(skipped, old="no such text"))), "it has to fit all the same"


def test_bugs_of_files_that_differ_from_the_main_branch_are_planted(tmp_path: Path) -> None:
    git = [needs.program("git"), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    bugs = [replace(CAUGHT, name=file, file=f"tasks/{file}") for file in ("same", "edited", "committed", "untracked")]

    def files() -> list[str]:
        return [m.name for m in planted(tmp_path / "project", bugs)[0]]

    (tmp_path / "project" / "tasks").mkdir(parents=True)
    assert planted(tmp_path / "project", bugs) == (bugs, "all of them: there is no origin/main to compare with")
    for bug in bugs[:3]:
        (tmp_path / "project" / bug.file).write_text("before")
    commit = [*git, "-C", str(tmp_path), "commit", "-qam", "as it is"]
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run([*git, "-C", str(tmp_path), *command], check=True)
    subprocess.run(commit, check=True)
    assert files() == ["same", "edited", "committed", "untracked"], "still no such branch"
    subprocess.run([*git, "-C", str(tmp_path), "update-ref", "refs/remotes/origin/main", "HEAD"], check=True)
    assert planted(tmp_path / "project", bugs) == ([], "those whose file or test differs from origin/main")
    (tmp_path / "project" / bugs[2].file).write_text("after")
    subprocess.run(commit, check=True)
    (tmp_path / "project" / bugs[1].file).write_text("after")
    (tmp_path / "project" / bugs[3].file).write_text("new")
    assert files() == ["edited", "committed", "untracked"]
    catches = tmp_path / "project" / CAUGHT.test.partition("::")[0]
    catches.parent.mkdir(parents=True)
    catches.write_text("other tests")
    assert files() == [bug.name for bug in bugs], "their test is another"
