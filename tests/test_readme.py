"""The README's promises that a machine can check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shiq_bench.api.registry import algorithms, load_plugin
from shiq_bench.data.groups import prepare
from shiq_bench.runs.settings import resolve
from shiq_bench.tabular.exact import kl
from shiq_bench.tabular.task import TabularTask
from shiq_bench.tabular.training import tabulate, train_tables
from shiq_bench.training.policy import load_policy
from shiq_bench.training.reference import reference_pass
from shiq_bench.training.starting_policy import resolve_model
from shiq_bench.training.trainer import train

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_baseline_it_shows_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code block, pasted into a plugin file as a reader would, lowers its loss on a language model."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "mine.py").write_text(code)
    load_plugin(tmp_path / "mine.py")
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path))
    try:
        resolved = resolve("my-method", "tree", {"model": "tiny", "steps": 40, "engine": "hf"})
        source = resolve_model(resolved.spec, resolved.task)
        data, policy = resolved.task.trajectories("rl", source.codec(), resolved.spec), load_policy(source)
        stats = reference_pass(policy, source.weights_hash, data, "fp32")
        groups = prepare(data, stats, resolved.algorithm, False)
        history = train(policy, None, groups, resolved.algorithm, resolved.spec, tmp_path / "run")
        assert history[-1]["loss"] < history[0]["loss"]

        table = resolve("my-method", "tree", {"kl_strength": 0.2, "off_policy": 2, "explore": 0.2})
        assert isinstance(table.task, TabularTask)
        tables = tabulate([table.task.world(0)], [table.task.data(0)], table.algorithm, table.spec.labels)
        (exact,) = tables.exact
        claimed = table.algorithm.fixed_point(exact)
        assert claimed is not None
        found = train_tables(table.algorithm, tables, table.spec).log_pi[0].numpy()
        assert kl(exact.world, claimed, found) <= 1e-6
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
