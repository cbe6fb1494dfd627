"""What a sweep is made of: jobs out of flags, and the plan that workers read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from shiq_bench.api.registry import algorithms, tasks
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.event_log import FOLDER
from shiq_bench.records.files import write_atomic
from shiq_bench.records.hashing import canonical_json, stable_hash
from shiq_bench.records.provenance import same_code
from shiq_bench.records.record import SCHEMA_VERSION, RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.resolved import Resolved
from shiq_bench.runs.settings import merged, resolve, settings
from shiq_bench.runs.validation import check_demands

#: More seeds than this are a slip of the hand.
MOST_SEEDS = 10_000

#: Settings of a run that are no part of what it is.
_SAME_RUN = {f.name for f in fields(RunSpec) if not f.metadata.get("outcome", True)}


@dataclass(frozen=True)
class Job:
    """One cell of a sweep.

    Attributes:
        name: in words, for people.
        values: the settings, as :func:`~shiq_bench.runs.settings.resolve` takes them.
        run_id: of the run; "" where there can be none.
        problem: why method and task do not fit.
    """

    name: str
    algo: str
    task: str
    values: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = ""
    problem: str = ""

    def resolved(self) -> Resolved:
        """Everything that the job names.

        Raises:
            UserError: as :func:`~shiq_bench.runs.settings.resolve`, or this code makes another run of these settings.
        """
        made = resolve(self.algo, self.task, self.values)
        if made.spec.run_id != self.run_id:
            raise UserError(f"{self.name} was planned as {self.run_id} and is {made.spec.run_id} here: plan it again")
        return made

    def same_code(self, record: RunRecord) -> bool:
        """Whether a record was made by the code that the job would run."""
        return same_code(record, algorithms.get(self.algo), tasks.get(self.task))


def whole_numbers(text: str) -> list[int]:
    """``0-3,7`` to ``[0, 1, 2, 3, 7]``.

    Raises:
        UserError: no such numbers, or one twice.
    """
    out: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        number = str.isdecimal
        if not number(first) or (dash and not number(last)) or (dash and int(last) < int(first)):
            raise UserError(f"--seeds {text}: expected whole numbers, the lower first, such as 0-5 or 0,1,2")
        if int(last or first) - int(first) >= MOST_SEEDS:
            raise UserError(f"--seeds {text}: expected {MOST_SEEDS} seeds at most")
        out += range(int(first), int(last or first) + 1)
    if len(set(out)) < len(out):
        raise UserError(f"--seeds {text}: a seed is given twice")
    return out


def parse_grid(pairs: Sequence[str], flag: str = "--grid") -> dict[str, list[str]]:
    """``["beta=0.1,0.3"]`` to ``{"beta": ["0.1", "0.3"]}``.

    Raises:
        UserError: no ``=``, no value, a value or a key twice, or what makes no other run.
    """
    out: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        values = [v.strip() for v in text.split(",")]
        if not equals or not key.strip() or not all(values):
            raise UserError(f"{flag} {pair}: expected a setting and its values, such as {flag} beta=0.1,0.3")
        if key.strip() in out or len(set(values)) < len(values):
            raise UserError(f"{flag} {pair}: a setting or a value is given twice")
        if (name := key.strip().removeprefix("run.")) in ("seed", "seeds"):
            raise UserError(f"{flag} {pair}: seeds are given by --seeds, such as --seeds 0-5")
        if name in _SAME_RUN:
            raise UserError(f"{flag} {pair}: {name} changes nothing about a run: set it by --set {name}=VALUE")
        out[key.strip()] = values
    return out


def names(flag: str, text: str) -> list[str]:
    """``a,b`` to ``["a", "b"]``.

    Raises:
        UserError: none, or one twice.
    """
    out = [name.strip() for name in text.split(",") if name.strip()]
    if not out:
        raise UserError(
            f"{flag} is missing: type, say, shiq-bench sweep --algo shiq,dpo --task bandit --seeds 0-9, or the name of "
            "a study"
        )
    if len(set(out)) < len(out):
        raise UserError(f"{flag} {text}: a name is given twice")
    return out


def of_flags(
    algos: Sequence[str],
    task_names: Sequence[str],
    seeds: Sequence[int],
    values: Mapping[str, Any],
    varied: Mapping[str, Sequence[Any]],
) -> Iterator[Job]:
    """Every method on every task at every value with every seed; a table trains adjoining seeds in one run.

    Raises:
        UserError: an unknown algorithm or task, or a setting that none has; what else does not fit is a job with a
            ``problem``.
    """
    check_known(varied, algos, task_names)
    left_out: set[tuple[str, str]] = set()
    for algo, task, combination in product(algos, task_names, product(*varied.values())):
        chosen = dict(zip(varied, combination, strict=True))
        if lacks := [key for key in chosen if not knows(algo, task, key)]:
            if (algo, task) not in left_out:
                left_out.add((algo, task))
                yield Job(f"{algo} on {task}", algo, task, problem=f"it has no setting {' and no '.join(lacks)}")
            continue
        place = " ".join([f"{algo} on {task}", *(f"{k}={v}" for k, v in chosen.items())])
        given = merged(values, chosen)
        try:
            table = resolve(algo, task, given).spec.model == "table"
        except UserError as error:
            yield Job(place, algo, task, given, problem=str(error))
            continue
        for each in _runs(seeds) if table else ({"seed": s} for s in seeds):
            yield _job(f"{place} {' '.join(f'{k}={v}' for k, v in each.items())}", algo, task, merged(given, each))


def knows(algo: str, task: str, key: str) -> bool:
    """Whether a setting is one of the run's, the algorithm's or the task's."""
    owners = (RunSpec, algorithms.get(algo), tasks.get(task))
    return key.rpartition(".")[2] in {name for owner in owners for name in settings(owner)}


def check_known(keys: Iterable[str], algos: Sequence[str], task_names: Sequence[str]) -> None:
    """Refuse a setting that no method and no task has, and names that are none.

    Raises:
        UserError: the nearest is suggested.
    """
    owners: list[type] = [RunSpec, *(algorithms.get(a) for a in algos), *(tasks.get(t) for t in task_names)]
    known = sorted({name for owner in owners for name in settings(owner)})
    for key in keys:
        if key.rpartition(".")[2] not in known:
            raise UserError(f"no method and no task has the setting {key}{suggest(key, known)}")


def _runs(seeds: Sequence[int]) -> Iterator[dict[str, int]]:
    """Stretches of adjoining seeds."""
    left = sorted(seeds)
    while left:
        count = next((i for i, s in enumerate(left) if s != left[0] + i), len(left))
        yield {"seed": left[0], "seeds": count}
        left = left[count:]


def _job(name: str, algo: str, task: str, values: Mapping[str, Any]) -> Job:
    try:
        return job_of(name, resolve(algo, task, values))
    except UserError as error:
        return Job(name, algo, task, values, problem=str(error))


def job_of(name: str, made: Resolved, problem: str = "") -> Job:
    """The job of a run, with a ``problem`` also where its settings cannot serve its method or its task."""
    if not problem:
        try:
            check_demands(made)
        except UserError as error:
            problem = str(error)
    return Job(name, made.spec.algo, made.spec.task, made.values, "" if problem else made.spec.run_id, problem)


def fitting(jobs: Iterable[Job]) -> tuple[list[Job], list[Job]]:
    """The jobs that can be run, each run once, and those that cannot.

    Raises:
        UserError: none can.
    """
    good: dict[str, Job] = {}
    bad = []
    for job in jobs:
        if job.problem:
            bad.append(job)
        else:
            good.setdefault(job.run_id, job)
    if not good:
        raise UserError(f"nothing to run: {bad[0].name}: {bad[0].problem}" if bad else "nothing to run")
    return list(good.values()), bad


# --- the plan ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """How a sweep deals with what is already there.

    Attributes:
        retry: try again what failed or diverged.
        fresh: run again what other code has made.
        allow_mixed: leave what other code has made as it is.
        plugins: files that every worker loads.
    """

    retry: bool = False
    fresh: bool = False
    allow_mixed: bool = False
    plugins: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What workers read.

    Attributes:
        folder: the working folder, which relative paths are meant from.
        since: how long the log was when this sweep was started; what failed before may be tried again.
    """

    results: str
    folder: str
    since: int
    options: Options
    jobs: tuple[Job, ...]


def write_plan(results: Path, jobs: Sequence[Job], options: Options, since: int) -> Path:
    """Store a plan under its hash, and give its file: two sweeps of the same jobs have a plan each.

    Raises:
        UserError: the folder cannot be written.
    """
    header = {
        "schema_version": SCHEMA_VERSION, "kind": "plan", "count": len(jobs), "since": since, "retry": options.retry,
        "fresh": options.fresh, "allow_mixed": options.allow_mixed,
        "plugins": [str(p.resolve()) for p in options.plugins], "results": str(results), "folder": str(Path.cwd()),
    }  # fmt: skip
    lines = [canonical_json(header), *(canonical_json(asdict(job)) for job in jobs)]
    path = results / FOLDER / f"plan-{stable_hash([lines, time.time(), os.getpid()])[:12]}.jsonl"
    write_atomic(path, ("\n".join(lines) + "\n").encode())
    return path


def read_plan(path: Path) -> Plan:
    """Inverse of :func:`write_plan`.

    Raises:
        UserError: it is missing, cut, or of a newer schema.
    """
    try:
        header, *lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(header)
        if head["schema_version"] > SCHEMA_VERSION:
            raise UserError(f"{path}: schema {head['schema_version']} is newer than {SCHEMA_VERSION}")
        jobs = tuple(Job(**json.loads(line)) for line in lines)
        if head["kind"] != "plan" or len(jobs) != head["count"]:
            raise UserError(f"{path} is cut: {len(jobs)} of {head['count']} jobs")
        mixed = head.get("allow_mixed", False)
        options = Options(head["retry"], head["fresh"], mixed, plugins=tuple(map(Path, head["plugins"])))
        return Plan(head["results"], head["folder"], head["since"], options, jobs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no plan of a sweep: {error}") from error
