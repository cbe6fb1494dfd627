"""Finite worlds with known dynamics: the tables that tabular tasks are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shiq_bench.records.errors import UserError

#: Most completions that are ever enumerated.
ENUMERABLE = 4096


@dataclass(frozen=True)
class Paths:
    """Episodes as tables, right-padded: the states they passed and what was done and paid there. ``[N, T]``"""

    context: np.ndarray  # [N] which start
    states: np.ndarray
    actions: np.ndarray
    mask: np.ndarray
    rewards: np.ndarray

    @property
    def returns(self) -> np.ndarray:
        """Sum of rewards. ``[N]``"""
        return self.rewards.sum(-1)


@dataclass(frozen=True)
class World:
    """A deterministic MDP whose states are numbered in the order they can be passed.

    Attributes:
        next_state: where an action leads, ``S`` being the end. ``[S, A]``
        rewards: what an action pays. ``[S, A]``
        start: first state of each context; contexts are equally likely. ``[C]``
        reference: raw logits of the reference, with an offset of its own in every state. ``[S, A]``
        behaviour: probabilities of the policy that produces data. ``[S, A]``

    Raises:
        ValueError: a transition leads back, or a row of ``behaviour`` is no distribution.
    """

    next_state: np.ndarray
    rewards: np.ndarray
    start: np.ndarray
    reference: np.ndarray
    behaviour: np.ndarray

    def __post_init__(self) -> None:
        if not (self.next_state > np.arange(self.size)[:, None]).all():
            raise ValueError("states must be numbered so that every action leads to a higher one, or to the end")
        if not np.allclose(self.behaviour.sum(-1), 1):
            raise ValueError("every row of behaviour must sum to 1")

    @property
    def size(self) -> int:
        """Number of states."""
        return len(self.next_state)

    @property
    def actions(self) -> int:
        """Number of actions."""
        return self.next_state.shape[1]

    @cached_property
    def layers(self) -> list[np.ndarray]:
        """States by their distance from the start: transitions only lead from one layer to later ones."""
        depth = np.zeros(self.size + 1, dtype=int)
        for s in range(self.size):
            np.maximum.at(depth, self.next_state[s], depth[s] + 1)
        return [np.flatnonzero(depth[:-1] == d) for d in range(depth[:-1].max() + 1)]

    @cached_property
    def is_tree(self) -> bool:
        """Whether a state tells the whole path to it, so that any distribution over completions is a policy."""
        entered = np.concatenate([self.next_state[self.next_state < self.size], self.start])
        return len(np.unique(entered)) == len(entered)

    @cached_property
    def count(self) -> float:
        """Number of completions of all contexts."""
        count = np.ones(self.size + 1)
        for s in reversed(range(self.size)):
            count[s] = count[self.next_state[s]].sum()
        return float(count[self.start].sum())

    def walk(self, context: int, actions: Sequence[int]) -> tuple[list[int], list[float]]:
        """States passed and rewards paid; stops early at the end of the episode."""
        states, rewards, state = [], [], int(self.start[context])
        for action in actions:
            if state == self.size:
                break
            states.append(state)
            rewards.append(float(self.rewards[state, action]))
            state = int(self.next_state[state, action])
        return states, rewards

    def paths(self, context: Sequence[int], actions: Sequence[Sequence[int]]) -> Paths:
        """Walk many action sequences, each from its context's start."""
        walked = [self.walk(c, a) for c, a in zip(context, actions, strict=True)]
        width = max((len(s) for s, _ in walked), default=1)

        def table(rows: Sequence[Sequence[float]], dtype: Any) -> np.ndarray:
            out = np.zeros((len(rows), width), dtype=dtype)
            for i, row in enumerate(rows):
                out[i, : len(row)] = row
            return out

        return Paths(
            np.array(context, dtype=int),
            table([s for s, _ in walked], int),
            table([a[: len(s)] for a, (s, _) in zip(actions, walked, strict=True)], int),
            table([[1] * len(s) for s, _ in walked], bool),
            table([r for _, r in walked], float),
        )

    def completions(self) -> Paths:
        """Every completion of every context, context by context.

        Raises:
            UserError: there are more than :data:`ENUMERABLE`.
        """
        if self.count > ENUMERABLE:
            raise UserError(
                f"this world has {self.count:.3g} completions, too many to enumerate (at most {ENUMERABLE}): "
                "set enumerated=false, or make it smaller"
            )
        found: list[tuple[int, list[int]]] = []
        for c, first in enumerate(self.start):
            stack: list[tuple[int, list[int]]] = [(int(first), [])]
            while stack:
                state, done = stack.pop()
                if state == self.size:
                    found.append((c, done))
                    continue
                stack += [(int(self.next_state[state, a]), [*done, a]) for a in reversed(range(self.actions))]
        return self.paths([c for c, _ in found], [a for _, a in found])

    def draw(self, policy: np.ndarray, n: int, rng: np.random.Generator) -> Paths:
        """``n`` episodes of a policy from every context. ``policy`` holds probabilities. ``[S, A]``"""
        cumulative = policy.cumsum(-1)
        context = np.repeat(np.arange(len(self.start)), n)
        state = self.start[context]
        columns = []
        while (live := state < self.size).any():
            row = np.where(live, state, 0)
            u = rng.random(len(state)) * cumulative[row, -1]
            action = (cumulative[row] <= u[:, None]).sum(-1)
            columns.append((row * live, action * live, live, np.where(live, self.rewards[row, action], 0.0)))
            state = np.where(live, self.next_state[row, action], state)
        return Paths(context, *(np.stack(c, 1) for c in zip(*columns, strict=True)))

    def covering(self, rng: np.random.Generator) -> Paths:
        """One episode through every reachable transition that ``behaviour`` allows, completed by ``behaviour``."""
        way: dict[int, tuple[int, list[int]]] = {int(s): (c, []) for c, s in reversed(list(enumerate(self.start)))}
        found: list[tuple[int, list[int]]] = []
        for s in range(self.size):
            if s not in way:
                continue
            context, before = way[s]
            for a in np.flatnonzero(self.behaviour[s] > 0):
                state, taken = int(self.next_state[s, a]), [*before, int(a)]
                if state < self.size:
                    way.setdefault(state, (context, taken))
                while state < self.size:
                    action = int(rng.choice(self.actions, p=self.behaviour[state]))
                    taken = [*taken, action]
                    state = int(self.next_state[state, action])
                found.append((context, taken))
        return self.paths([c for c, _ in found], [a for _, a in found])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in the input's precision."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
