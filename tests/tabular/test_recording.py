"""Operations written down once and played again, and the training of tables that rests on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, LossOutput, Stats
from shiq_bench.api.needs import OnPolicy
from shiq_bench.api.registry import algorithms
from shiq_bench.data.groups import in_unit_range
from shiq_bench.records.errors import UserError
from shiq_bench.runs.settings import resolve
from shiq_bench.tabular import training
from shiq_bench.tabular.recording import Function, recorded
from shiq_bench.tabular.task import TabularTask
from shiq_bench.tabular.training import Tables, initial, table_stats, tabulate, train_tables


def setting(algo: str, **settings: Any) -> tuple[Algorithm, Any, Tables]:
    resolved = resolve(algo, "tree", {"steps": 4, "depth": 2, **settings})
    task, algorithm = resolved.task, resolved.algorithm
    assert isinstance(task, TabularTask)
    data = [in_unit_range(task.data(n), algorithm, task.largest_return) for n in range(3)]
    return algorithm, resolved.spec, tabulate([task.world(n) for n in range(3)], data, algorithm, resolved.spec.labels)


def played_as_done(monkeypatch: pytest.MonkeyPatch, algorithm: Algorithm, *words: Any, **options: Any) -> None:
    """Recorded or not, a training has the same losses, metrics and tables to the bit."""
    ours = train_tables(algorithm, *words, **options)
    with monkeypatch.context() as patch:
        patch.setattr(training, "recorded", lambda function, inputs, changing: function)
        theirs = train_tables(algorithm, *words, **options)
    assert ours.history == theirs.history
    assert ours.tables.keys() == theirs.tables.keys()
    for name, table in ours.tables.items():
        assert torch.equal(table, theirs.tables[name]), name
    assert len({seen["loss"] for seen in ours.history}) == len(ours.history)


@pytest.mark.parametrize("algo", algorithms.names())
def test_a_recording_is_what_it_records_for_every_method(algo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, spec, tables = setting(algo, **({"allow_off_policy": True} if _on_policy(algo) else {}))
    played_as_done(monkeypatch, algorithm, tables, spec)


def _on_policy(algo: str) -> bool:
    return any(isinstance(need, OnPolicy) for need in algorithms.get(algo)().needs)


@pytest.mark.parametrize("fresh", ["enumerated", "sampled"])
def test_a_recording_takes_fresh_data(fresh: Literal["enumerated", "sampled"], monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, spec, tables = setting("shiq", enumerated=True, samples=8)
    played_as_done(monkeypatch, algorithm, tables, spec, fresh=fresh)


def test_updates_are_those_of_torch() -> None:
    """The same tables to the bit as by torch's own optimiser and schedule on plain gradients, of all seeds' losses."""
    algorithm, spec, tables = setting("shiq", steps=7, warmup=0.3, schedule="cosine", weight_decay=0.1)
    found = train_tables(algorithm, tables, spec).tables
    trained, fixed = initial(algorithm, tables)
    optimiser = torch.optim.AdamW(trained.values(), lr=spec.learning_rate, weight_decay=0.1, eps=1e-20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: training._factor(step, spec))

    def loss(trained: Mapping[str, Tensor], fixed: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Tensor:
        batch = training.to_batch(dict(data))
        stats = table_stats(algorithm, dict(trained), dict(fixed), None, dict(data))
        return algorithm.loss(stats, batch).total / algorithm.count(batch)

    for _ in range(7):
        optimiser.zero_grad()
        torch.func.vmap(loss)(trained, fixed, tables.data).sum().backward()
        optimiser.step()
        schedule.step()
    assert torch.equal(found["logits"], trained["logits"].detach())


def test_a_loss_with_a_memory_is_refused() -> None:
    """What it did at the first update would be done at all of them."""
    algorithm, spec, tables = setting("shiq")
    seen: list[int] = []

    @dataclass(frozen=True)
    class Counting(type(algorithm)):  # type: ignore[misc]
        def loss(self, stats: Stats, batch: Batch) -> LossOutput:
            seen.append(1)
            out = super().loss(stats, batch)
            return replace(out, total=out.total * len(seen))

    with pytest.raises(UserError, match="no function of its arguments"):
        train_tables(Counting(), tables, spec)


def both(function: Function, *values: float) -> list[tuple[Any, Any]]:
    """What a recording made of the first value gives for each, and what the function itself gives."""
    inputs = [{"x": torch.tensor([v, 2.0]), "y": torch.tensor([3.0, 4.0])} for v in values]
    play = recorded(function, inputs[0], ["x"])
    return [
        tuple({n: None if t is None else t.tolist() for n, t in f(i).items()} for f in (play, function))  # type: ignore[misc]
        for i in inputs
    ]


def test_what_depends_on_nothing_is_computed_once_unless_it_is_changed() -> None:
    def function(inputs: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        doubled = 2 * inputs["y"]
        kept = doubled.exp()
        doubled += inputs["x"]
        fresh = torch.tensor([1.0, 1.0])
        fresh += inputs["x"]
        first, second = (inputs["x"] * kept).unbind()
        return {"doubled": doubled, "fresh": fresh, "first": first, "second": second}

    for played, done in both(function, 1.0, 5.0, 9.0):
        assert played == done


def test_what_reads_a_value_is_not_recorded() -> None:
    def function(inputs: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        return {"x": inputs["x"] if inputs["x"][0] > 3 else -inputs["x"]}

    for played, done in both(function, 1.0, 5.0):
        assert played == done
