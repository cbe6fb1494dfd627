"""A token tree played as a language: the smallest task with an exact optimum on a real language model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from shiq_bench.api import Codec, Episode, Metric, Task, TinyModel, task
from shiq_bench.records import Completion, Score, Trajectory, Transcript, UserError


@task("tree")
@dataclass(frozen=True)
class Tree(Task):
    """A token tree with random rewards: every completion can be enumerated, so pi* is known exactly.

    A prompt is two tokens; a completion is ``depth`` tokens out of ``actions``, each a word of the
    vocabulary, so nothing a policy can emit lies outside the tree. Rewards are standard normal,
    at every token or summed at the last one. All ``contexts`` prompts serve all splits: the task
    proves implementations and says nothing about generalisation.
    """

    actions: int = 4
    depth: int = 3
    contexts: int = 2
    reward: Literal["token", "final"] = "token"
    tree_seed: int = 0

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("reward", "higher", "mean reward", headline=True),
        Metric("length", "neither", "mean length"),
    )
    defaults: ClassVar[Mapping[str, Any]] = {
        "samples": 0, "groups_per_step": 2, "steps": 600, "learning_rate": 3e-3, "precision": "fp32", "warmup": 0.05,
        "max_tokens": 8, "max_length": 16, "eval_samples": 200,
    }  # fmt: skip

    def __post_init__(self) -> None:
        if self.actions < 2 or self.depth < 1 or not 1 <= self.contexts <= self.actions:
            raise UserError(
                f"tree with actions={self.actions}, depth={self.depth}, contexts={self.contexts}: "
                "expected at least 2 actions, depth 1, and 1 to `actions` contexts"
            )

    @cached_property
    def completions(self) -> np.ndarray:
        """Every completion in lexicographic order. ``[actions ** depth, depth]``"""
        return np.array(list(itertools.product(range(self.actions), repeat=self.depth)))

    @cached_property
    def token_rewards(self) -> np.ndarray:
        """Reward of each token of each completion, a function of its prefix. ``[contexts, actions ** depth, depth]``"""
        rng = np.random.default_rng(self.tree_seed)
        table = np.zeros((self.contexts, len(self.completions), self.depth))
        for t in range(self.depth):
            nodes = rng.standard_normal((self.contexts, self.actions ** (t + 1)))
            prefix = np.arange(len(self.completions)) // self.actions ** (self.depth - t - 1)
            table[:, :, t] = nodes[:, prefix]
        if self.reward == "final":
            table[:, :, -1] = table.sum(-1)
            table[:, :, :-1] = 0
        return table

    def oracle(self, log_reference: np.ndarray, beta: float) -> np.ndarray:
        """pi* on completions, proportional to rho exp(R / beta). ``[contexts, actions ** depth]``

        Args:
            log_reference: ln rho(y | x). ``[contexts, actions ** depth]``, nats
            beta: KL strength, positive.
        """
        scores = log_reference + self.token_rewards.sum(-1) / beta
        scores -= scores.max(axis=1, keepdims=True)
        weights = np.exp(scores)
        out: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
        return out

    def prompts(self, split: str) -> list[str]:
        """One id a context, whatever the split."""
        return [str(c) for c in range(self.contexts)]

    def _prompt(self, context: int) -> tuple[int, int]:
        """Two different tokens: after one alone, a model with relative positions cannot tell x from x x or x x x."""
        return context, (context + 1) % self.actions

    def _index(self, tokens: Sequence[int]) -> int:
        return int(sum(a * self.actions ** (self.depth - t - 1) for t, a in enumerate(tokens)))

    def trajectories(self, split: str) -> list[Trajectory]:
        """Every completion of every context, with equal weight: full support, far from any reference."""
        if split != "rl":
            return []
        return [
            Trajectory(
                prompt_id=str(c),
                token_ids=(*self._prompt(c), *map(int, y)),
                action_mask=(False, False) + (True,) * self.depth,
                rewards=(0.0, 0.0, *map(float, self.token_rewards[c, i])),
                source="enumerated",
                weight=1 / len(self.completions),
            )
            for c in range(self.contexts)
            for i, y in enumerate(self.completions)
        ]

    def episodes(self, prompt_ids: Sequence[str], codec: Codec, max_length: int) -> list[Episode]:
        """Dialogues of one answer, ``depth`` tokens long."""
        return [Episode(p, Transcript(self._prompt(int(p))), room=self.depth) for p in prompt_ids]

    def step(self, episodes: Sequence[Episode], completions: Sequence[Completion]) -> None:
        """One answer ends the episode."""
        for episode, completion in zip(episodes, completions, strict=True):
            episode.transcript.act(completion)
            episode.done = True

    def finish(self, episodes: Sequence[Episode], source: str) -> list[tuple[Trajectory, Score]]:
        """Rewards are looked up; a token outside the tree cannot happen, its vocabulary being the tree's."""
        out = []
        for episode in episodes:
            tokens = episode.transcript.token_ids[2:]
            if len(tokens) != self.depth:
                raise UserError(
                    f"tree: an answer has {len(tokens)} tokens of {self.depth}: raise max_tokens and max_length"
                )
            rewards = self.token_rewards[int(episode.prompt_id), self._index(tokens)]
            trajectory = episode.transcript.trajectory(
                episode.prompt_id, {t + 2: float(r) for t, r in enumerate(rewards)}, source
            )
            total = float(rewards.sum())
            out.append((trajectory, Score(total, (total,), {"reward": total, "length": float(len(tokens))})))
        return out

    def tiny(self) -> TinyModel:
        """A random two-layer Llama whose vocabulary is the tree's actions."""
        return TinyModel(words=tuple(f"t{a}" for a in range(self.actions)), width=64, layers=2, heads=2, steps=0)
