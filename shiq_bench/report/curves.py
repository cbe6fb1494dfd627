"""Means over training, with intervals: of what was evaluated exactly, and of what the trainer logged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

from shiq_bench.records.record import Evaluation, Metric
from shiq_bench.report.blocks import Column
from shiq_bench.report.comparison import cell_of
from shiq_bench.report.format import digits
from shiq_bench.stats.intervals import Estimate, mean_ci_t


def curves(column: Column, row: int, metrics: Sequence[Metric], points: int) -> Iterable[dict[str, Any]]:
    """The finished runs of a column, with 95% t intervals; at most ``points`` of what was logged."""
    found: dict[tuple[str, str], list[tuple[int, Estimate]]] = {}
    by_step: dict[tuple[int, str, str], list[Evaluation]] = {}
    for record in column.done:
        for e in record.curve:
            by_step.setdefault((e.step, e.split, e.mode), []).append(e)
    for step, split, mode in sorted(by_step):
        # Where some runs were not evaluated, a mean would be over others than beside it.
        if len(evaluations := by_step[step, split, mode]) == len(column.done):
            for metric in metrics:
                if cell := cell_of(evaluations, metric.name):
                    found.setdefault((f"{split}, {mode}", metric.name), []).append((step, cell.estimate))
    for (place, name), values in found.items():
        yield _curve(row, place, name, values)
    logged = [{int(line["step"]): line for line in r.training if "step" in line} for r in column.done]
    steps = evenly(sorted(set.intersection(*map(set, logged))) if logged else [], points)
    for name in sorted({k for s in steps for lines in logged for k in lines[s]} - {"step", "epoch"}):
        yield _curve(row, "training", name, [(s, mean_ci_t(_finite(x[s].get(name)) for x in logged)) for s in steps])


def _curve(row: int, place: str, metric: str, values: Sequence[tuple[int, Estimate]]) -> dict[str, Any]:
    known = [(step, e) for step, e in values if e.mean is not None]
    return {
        "row": row,
        "place": place,
        "metric": metric,
        "step": [step for step, _ in known],
        **{name: [digits(getattr(e, name)) for _, e in known] for name in ("mean", "low", "high")},
        "units": max((e.units for _, e in known), default=0),
        "fewest": min((e.units for _, e in known), default=0),
    }


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly spaced, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _finite(x: Any) -> float | None:
    return float(x) if isinstance(x, (int, float)) and isfinite(x) else None
