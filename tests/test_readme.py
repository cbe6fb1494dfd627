"""The README's promises that a machine can check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from shiq_bench.api import algorithms, load_plugin
from shiq_bench.config import resolve
from shiq_bench.models import resolve_model
from shiq_bench.training.data import prepare
from shiq_bench.training.reference import reference_pass
from shiq_bench.training.trainer import train
from tasks.tree import Tree
from tests.tables import Table, kl, solve

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_baseline_it_shows_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code block, pasted into a plugin file as a reader would, lowers its loss on a language model."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "mine.py").write_text(code)
    load_plugin(tmp_path / "mine.py")
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path))
    try:
        resolved = resolve("my-method", "tree", {"steps": 8, "engine": "hf"})
        source = resolve_model(resolved.spec, resolved.task)
        data, policy = resolved.task.trajectories("rl"), source.policy()
        stats = reference_pass(policy, source.weights_hash, data, "padded", "fp32")
        groups = prepare(data, stats, resolved.algorithm, False)
        history = train(policy, None, groups, resolved.algorithm, resolved.spec, tmp_path / "run").history
        assert history[-1]["loss"] < history[0]["loss"]

        tree = Tree(actions=3, depth=2)
        table = Table.of(tree)
        reference = table.random_logits(seed=1)
        log_mu = table.log_completions(table.random_logits(seed=2))
        method = algorithms.get("my-method")(beta=0.7)  # type: ignore[call-arg]
        found = table.log_completions(solve(method, table, reference, log_mu))
        oracle = torch.tensor(tree.oracle(table.log_completions(reference).numpy(), 0.7)).log()
        assert kl(oracle, found) <= 1e-6, "the fixed point it claims by default"
    finally:
        algorithms._classes.pop("my-method", None)


def test_it_names_every_command_it_should() -> None:
    for text in (
        "make demo",
        "make test",
        "shiq-bench run --algo shiq --task bfcl",
        "shiq-bench table",
        "shiq-bench list",
    ):
        assert text in README
