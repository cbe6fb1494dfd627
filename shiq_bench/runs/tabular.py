"""The main job on tables: data of every seed, one training, and exact evaluation along the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from shiq_bench.api.needs import Labels, Mismatched, Pairs, Rewards, Support
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.groups import centred, in_unit_range, seed_of
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import Evaluation
from shiq_bench.runs.context import Run
from shiq_bench.runs.validation import MISSING, deviations, missing_support
from shiq_bench.stats.clustered import summarise
from shiq_bench.tabular.exact import expected_length, expected_return, kl, missing_mass, objective, soft_optimum
from shiq_bench.tabular.task import TabularTask
from shiq_bench.tabular.training import Tables, tabulate, train_tables
from shiq_bench.tabular.world import World, log_softmax
from shiq_bench.training.stopping import Diverged

#: Evaluations along a training, spaced geometrically.
POINTS = 40
METRICS = ("regret", "reward", "kl_reference", "kl_optimum", "kl_fixed", "length", "diverged")


def table_stages(run: Run) -> None:
    """Data, training and evaluation of all seeds of a run, and its record.

    Raises:
        UserError: the task is no table, or its data do not serve the algorithm.
        Diverged: no seed ended with finite numbers.
    """
    spec, task, algorithm, fresh = run.spec, run.task, run.algorithm, run.resolved.fresh
    if not isinstance(task, TabularTask):
        raise UserError(f"task {spec.task} is no table: give --model tiny, a folder or a hub id")
    run.deviations += deviations(run.resolved)
    with run.timed("offline data"):
        numbers = [spec.seed + k for k in range(spec.seeds)]
        worlds = [task.world(n) for n in numbers]
        found = [in_unit_range(task.data(n, spec.data_seed), algorithm, task.largest_return) for n in numbers]
        if fresh:
            _refuse_fresh(run)
        means = [centred(t) if spec.center_rewards and algorithm.need(Rewards) else {} for t in found]
        shifts = [[m.get(t.prompt_id, 0.0) for t in ts] for m, ts in zip(means, found, strict=True)]
        # What the method sees, its rewards brought into [0, 1] where it asks; judged is the task's own.
        unit = (need := algorithm.need(Rewards)) is not None and need.unit
        seen = [replace(w, rewards=w.rewards / task.largest_return) if unit else w for w in worlds]
        draws = [seed_of(spec.data_seed, task.instance + n) for n in numbers]
        tables = tabulate(seen, found, algorithm, spec.labels, shifts, draws)
    kl_strength = task.kl_strength
    # Hard labels are no Bradley-Terry judge's: preference methods then have another fixed point, or none.
    judged = not (algorithm.need(Pairs) and not algorithm.need(Rewards) and spec.labels == "hard")
    fixed = [algorithm.fixed_point(e) if judged else None for e in tables.exact]
    optima = [soft_optimum(w, kl_strength)[0] for w in worlds]
    run.keep(data=describe_stored(run, tables, found, fresh), deviations=tuple(run.deviations))

    def judge(who: str, step: int, policies: Sequence[np.ndarray]) -> Evaluation:
        examples: list[dict[str, Any]] = [
            {"prompt_id": f"instance {task.instance + n}", **_exact(world, best, own, pi, kl_strength), "details": {}}
            for n, world, best, own, pi in zip(numbers, worlds, optima, fixed, policies, strict=True)
        ]
        names = [m for m in METRICS if any(e.get(m) is not None for e in examples)]
        return Evaluation(who, "instances", "exact", step, summarise(examples, names), examples)

    curve: list[Evaluation] = []
    points = {0, *np.geomspace(1, max(1, spec.steps), POINTS).round().astype(int).tolist()}

    def on_point(step: int, log_pi: Tensor) -> None:
        found = judge("trained", step, list(log_pi.numpy()))
        bare = [{k: v for k, v in e.items() if k != "details"} for e in found.examples]
        curve.append(replace(found, examples=bare))
        if (regret := curve[-1].metrics.get("regret", {}).get("mean")) is not None:
            run.report.numbers({"regret": regret})
        run.report("training", step, spec.steps)

    with run.timed("training"):
        how: Literal["no", "enumerated", "sampled"] = "no"
        if fresh:
            how = "enumerated" if task.enumerated and worlds[0].is_tree else "sampled"
        if how == "enumerated":
            run.deviations.append("fresh data are every completion, weighted by its probability: no sampling error")
        trained = train_tables(algorithm, tables, spec, fresh=how, at=points, on_point=on_point)
    if bool(trained.log_pi.isnan().flatten(1).any(1).all()):
        error = Diverged(spec.steps, "the policy of every seed")
        error.history = trained.history
        raise error
    reference = judge("reference", 0, [e.log_reference for e in tables.exact])
    final = judge("trained", spec.steps, list(trained.log_pi.numpy()))
    run.record = replace(
        run.record,
        evaluations=(reference, final),
        curve=tuple(curve),
        training=trained.history,
        consumed=_consumed(run, tables, found, fresh, how),
        weights_hash="",
    )


def _exact(
    world: World, best: np.ndarray, own: np.ndarray | None, log_pi: np.ndarray, beta: float
) -> dict[str, float | None]:
    """Every number of one policy; nothing but ``diverged`` where the policy is not finite."""
    if np.isnan(log_pi).any():
        return {"diverged": 1.0}
    out: dict[str, float | None] = {
        "regret": objective(world, best, beta) - objective(world, log_pi, beta),
        "reward": expected_return(world, log_pi),
        "kl_reference": kl(world, log_pi, log_softmax(world.reference)),
        "kl_optimum": kl(world, best, log_pi),
        "kl_fixed": None if own is None else kl(world, own, log_pi),
        "length": expected_length(world, log_pi),
        "diverged": 0.0,
    }
    return {name: v if v is not None and np.isfinite(v) else None for name, v in out.items()}


def _refuse_fresh(run: Run) -> None:
    for kind in (Pairs, Labels, Mismatched):
        if run.algorithm.need(kind):
            raise UserError(
                f"collect=fresh on a table does not serve {run.spec.algo}, which needs {kind.__name__}: "
                "leave collect=auto, or use --model tiny"
            )
    if run.spec.center_rewards:
        raise UserError("center_rewards needs stored trajectories on a table: leave it out, or set collect=offline")


def describe_stored(run: Run, tables: Tables, found: Sequence[Sequence[Trajectory]], fresh: bool) -> dict[str, Any]:
    """Counts and divergences of the data, means over seeds; warns of what the method may miss."""
    worlds = [e.world for e in tables.exact]
    with np.errstate(divide="ignore"):
        away = [kl(w, np.log(w.behaviour), log_softmax(w.reference)) for w in worlds]
    missing = float(np.mean([missing_mass(w) for w in worlds]))
    weights, returns = zip(*((t.weight, t.total_reward) for ts in found for t in ts), strict=True)
    out: dict[str, Any] = {
        "seeds": len(found),
        "trajectories": sum(len(t) for t in found),
        "kl_behaviour": float(np.mean(away)),
        "missing_mass": missing,
        "mean_return": {found[0][0].source: float(np.average(returns, weights=weights))},
    }
    if run.algorithm.need(Support) and not fresh and missing > MISSING:
        run.deviations.append(missing_support(run.spec.algo, missing))
    lonely = all(len(ts) == len({t.prompt_id for t in ts}) for ts in found)
    if lonely and not fresh and (run.algorithm.need(Pairs) or run.algorithm.need(Labels)):
        raise UserError(f"one episode a context: {run.spec.algo} compares two; raise draws")
    if run.algorithm.need(Pairs):
        out["pairs"] = int((tables.data["pair_weight"] > 0).sum())
        if not out["pairs"]:
            raise UserError(
                f"{run.spec.algo} needs preference pairs, and no context has two episodes of different return: "
                "raise draws"
            )
    return out


def _consumed(
    run: Run, tables: Tables, found: Sequence[Sequence[Trajectory]], fresh: bool, how: str
) -> dict[str, float]:
    """Per seed: an update passes over all of a seed's data."""
    spec = run.spec
    stored = sum(len(t) for t in found) / len(found)
    if not fresh:
        return {"updates": float(spec.steps), "trajectories": stored, "reward_calls": stored}
    draws = 0 if how == "enumerated" else run.resolved.fresh_samples
    drawn = float(spec.steps * len(tables.exact[0].world.start) * draws)
    return {"updates": float(spec.steps), "samples_drawn": drawn, "reward_calls": drawn}
