"""What a table is made of: columns, cells and blocks, and the settings that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shiq_bench.records.hashing import canonical_json
from shiq_bench.records.record import Evaluation, Metric, RunRecord
from shiq_bench.records.spec import CONDITIONS, RunSpec
from shiq_bench.stats.intervals import Estimate
from shiq_bench.stats.ranking import Test

#: Mode of evaluations on tasks of lm-eval, each a split of its own.
LM_EVAL = "lm-eval"

#: Marks a difference to the reference on an lm-eval task that lies below 0 with its whole interval.
DROP = " ▼"

Place = tuple[str, str]  # split, mode
Key = tuple[str, str, str, str]  # split, mode, label of the policy, name of the metric


@dataclass(frozen=True)
class Column:
    """One policy: the reference, or the runs of one algorithm that differ in nothing but the seed.

    Attributes:
        label: ``reference``, or the algorithm with whatever tells it from another column of it.
        runs: every record behind the column, whatever its status, by seed.
        done: those that finished; means are over these.
    """

    label: str
    runs: tuple[RunRecord, ...]
    done: tuple[RunRecord, ...]

    def count(self, status: str) -> int:
        """How many of the runs ended (or stand) so."""
        return sum(r.status == status for r in self.runs)

    @property
    def consumed(self) -> dict[str, float]:
        """What a finished run took, mean over runs: only what every one of them recorded."""
        spent = [r.consumed for r in self.done]
        names = [n for n in (spent[0] if spent else ()) if all(n in c for c in spent)]
        return {n: sum(c[n] for c in spent) / len(spent) for n in sorted(names)}

    @property
    def state(self) -> str:
        """``6 seeds, 1 diverged``: everything that was run, nothing dropped silently."""
        if not self.runs:
            return ""
        seeds = len(self.done)
        spec = self.runs[0].spec if seeds != 1 else self.done[0].spec
        first = f"{spec.seeds} instances" if spec.model == "table" else f"seed {spec.seed}"
        first = first if seeds == 1 else f"{seeds} seeds"
        rest = [f"{self.count(s)} {s}" for s in ("failed", "diverged", "started") if self.count(s)]
        return ", ".join([first, *rest] if seeds or not rest else rest)


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
        estimate: mean and interval, in the metric's unit (percent metrics are shares here).
        n: episodes (or trials of a rate, or prompts of a difference) of each seed behind it.
        over: what the interval is over; ``none`` where there is no interval. Several seeds that were asked the
            same prompts are ``seeds and prompts``; ``seeds`` alone does not cover other prompts.
    """

    estimate: Estimate
    n: tuple[float, ...]
    over: Literal["seeds and prompts", "seeds", "prompts", "none"]


@dataclass(frozen=True)
class Block:
    """The runs that share one reference: one table.

    Attributes:
        columns: the reference first, then each algorithm.
        differences: trained minus reference.
        rates: names of metrics whose n counts trials.
        best: keys whose number beats all others beyond doubt (see :func:`shiq_bench.stats.ranking.winner`).
        unmarked: keys that would be among them, of methods that lost units.
        to_reference: the test that belongs to a difference's interval, see :func:`shiq_bench.stats.tests.paired_p`.
        to_best: the sign-flip test of the best method of its row against this one.
        drops: keys of differences on lm-eval tasks that are losses beyond doubt.
    """

    title: str
    conditions: Mapping[str, Any]
    columns: tuple[Column, ...]
    places: tuple[Place, ...]
    metrics: tuple[Metric, ...]
    cells: Mapping[Key, Cell]
    differences: Mapping[Key, Cell]
    rates: frozenset[str]
    best: frozenset[Key]
    unmarked: frozenset[Key]
    to_reference: Mapping[Key, Test]
    to_best: Mapping[Key, Test]
    drops: frozenset[Key]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything a table shows, before it is laid out."""

    blocks: tuple[Block, ...]
    captions: tuple[str, ...]


def differing(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names whose values are not the same everywhere."""
    names = {name for s in settings for name in s}
    return {n for n in names if len({canonical_json(s[n]) if n in s else None for s in settings}) > 1}


def named(spec: RunSpec, which: Literal["algo", "task"] = "algo") -> dict[str, Any]:
    """Options by names that no setting of every run has: ``algo.samples`` where one is called like it."""
    settings = spec.outcome()
    return {f"{which}.{k}" if k in settings else k: v for k, v in settings[f"{which}_options"].items()}


def flat(spec: RunSpec) -> dict[str, Any]:
    """What a column stands for: the algorithm's options and every other setting but the seed."""
    outcome = {k: v for k, v in spec.outcome().items() if k not in {*CONDITIONS, "algo", "seed", "algo_options"}}
    return {**named(spec), **outcome}


def plain(value: Any) -> str:
    """A setting's value as a person would type it."""
    return "none" if value == "" else value if isinstance(value, str) else canonical_json(value)


def last(record: RunRecord, policy: str, place: Place | None = None) -> Evaluation | None:
    """The policy's evaluation at its last checkpoint, of one place or of any: the rule by which numbers are chosen."""
    found = [e for e in record.evaluations if e.policy == policy and place in (None, (e.split, e.mode))]
    return max(found, key=lambda e: e.step, default=None)


def where(block: Block) -> str:
    """The unit that methods are paired by: seeds, or the instances of a table."""
    return "instances" if block.conditions["model"] == "table" else "seeds"
