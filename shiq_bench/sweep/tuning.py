"""Hyperparameters chosen on validation data, with the same number of trials for every method.

Language models are validated on the ``start`` split, whose prompts are neither trained on by any
method nor reported (a tiny starting policy was fitted to its demonstrations, equally for all); tables
on instances behind those that are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from shiq_bench.api.registry import tasks
from shiq_bench.records import run_store
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import write_json
from shiq_bench.records.hashing import stable_hash
from shiq_bench.records.record import Metric, RunRecord
from shiq_bench.runs.progress import say
from shiq_bench.runs.settings import merged, resolve
from shiq_bench.sweep.grid import Job, check_known, knows, of_flags

#: The split of language models that hyperparameters are chosen on.
VALIDATION = "start"


@dataclass(frozen=True)
class Tuning:
    """A sweep that is tuned: what, and how hard.

    Attributes:
        varied: setting -> its candidates.
        budget: trials of each method on each task at most; of more combinations, so many are drawn.
        seeds: of the runs to report.
        values: settings of every run.
    """

    varied: Mapping[str, Sequence[str]]
    budget: int
    algos: Sequence[str]
    tasks: Sequence[str]
    seeds: Sequence[int]
    values: Mapping[str, Any]

    def candidates(self, algo: str, task: str) -> list[dict[str, str]]:
        """The combinations to try: of those settings that the method has, in one order, drawn with one seed."""
        mine = {key: values for key, values in self.varied.items() if knows(algo, task, key)}
        every = [dict(zip(mine, values, strict=True)) for values in product(*mine.values())]
        if len(every) <= self.budget:
            return every
        chosen = np.random.default_rng(0).choice(len(every), self.budget, replace=False)
        return [every[i] for i in sorted(chosen)]

    def trials(self) -> Iterator[Job]:
        """The runs that choose: one a candidate.

        Raises:
            UserError: an unknown name, or a setting that no method has.
        """
        check_known(self.varied, self.algos, self.tasks)
        seeds = self.seeds
        for algo, task in product(self.algos, self.tasks):
            for chosen in self.candidates(algo, task):
                try:
                    table = resolve(algo, task, merged(self.values, chosen)).spec.model == "table"
                except UserError:
                    table = True  # as which of_flags meets the same error, and makes a job with a problem of it
                where = {} if table else {"eval_splits": VALIDATION}
                at = range(max(seeds) + 1, max(seeds) + 1 + len(seeds)) if table else seeds[:1]
                yield from of_flags([algo], [task], at, merged(self.values, where), {k: [v] for k, v in chosen.items()})

    def chosen(self, jobs: Sequence[Job], results: Path) -> dict[tuple[str, str], dict[str, Any]]:
        """(method, task) -> the candidate with the best validation score; the choice and every score are kept.

        A method of which no trial has ended well is not there.
        """
        out: dict[tuple[str, str], dict[str, Any]] = {}
        report = []
        for algo, task in product(self.algos, self.tasks):
            metric = headline(tasks.get(task).metrics)
            scores: list[tuple[float, dict[str, str]]] = []
            for candidate in self.candidates(algo, task):
                mine = [
                    j for j in jobs if (j.algo, j.task) == (algo, task) and candidate.items() <= dict(j.values).items()
                ]
                ended = [run_store.find(results, job.run_id) for job in mine if not job.problem]
                found = [s for r in ended if r and r.status == "done" and (s := validation(r, metric)) is not None]
                score = sum(found) / len(found) if found else None
                entry = {
                    "algo": algo,
                    "task": task,
                    "settings": candidate,
                    "runs": [j.run_id for j in mine if j.run_id],
                }
                report.append({**entry, "metric": metric.name, "score": score})
                if score is not None:
                    scores.append((score, candidate))
            sign = -1 if metric.better == "lower" else 1
            if scores:
                out[algo, task] = dict(max(scores, key=lambda s: sign * s[0])[1])  # the first of equals
        write_json(results / ".runs" / f"tuned-{stable_hash(report)[:12]}.json", report)
        return out

    def tuned(self, tried: Sequence[Job], results: Path, console: Console) -> Iterator[Job]:
        """The runs to report, every method with the settings that did best on validation data.

        Args:
            tried: the trials, which have been run.

        Raises:
            UserError: no trial has ended well.
        """
        best = self.chosen(tried, results)
        for algo, task in sorted(set(product(self.algos, self.tasks)) - best.keys()):
            say(console, f"no trial of {algo} on {task} has ended well: it is left out")
        if not best:
            raise UserError("no trial of any method has ended well: see the lines above")
        for (algo, task), settings in best.items():
            said = ", ".join(f"{k}={v}" for k, v in settings.items()) or "nothing to tune"
            say(console, f"chosen for {algo} on {task}: {said}")
            yield from of_flags([algo], [task], self.seeds, self.values, {k: [v] for k, v in settings.items()})


def headline(metrics: Sequence[Metric]) -> Metric:
    """The metric that a task chooses by: its first one that is a headline and has a better and a worse."""
    known = [m for m in metrics if m.better != "neither"]
    return next((m for m in known if m.headline), known[0] if known else Metric("reward", "higher", "mean reward"))


def validation(record: RunRecord, metric: Metric) -> float | None:
    """The trained policy's mean of a metric at its end: of sampled answers where there are any.

    None where it was not measured, or some instance diverged, whose absence would flatter the rest.
    """
    found = [e for e in record.evaluations if e.policy == "trained" and metric.name in e.metrics]
    best = max(found, key=lambda e: (e.step, e.mode == "sampled"), default=None)
    if best is None or any(e.get("diverged") for e in best.examples):
        return None
    return best.metrics[metric.name]["mean"]
