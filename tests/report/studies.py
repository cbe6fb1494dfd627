"""Studies whose numbers are known: who wins in them, by how much, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shiq_bench.records.record import Evaluation, RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.report.document import Table
from shiq_bench.report.findings import findings
from shiq_bench.report.study_results import StudyResults, Trial, View
from shiq_bench.stats.clustered import summarise

#: Instances of a run.
N = 8
Values = Sequence[float | None]

#: What makes an instance hard is the same for every method: only paired differences see through it.
HARD = np.linspace(0.0, 1.0, N)
SHAKE = np.tile([0.01, -0.01], N // 2)


def evaluation(policy: str, step: int, metrics: Mapping[str, Values], diverged: Values = ()) -> Evaluation:
    n = len(next(iter(metrics.values())))
    examples: list[dict[str, Any]] = [
        {"prompt_id": f"instance {i}", **{k: v[i] for k, v in metrics.items()}, "details": {}} for i in range(n)
    ]
    for example, value in zip(examples, diverged, strict=False):
        example["diverged"] = value
    return Evaluation(policy, "instances", "exact", step, summarise(examples, list(metrics)), tuple(examples))


def record(algo: str, metrics: Mapping[str, Values], begun: float = 2.0, diverged: Values = ()) -> RunRecord:
    """A run of 100 updates whose metrics fall from ``begun`` to their last values, tenfold in ten updates at most."""
    n = len(next(iter(metrics.values())))
    start = {k: [begun] * n for k in metrics}
    curve = []
    for step in (0, 1, 10, 50, 100):
        share = step / 100
        now = {
            k: [None if v is None else begun ** (1 - share) * max(v, 1e-9) ** share for v in vs]
            for k, vs in metrics.items()
        }
        curve.append(evaluation("trained", step, now))
    spec = RunSpec(algo, "bandit", model="table", steps=100, seeds=n)
    found = (evaluation("reference", 0, start), evaluation("trained", 100, metrics, diverged))
    return RunRecord(spec.run_id, "done", spec, source_hash="5ee0c0de", evaluations=found, curve=tuple(curve))


def study(cells: Sequence[Trial], **changes: Any) -> StudyResults:
    panels = tuple(dict.fromkeys(c.panel for c in cells))
    methods = tuple(dict.fromkeys(c.method for c in cells))
    made = StudyResults(
        name="example", title="An example", asks="Who wins?", kind="curves", metric="regret", label="regret",
        better="lower", focus="Ours", x_label="off_policy", panels=panels, methods=methods,
        views=tuple(View(p, (p,), methods) for p in panels), cells=tuple(cells), log_x=True,
    )  # fmt: skip
    return replace(made, **changes)


def one_panel(ends: Mapping[str, Values], **changes: Any) -> StudyResults:
    cells = [Trial("bandit", m, record=record(m.lower(), {"regret": v})) for m, v in ends.items()]
    return study(cells, **changes)


def shifted(by: float, shake: float = 0.0) -> list[float]:
    """Ours plus ``by``, shaken or not; instances are spread over much more than either."""
    return [float(v) for v in 0.2 + HARD + by + shake * SHAKE]


KNOWN = {
    "Ours": shifted(0.0),
    "Worse": shifted(0.05, 1.0),
    "Better": shifted(-0.05, 1.0),
    "Even": shifted(0.0, 1.0),
    "Twin": shifted(0.0),
}


def rows_of(table: Table) -> tuple[tuple[str, ...], ...]:
    """The texts of a table, its labels first."""
    return tuple((row.label, *row.texts) for row in table.rows)


def claims(made: StudyResults) -> str:
    return "\n".join(findings(made).claims)


def varied(**changes: Any) -> StudyResults:
    """The other is worse at 0 and better at 2; at 1 nobody is."""
    others = {0.0: shifted(0.05, 1.0), 1.0: shifted(0.0, 1.0), 2.0: shifted(-0.05, 1.0)}
    cells = [Trial("tree", "Ours", x, record=record("ours", {"regret": shifted(0.0)})) for x in others]
    cells += [Trial("tree", "Other", x, record=record("other", {"regret": v})) for x, v in others.items()]
    cells += [Trial("tree", "Always", x, record=record("always", {"regret": shifted(1.0, 1.0)})) for x in others]
    return study(cells, kind="against", log_x=False, **changes)


def proof() -> StudyResults:
    tight, loose = [1e-9, 3e-8], [1e-9, 2e-3]
    cells = [
        Trial("tree", "Exact", record=record("exact", {"kl": [0.0, -1e-17]}), bound=1e-6),
        Trial("tree", "Close", record=record("close", {"kl": tight}), bound=1e-6),
        Trial("tree", "Off", record=record("off", {"kl": loose}), bound=1e-6),
        Trial("tree", "None", record=record("none", {"kl": [None, None]}), bound=1e-6),
        Trial("tree", "Broken", bound=1e-6, problem="exploded"),
        Trial("grid", "Exact", left_out="too large"),
        Trial("grid", "Close", left_out="of no use"),
        Trial("grid", "Off", record=record("off", {"kl": loose})),
        Trial("grid", "None", left_out="too large"),
        Trial("grid", "Broken", record=record("broken", {"kl": [1e-3, None]})),
    ]
    made = study(cells, kind="table", metric="kl", label="KL", focus="")
    return replace(made, views=(View("Everything", made.panels, made.methods),))


#: What makes a seed lucky is the same for every method.
LUCK = np.linspace(-0.2, 0.2, 8)


def played(algo: str, seed: int, reward: float, kl: float, beta: float = 0.1) -> RunRecord:
    """A run whose numbers elsewhere (other splits, other modes) are others."""

    def seen(policy: str, split: str, mode: str, **metrics: float | None) -> Evaluation:
        found = {name: {"mean": mean, "n": 40.0, "stderr": 0.1} for name, mean in metrics.items()}
        return Evaluation(policy, split, mode, 0 if policy == "reference" else 200, found, ())

    spec = RunSpec(algo, "bfcl", {"beta": beta}, seed=seed)
    found = (
        seen("reference", "heldout", "sampled", reward=0.5, truncated=0.0),
        seen("trained", "heldout", "greedy", reward=9.0, truncated=0.0),
        seen("trained", "heldout", "sampled", reward=reward, kl=kl, truncated=0.25),
        seen("trained", "rl", "sampled", reward=9.0, kl=9.0, truncated=0.0),
    )
    return RunRecord(spec.run_id, "done", spec, source_hash="5ee0c0de", evaluations=found)


Line = Sequence[tuple[float, float]]


def fronts(lines: Mapping[str, Sequence[Line]], **changes: Any) -> StudyResults:
    """Method -> a line of (KL, reward) for every seed, whose points are those of beta 1, 2, ..."""
    cells = [
        Trial("chat", method, float(i), record=played(method.lower(), seed, y, x, float(i)), seed=seed)
        for method, seeds in lines.items()
        for seed, line in enumerate(seeds)
        for i, (x, y) in enumerate(line, 1)
    ]
    told = {
        "kind": "front", "metric": "reward", "label": "mean reward", "better": "higher", "x_label": "beta",
        "split": "heldout", "mode": "sampled", "x_metric": "kl", "x_metric_label": "KL (nats)", "log_x": False,
        "log_y": False,
    }  # fmt: skip
    return study(cells, **{**told, **changes})


def lucky(line: Line, by: float, seeds: int = 8, shake: float = 0.0) -> list[Line]:
    """A line for every seed: higher or lower by its luck, and by how much better the method is."""
    return [
        [(x, float(y + luck + by + shake * s)) for x, y in line] for luck, s in zip(LUCK[:seeds], SHAKE, strict=False)
    ]


RISING: Line = [(1.0, 1.0), (2.0, 2.0), (4.0, 3.0)]


def table(lines: Mapping[tuple[str, str], Sequence[float]], **changes: Any) -> StudyResults:
    """(panel, method) -> the reward of every seed."""
    cells = [
        Trial(panel, method, record=played(method.lower(), seed, reward, 1.5), seed=seed)
        for (panel, method), rewards in lines.items()
        for seed, reward in enumerate(rewards)
    ]
    told = {"kind": "table", "metric": "reward", "label": "reward", "better": "higher", "split": "heldout"}
    return study(cells, **{**told, "mode": "sampled", **changes})
