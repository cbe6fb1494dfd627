"""The training loop of tables: a policy is a matrix of logits, and all seeds train at once.

Seeds are stacked in the first dimension of everything and the loss is mapped over them with
``torch.func.vmap``. It is the very loss that language models are trained with; here every
statistic is exact and in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import pad
from torch.optim.adam import adam

from shiq_bench.api import needs
from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Dense, LossOutput, Stats, TokenStats
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.collation import Collator, to_batch
from shiq_bench.data.groups import Row, group_rows, with_mismatches
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec
from shiq_bench.tabular.exact import Exact
from shiq_bench.tabular.recording import Function, alike, recorded
from shiq_bench.tabular.world import Paths, World

#: Behaviour models are the data's own frequencies; what the data never do has this probability.
LEAST = 1e-12
#: A policy that starts from the behaviour model starts with at least this on every action: a softmax cannot leave 0.
LEAST_AT_START = 1e-3

#: Tensors of one seed by name, or of all of them, stacked.
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Tables:
    """Worlds of equal shape and their data, one a seed.

    Attributes:
        exact: each seed's world and data.
        world: ``next_state``, ``rewards``, ``start``, ``reference``, ``behaviour``, stacked. ``[K, ...]``
        data: a collated batch with ``states`` and ``actions`` of every token, stacked and padded with
            trajectories and pairs of weight 0. ``[K, ...]``
        seeds: of what is random in each world's training.
    """

    exact: list[Exact]
    world: Tensors
    data: Tensors
    seeds: list[int]


def tabulate(
    worlds: Sequence[World],
    trajectories: Sequence[Sequence[Trajectory]],
    algorithm: Algorithm,
    labels: Literal["hard", "bradley_terry", "sampled"],
    shifts: Sequence[Sequence[float]] | None = None,
    seeds: Sequence[int] | None = None,
) -> Tables:
    """Tables of some worlds and the trajectories drawn in each.

    Args:
        shifts: subtracted from the return of each trajectory (centring).
        seeds: one a world, of preferences that are drawn and of heads that start at random.
    """
    exact, data = [], []
    seeds = list(seeds) if seeds is not None else list(range(len(worlds)))
    for k, (world, found) in enumerate(zip(worlds, trajectories, strict=True)):
        groups = group_rows([Row(t, shifts[k][i] if shifts else 0.0) for i, t in enumerate(found)])
        if algorithm.need(needs.Mismatched):
            strange = with_mismatches(found, len(world.layers) + 2)[1]
            mates = iter(strange)
            groups = [[replace(row, mismatch=next(mates)) for row in group] for group in groups]
        inputs = Collator(algorithm, "padded", labels, seeds[k], dtype=torch.float64)(groups)
        members = [r.trajectory for g in groups for r in g]
        paths = _walk(world, members)
        exact.append(Exact(world, paths, np.array([t.weight for t in members])))
        for name in ("input_ids", "position_ids", "attention_mask", "index", "targets", "spread"):
            del inputs[name]
        inputs["states"], inputs["actions"] = torch.as_tensor(paths.states), torch.as_tensor(paths.actions)
        _merge_pairs(inputs)
        if algorithm.need(needs.Mismatched):
            walked = _walk(world, strange)
            for name, values in (("states", walked.states), ("actions", walked.actions), ("mask", walked.mask)):
                inputs[f"mis_{name}"] = torch.as_tensor(values)
        data.append(inputs)
    names = ("next_state", "rewards", "start", "reference", "behaviour")
    stacked = {name: torch.stack([torch.as_tensor(getattr(w, name)) for w in worlds]) for name in names}
    return Tables(exact, stacked, {name: _stack([d[name] for d in data]) for name in data[0]}, seeds)


def _merge_pairs(inputs: Tensors) -> None:
    """Pairs of equal episodes as one pair with the sum of their weights: the same loss, far fewer terms."""
    episode = torch.cat([inputs["group"][:, None], torch.where(inputs["mask"], inputs["actions"], -1)], dim=1)
    kinds, kind = torch.unique(episode, dim=0, return_inverse=True)
    first = torch.full((len(kinds),), len(kind)).scatter_reduce(0, kind, torch.arange(len(kind)), "amin")
    pairs, of = torch.unique(first[kind][inputs["pairs"]], dim=0, return_inverse=True)
    weight = torch.zeros(len(pairs), dtype=inputs["pair_weight"].dtype).index_add(0, of, inputs["pair_weight"])
    inputs["pairs"], inputs["pair_weight"] = pairs, weight


def _walk(world: World, found: Sequence[Trajectory]) -> Paths:
    return world.paths([int(t.prompt_id) for t in found], [list(compress(t.token_ids, t.action_mask)) for t in found])


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors of different shapes, zeros behind the smaller ones."""
    shape = [max(p.shape[d] for p in parts) for d in range(parts[0].ndim)]
    padding = [[n for d in reversed(range(p.ndim)) for n in (0, shape[d] - p.shape[d])] for p in parts]
    return torch.stack([pad(p, by) for p, by in zip(parts, padding, strict=True)])


# --- statistics of one seed, as the loss sees them ---


def _at(table: Tensor, states: Tensor, actions: Tensor | None = None) -> Tensor:
    """Entries of ``[S]`` or ``[S, A]`` at each token. ``[N, T]``"""
    where = states if actions is None else states * table.shape[-1] + actions
    return table.flatten().gather(0, where.flatten()).reshape(states.shape)


def _tokens(logits: Tensor, states: Tensor, actions: Tensor, mask: Tensor) -> TokenStats:
    lse = logits.logsumexp(-1)
    logp = logits - lse[:, None]
    return TokenStats(_at(logp, states, actions) * mask, _at(lse, states) * mask)


def table_stats(algorithm: Algorithm, trained: Tensors, fixed: Tensors, target: Tensors | None, data: Tensors) -> Stats:
    """Everything the algorithm declared, for one seed.

    Args:
        trained: ``logits [S, A]``, and where declared ``value [S]`` and ``q [n, S, A]``.
        fixed: ``reference`` and ``behaviour`` logits. ``[S, A]``
        target: Polyak averages of ``trained``.
        data: a batch of :class:`Tables`.
    """
    states, actions, mask = data["states"], data["actions"], data["mask"]

    def of(found: Tensors) -> dict[str, Any]:
        return {
            "policy": _tokens(found["logits"], states, actions, mask),
            "value": _at(found["value"], states) * mask if "value" in found else None,
            "q": tuple(_tokens(head, states, actions, mask) for head in found.get("q", ())),
        }

    out: dict[str, Any] = {"actions": trained["logits"].shape[-1], **of(trained)}
    if algorithm.need(needs.Reference):
        out["reference"] = _tokens(fixed["reference"], states, actions, mask)
    if algorithm.need(needs.BehaviourModel):
        out["behaviour"] = _tokens(fixed["behaviour"], states, actions, mask)
    if algorithm.need(needs.SumLogits):
        out["sum_logits"] = _at(trained["logits"].sum(-1), states) * mask
    if target is not None:
        out["target"] = Stats(**of(target))
        if ratio := algorithm.need(needs.MaxRatio):
            behaviour = fixed["behaviour"].log_softmax(-1)
            gain = (target["logits"].log_softmax(-1) - behaviour).exp()
            # What the data never do has no behaviour to be compared with, however low the floor.
            likely = behaviour >= math.log(max(ratio.floor, 10 * LEAST))
            out["max_ratio"] = _at(torch.where(likely, gain, torch.zeros_like(gain)).amax(-1), states) * mask
    if algorithm.need(needs.Mismatched):
        strange = (data["mis_states"], data["mis_actions"], data["mis_mask"])
        out["mismatched"] = Stats(_tokens(trained["logits"].detach(), *strange), _tokens(fixed["reference"], *strange))
    return Stats(**out)


def acting(algorithm: Algorithm, trained: Tensors, fixed: Tensors) -> Tensor:
    """Log-probabilities of the policy as it acts. ``[K, S, A]``"""
    heads = tuple(trained["q"].unbind(-3)) if "q" in trained else ()
    return algorithm.act(Dense(trained["logits"], heads, fixed.get("behaviour"))).log_softmax(-1)


# --- fresh data ---


def enumerated_fresh(tables: Tables, logits: Tensor) -> Tensors:
    """The enumerated completions weighted by the current policy: exact expectations. ``logits [K, S, A]``"""
    data = tables.data
    logp = vmap(lambda *args: _tokens(*args).logp)(logits, data["states"], data["actions"], data["mask"])
    # Padding between seeds has no action at all, and no weight.
    return {**data, "weight": logp.sum(-1).exp() * data["mask"].any(-1), "sampler_logp": logp}


def sampled_fresh(tables: Tables, logits: Tensor, draws: int, generator: torch.Generator) -> Tensors:
    """``draws`` episodes of the current policy from every context of every seed. ``logits [K, S, A]``"""
    world = tables.world
    seeds, size, actions = logits.shape
    contexts = world["start"].shape[1]
    group = torch.arange(contexts).repeat_interleave(draws).expand(seeds, -1)
    probabilities = logits.softmax(-1)
    state = world["start"].gather(1, group)
    columns: list[tuple[Tensor, ...]] = []
    for _ in tables.exact[0].world.layers:
        live = state < size
        row = torch.where(live, state, 0)
        chances = probabilities.gather(1, row[..., None].expand(-1, -1, actions))
        action = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).reshape(row.shape)
        flat = row * actions + action
        logp = chances.log().gather(2, action[..., None])[..., 0]
        reward = world["rewards"].flatten(1).gather(1, flat)
        columns.append((row * live, action * live, live, reward * live, torch.where(live, logp, 0.0)))
        state = torch.where(live, world["next_state"].flatten(1).gather(1, flat), size)
    states, taken, mask, rewards, logps = (torch.stack(c, -1) for c in zip(*columns, strict=True))
    n = contexts * draws
    return {
        "states": states, "actions": taken, "mask": mask, "rewards": rewards, "sampler_logp": logps,
        "group": group, "weight": torch.full((seeds, n), 1 / draws, dtype=torch.float64),
        "pairs": torch.zeros(seeds, 0, 2, dtype=torch.long), "pair_weight": torch.zeros(seeds, 0, dtype=torch.float64),
    }  # fmt: skip


# --- the loop ---


@dataclass(frozen=True)
class Trained:
    """What training left: the policy as it acts ``[K, S, A]`` (log-probabilities), its tables, and the losses.

    ``history`` has one entry an update: loss and metrics, mean over seeds that are finite.
    """

    log_pi: Tensor
    tables: Tensors
    history: list[dict[str, float]]


def initial(algorithm: Algorithm, tables: Tables) -> tuple[Tensors, Tensors]:
    """What is trained, and what is fixed, before the first update. ``[K, ...]``"""
    fixed = {"reference": tables.world["reference"].clone()}
    trained = {"logits": tables.world["reference"].clone()}
    if need := algorithm.need(needs.BehaviourModel):
        behaviour = torch.stack([torch.as_tensor(e.behaviour()) for e in tables.exact])
        fixed["behaviour"] = behaviour.clamp(min=math.log(LEAST))
        if need.start:
            trained["logits"] = behaviour.clamp(min=math.log(LEAST_AT_START))
    k, s, a = trained["logits"].shape
    if algorithm.need(needs.ValueHead):
        trained["value"] = torch.zeros(k, s, dtype=torch.float64)
    if heads := algorithm.need(needs.QHeads):
        noises = (torch.Generator().manual_seed(seed) for seed in tables.seeds)
        trained["q"] = torch.stack(
            [0.01 * torch.randn(heads.count, s, a, generator=g, dtype=torch.float64) for g in noises]
        )
    return {name: t.requires_grad_() for name, t in trained.items()}, fixed


def train_tables(
    algorithm: Algorithm,
    tables: Tables,
    spec: RunSpec,
    *,
    fresh: Literal["no", "enumerated", "sampled"] = "no",
    at: Container[int] = (),
    on_point: Callable[[int, Tensor], None] = lambda step, log_pi: None,
) -> Trained:
    """Adam on the whole data of every seed at once.

    Args:
        fresh: whether the data are the tables' own, or drawn from the current policy at every
            update (every completion weighted by its probability, or sampled).
        at: updates after which ``on_point`` is called, 0 being before the first, with the update's
            number and the policy as it acts. ``[K, S, A]``
    """
    trained, fixed = initial(algorithm, tables)
    need_target, need_reference = algorithm.need(needs.TargetNetwork), algorithm.need(needs.Reference)
    need_fresh = algorithm.need(needs.OnPolicy)
    target = {n: t.detach().clone() for n, t in trained.items()} if need_target else None
    optimiser = _AdamW(trained, spec)
    generator = torch.Generator().manual_seed(spec.seed)
    draws = need_fresh.samples if need_fresh else spec.samples

    def loss(trained: Tensors, fixed: Tensors, target: Tensors | None, data: Tensors) -> tuple[Tensor, Tensors]:
        batch = to_batch(data)
        out: LossOutput = algorithm.loss(table_stats(algorithm, trained, fixed, target, data), batch)
        count = algorithm.count(batch)
        return out.total / torch.where(count > 0, count, torch.ones_like(count)), dict(out.metrics)

    every_seed = vmap(loss, in_dims=(0, 0, None if target is None else 0, 0))

    def differentiated(inputs: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Losses and metrics of every seed ``[K]``, and under ``grad NAME`` the gradients of what is trained."""
        parts: dict[str, Tensors] = {"trained": {}, "fixed": {}, "target": {}, "data": {}}
        for key, tensor in inputs.items():
            part, name = key.split(" ", 1)
            parts[part][name] = tensor
        tables = parts["trained"]
        losses, metrics = every_seed(tables, parts["fixed"], parts["target"] or None, parts["data"])
        grads = torch.autograd.grad(losses.sum(), list(tables.values()), allow_unused=True)
        named = {f"grad {n}": None if g is None else g.contiguous() for n, g in zip(tables, grads, strict=True)}
        return {"loss": losses.detach(), **{f"metric {n}": m for n, m in metrics.items()}, **named}

    changing = {"trained", "target"} | ({"data"} if fresh != "no" else set())
    changing |= {"fixed"} if need_reference is not None and need_reference.refresh else set()
    play: Function | None = None
    seen: list[Mapping[str, Tensor | None]] = []
    data = tables.data
    if 0 in at:
        on_point(0, acting(algorithm, trained, fixed).detach())
    for step in range(1, spec.steps + 1):
        with torch.no_grad():
            if fresh == "enumerated":
                data = enumerated_fresh(tables, trained["logits"])
            elif fresh == "sampled":
                data = sampled_fresh(tables, trained["logits"], draws, generator)
        parts = {"trained": trained, "fixed": fixed, "target": target or {}, "data": data}
        inputs = {f"{part} {name}": t for part, tensors in parts.items() for name, t in tensors.items()}
        play = play or recorded(differentiated, inputs, [key for key in inputs if key.split(" ")[0] in changing])
        found = play(inputs)
        if step == spec.steps and not alike(found, differentiated(inputs)):
            raise UserError(
                f"the loss of {spec.algo} is no function of its arguments alone: at update {step} it did other "
                "operations than at the first; keep no state in an algorithm"
            )
        seen.append({n: t for n, t in found.items() if not n.startswith("grad ")})
        with torch.no_grad():
            optimiser.step({n: g for n in trained if (g := found.get(f"grad {n}")) is not None})
            if target is not None and need_target is not None:
                for name, table in target.items():
                    table.lerp_(trained[name], need_target.tau)
            if need_reference is not None and need_reference.refresh and step % need_reference.refresh == 0:
                fixed["reference"] = trained["logits"].clone()
            if step in at:
                on_point(step, acting(algorithm, trained, fixed))
    with torch.no_grad():
        log_pi = acting(algorithm, trained, fixed)
    return Trained(log_pi, {n: t.detach() for n, t in trained.items()}, _history(seen))


def _history(seen: Sequence[Mapping[str, Tensor | None]]) -> list[dict[str, float]]:
    """Means over the seeds that are finite, of every update's losses and metrics. ``[K]`` each"""
    history = [{"step": float(step)} for step in range(1, len(seen) + 1)]
    for name in seen[0] if seen else ():
        rows = torch.stack([found[name] for found in seen])  # type: ignore[misc]
        finite = rows.isfinite()
        some, every = finite.any(1).tolist(), finite.all(1).tolist()
        # A mean over one row at a time: over all of them at once it could add in another order.
        for n, row in enumerate(rows.unbind()):
            if some[n]:
                history[n][name.removeprefix("metric ")] = float((row if every[n] else row[finite[n]]).mean())
    return history


class _AdamW:
    """:class:`torch.optim.AdamW` on the schedule of the settings.

    Its functional form, for the class imports the compiler, which takes longer than a training.
    """

    def __init__(self, trained: Tensors, spec: RunSpec) -> None:
        self._trained, self._spec, self._done = trained, spec, 0
        self._state = {n: (torch.zeros_like(t), torch.zeros_like(t), torch.tensor(0.0)) for n, t in trained.items()}

    def step(self, grads: Tensors) -> None:
        """An update by the gradients of some tables, or of all. ``[K, ...]`` each"""
        spec = self._spec
        if spec.max_grad_norm:
            grads = _clipped(grads, spec.max_grad_norm)
        states = [self._state[n] for n in grads]
        adam(
            [self._trained[n] for n in grads], list(grads.values()),
            [s[0] for s in states], [s[1] for s in states], [], [s[2] for s in states],
            foreach=False, amsgrad=False, maximize=False, decoupled_weight_decay=True, beta1=0.9, beta2=0.999,
            lr=spec.learning_rate * _factor(self._done, spec), weight_decay=spec.weight_decay,
            # Data may hardly ever pass a state: with the usual eps its gradient would be lost.
            eps=1e-20,
        )  # fmt: skip
        self._done += 1


def _factor(step: int, spec: RunSpec) -> float:
    """The learning rate's share at an update, as in transformers' schedules."""
    warm = round(spec.warmup * spec.steps)
    if step < warm:
        return step / warm
    if spec.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1, spec.steps - warm)
    return 1 - done if spec.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def _clipped(grads: Tensors, longest: float) -> Tensors:
    """Every seed's own gradient, all its tables together, to at most ``longest``."""
    norm = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt()
    scale = (longest / norm.clamp(min=1e-12)).clamp(max=1.0)
    return {n: g * scale.reshape(-1, *[1] * (g.ndim - 1)) for n, g in grads.items()}
