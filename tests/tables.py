"""Exact tables: a policy as a matrix of logits, a tree's enumerated data, and a solver in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shiq_bench.api import Algorithm, Pairs
from shiq_bench.batch import Batch, Stats, TokenStats
from shiq_bench.ops import stats_from_logits
from shiq_bench.records import Trajectory
from shiq_bench.training.data import make_pairs
from tasks.tree import Tree


@dataclass(frozen=True)
class Table:
    """A token tree whose policy is a table ``[S, A]`` of logits, one row a prefix.

    ``states`` and ``actions`` are ``[N, T]`` over every completion of every context.
    """

    tree: Tree
    states: Tensor
    actions: Tensor
    size: int

    @classmethod
    def of(cls, tree: Tree) -> Table:
        ids: dict[tuple[int, ...], int] = {}
        states = [
            [ids.setdefault((c, *map(int, y[:t])), len(ids)) for t in range(tree.depth)]
            for c in range(tree.contexts)
            for y in tree.completions
        ]
        actions = np.tile(tree.completions, (tree.contexts, 1))
        return cls(tree, torch.tensor(states), torch.tensor(actions), len(ids))

    def random_logits(self, seed: int, scale: float = 1.0) -> Tensor:
        """A random table with a random offset in every state, which a shift-invariant loss must not see."""
        g = torch.Generator().manual_seed(seed)
        logits = scale * torch.randn(self.size, self.tree.actions, generator=g, dtype=torch.float64)
        return logits + torch.randn(self.size, 1, generator=g, dtype=torch.float64)

    def stats(self, logits: Tensor) -> TokenStats:
        return TokenStats(*stats_from_logits(logits[self.states], self.actions))

    def log_completions(self, logits: Tensor) -> Tensor:
        """ln pi(y | x). ``[contexts, actions ** depth]``"""
        return self.stats(logits).logp.sum(-1).reshape(self.tree.contexts, -1)

    def batch(self, algorithm: Algorithm, log_mu: Tensor) -> Batch:
        """Every completion with probability mu as its weight; expected Bradley-Terry labels on pairs."""
        tree = self.tree
        n = len(self.states)
        rewards = torch.tensor(tree.token_rewards).reshape(n, tree.depth)
        weight = log_mu.exp().reshape(n) / tree.contexts
        group = torch.arange(tree.contexts).repeat_interleave(n // tree.contexts)
        pairs: list[tuple[int, int]] = []
        pair_weight: list[float] = []
        need = algorithm.need(Pairs)
        if isinstance(need, Pairs):
            for c in range(tree.contexts):
                rows = [i for i in range(n) if group[i] == c]
                members = [
                    Trajectory(str(c), (0, 0), (False, True), (0.0, float(rewards[i].sum())), weight=float(weight[i]))
                    for i in rows
                ]
                found = make_pairs(members, need, "bradley_terry")
                pairs += [(rows[i], rows[j]) for i, j in found.pairs]
                pair_weight += found.weights
        return Batch(
            mask=torch.ones(n, tree.depth, dtype=torch.bool),
            rewards=rewards,
            sampler_logp=torch.full((n, tree.depth), math.nan),
            group=group,
            weight=weight,
            truncated=torch.zeros(n, dtype=torch.bool),
            pairs=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
            pair_weight=torch.tensor(pair_weight, dtype=torch.float64),
        )


def solve(algorithm: Algorithm, table: Table, reference: Tensor, log_mu: Tensor, rounds: int = 40) -> Tensor:
    """The logits that minimise the algorithm's expected loss, starting from the reference."""
    batch = table.batch(algorithm, log_mu)
    ref = table.stats(reference)
    logits = reference.clone().requires_grad_()
    count = algorithm.count(batch)

    def loss() -> Tensor:
        return algorithm.loss(Stats(table.stats(logits), ref), batch).total / count

    optimiser = torch.optim.LBFGS(
        [logits],
        max_iter=100,
        history_size=50,
        tolerance_grad=1e-13,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(rounds):
        optimiser.step(closure)
    return logits.detach()


def kl(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p || q) in nats, the worst over contexts."""
    return float((log_p.exp() * (log_p - log_q)).sum(-1).max())
