"""What bandits, trees and grids share.

A world can be learned as a table of logits, or played as a language by any causal language model:
a prompt names the start, every action is a token, and nothing that can be said lies outside.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from shiq_bench.api.task import Codec, Episode, Task, TinyModel
from shiq_bench.api.trajectory import Completion, Score, Trajectory, Transcript
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.record import Metric
from shiq_bench.records.spec import RunSpec
from shiq_bench.tabular.world import World, log_softmax

#: Standard deviation of the largest tilt of a behaviour's logits: all but deterministic.
FARTHEST = 100.0

#: Largest tables, in entries (states times actions).
LARGEST = 1_000_000

#: Splits of a task that is a world; all hold the same prompts.
SPLITS = ("rl", "heldout", "start", "all")


@dataclass(frozen=True)
class TabularTask(Task):
    """What bandits, trees and grids share: instances, behaviour, data, and playing them as a language.

    Attributes:
        instance: first instance; seed s of a run plays instance + s.
        off_policy: KL(mu || rho) of the behaviour in nats an episode. 0 is the reference itself; the
            behaviour's logits are the reference's plus so many random normals as it takes.
        explore: share of the behaviour's actions that are drawn uniformly instead.
        coverage: share of each state's actions that the behaviour ever takes, at least one.
        enumerated: data are every completion, weighted by its probability under the behaviour, or,
            where completions are too many, an episode through every transition. Otherwise sampled.
        draws: sampled episodes of the behaviour a context.
        reward_scale: factor on every reward; at 1 returns lie in [0, 1].
        kl_strength: beta of the objective that regret is measured in, and of algorithms that do not
            say otherwise.
    """

    instance: int = 0
    off_policy: float = 1.0
    explore: float = 0.0
    coverage: float = 1.0
    enumerated: bool = False
    draws: int = 64
    reward_scale: float = 1.0
    kl_strength: float = 0.1

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("regret", "lower", "regret (regularised)", headline=True, exact=True),
        Metric("reward", "higher", "mean reward", headline=True),
        Metric("kl_reference", "neither", "KL to reference", exact=True),
        Metric("kl_optimum", "lower", "KL(pi* || pi)", exact=True),
        Metric("kl_fixed", "lower", "KL to own fixed point", exact=True, own=True),
        Metric("length", "neither", "mean length"),
        Metric("diverged", "lower", "diverged", percent=True, exact=True),
    )
    #: Played as a language, by a transformer.
    defaults: ClassVar[Mapping[str, Any]] = {
        "samples": 0, "groups_per_step": 2, "steps": 600, "learning_rate": 3e-3, "precision": "fp32", "warmup": 0.05,
        "max_tokens": 64, "max_length": 96, "eval_samples": 200,
    }  # fmt: skip
    #: Learned as a table.
    table_defaults: ClassVar[Mapping[str, Any]] = {
        "model": "table", "samples": 0, "gold": False, "steps": 2000, "learning_rate": 0.2, "warmup": 0.0,
        "seeds": 10, "precision": "fp32", "max_grad_norm": 0.0,
    }  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise UserError(f"coverage is {self.coverage}; expected a share above 0, up to 1")
        if not 0 <= self.explore <= 1:
            raise UserError(f"explore is {self.explore}; expected a share from 0 to 1")
        if not 0 <= self.off_policy < np.inf or not 0 < self.kl_strength < np.inf or not 0 < self.reward_scale < np.inf:
            raise UserError("expected off_policy of 0 or more, kl_strength and reward_scale above 0, and all finite")
        if self.draws < 1 or self.instance < 0:
            raise UserError(f"draws is {self.draws}, instance {self.instance}; expected 1 or more, and 0 or more")

    def _check_size(self, entries: int) -> None:
        if entries > LARGEST:
            raise UserError(
                f"{entries} state-action pairs are too many for tables (at most {LARGEST}): make it smaller"
            )

    @property
    def largest_return(self) -> float:
        """Returns lie in [0, 1] before they are scaled."""
        return self.reward_scale

    def defaults_for(self, model: str | None) -> Mapping[str, Any]:
        """Tables unless a model is asked for; enumerated data get expected preference labels, sampled ones drawn."""
        table = self.table_defaults if model in (None, "table") else {}
        labels = "bradley_terry" if self.enumerated else "sampled"
        return {**self.defaults, **table, "labels": labels, "algorithm.beta": self.kl_strength}

    @abstractmethod
    def dynamics(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``next_state [S, A]``, ``rewards [S, A]`` with returns in [0, 1], and ``start [C]`` of an instance."""

    def world(self, seed: int) -> World:
        """Instance ``instance + seed``; dynamics and reference do not depend on the options of the data."""
        rng = np.random.default_rng([self.instance + seed, 0])
        next_state, rewards, start = self.dynamics(rng)
        reference = rng.standard_normal(rewards.shape) + rng.standard_normal((len(rewards), 1))
        bare = World(next_state, rewards * self.reward_scale, start, reference, np.exp(log_softmax(reference)))
        return replace(bare, behaviour=self._behaviour(bare, self.instance + seed))

    def _behaviour(self, world: World, instance: int) -> np.ndarray:
        """Probabilities of the data's policy, as far from the reference as ``off_policy`` says. ``[S, A]``

        Raises:
            UserError: no tilt of the reference goes that far.
        """
        from shiq_bench.tabular.exact import kl

        shape = world.reference.shape
        tilt = np.random.default_rng([instance, 1]).standard_normal(shape)
        keep = max(1, round(self.coverage * shape[1]))
        order = np.random.default_rng([instance, 2]).permuted(np.tile(np.arange(shape[1]), (shape[0], 1)), axis=1)
        kept = order < keep

        def tilted(scale: float) -> np.ndarray:
            taken = np.exp(log_softmax(np.where(kept, world.reference + scale * tilt, -np.inf)))
            return (1 - self.explore) * taken + self.explore * kept / keep

        def away(scale: float) -> float:
            with np.errstate(divide="ignore"):
                return kl(world, np.log(tilted(scale)), log_softmax(world.reference))

        if self.off_policy <= away(0.0) or self.off_policy == 0:
            return tilted(0.0)
        if away(FARTHEST) < self.off_policy:
            raise UserError(
                f"off_policy is {self.off_policy} nats, and instance {instance} allows about {away(FARTHEST):.2f}: "
                "ask for less, or lower explore"
            )
        low, high = 0.0, FARTHEST
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if away(middle) < self.off_policy else (low, middle)
        return tilted(high)

    def data(self, seed: int, data_seed: int = 0) -> list[Trajectory]:
        """Offline data of instance ``instance + seed``, drawn with ``data_seed``: weights of a context's
        trajectories sum to 1."""
        world = self.world(seed)
        rng = np.random.default_rng([self.instance + seed, 3, data_seed])
        if not self.enumerated:
            paths, source = world.draw(world.behaviour, self.draws, rng), "behaviour"
            weight = np.full(len(paths.context), 1 / self.draws)
        elif world.is_tree:
            paths, source = world.completions(), "enumerated"
            weight = np.where(paths.mask, world.behaviour[paths.states, paths.actions], 1.0).prod(-1)
        else:
            paths, source = world.covering(rng), "covering"
            weight = 1 / np.bincount(paths.context, minlength=len(world.start))[paths.context]
        out = []
        with np.errstate(divide="ignore"):
            logp = np.log(world.behaviour)
        for i in np.flatnonzero(weight > 0):
            live = paths.mask[i]
            n = int(live.sum())
            c = int(paths.context[i])
            out.append(
                Trajectory(
                    prompt_id=str(c),
                    token_ids=(*self._prompt(c, world.actions), *paths.actions[i, live].tolist()),
                    action_mask=(False, False) + (True,) * n,
                    rewards=(0.0, 0.0, *paths.rewards[i, live].tolist()),
                    sampler_logp=(0.0, 0.0, *logp[paths.states[i, live], paths.actions[i, live]].tolist()),
                    source=source,
                    weight=float(weight[i]),
                )
            )
        return out

    def _prompt(self, context: int, actions: int) -> tuple[int, int]:
        """Two different tokens: after one alone, a model with relative positions cannot tell x from x x or x x x."""
        return context % actions, (context + 1 + context // actions) % actions

    @cached_property
    def _first(self) -> World:
        return self.world(0)

    # --- played as a language: instance number 0 ---

    def prompts(self, split: str) -> list[str]:
        """One id a context, the same in every split: these tasks prove and compare, and do not generalise.

        Raises:
            UserError: no such split.
        """
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}{suggest(split, SPLITS)}")
        return [str(c) for c in range(len(self._first.start))]

    def trajectories(self, split: str, codec: Codec, spec: RunSpec) -> list[Trajectory]:
        """The offline data, for training only."""
        return self.data(0) if split == "rl" else []

    def episodes(self, prompt_ids: Sequence[str], codec: Codec, max_length: int) -> list[Episode]:
        """Dialogues of one answer, as long as the longest path: what is said after the end is ignored."""
        longest = len(self._first.layers)
        prompts = [self._prompt(int(p), self._first.actions) for p in prompt_ids]
        return [Episode(i, Transcript(p), max_new_tokens=longest) for i, p in zip(prompt_ids, prompts, strict=True)]

    def step(self, episodes: Sequence[Episode], completions: Sequence[Completion]) -> None:
        """One answer ends the episode, or, where a limit cut it short, is gone on with."""
        longest = len(self._first.layers)
        for episode, completion in zip(episodes, completions, strict=True):
            before = len(episode.transcript.token_ids) - 2
            said = (*episode.transcript.token_ids[2:], *completion.token_ids)
            n = len(self._first.walk(int(episode.prompt_id), said)[0]) - before
            episode.transcript.act(replace(completion, token_ids=completion.token_ids[:n], logps=completion.logps[:n]))
            episode.max_new_tokens = longest - before - n
            episode.done = self._over(episode)

    def _over(self, episode: Episode) -> bool:
        actions = episode.transcript.token_ids[2:]
        states, _ = self._first.walk(int(episode.prompt_id), actions)
        return bool(states) and self._first.next_state[states[-1], actions[len(states) - 1]] == self._first.size

    def finish(self, episodes: Sequence[Episode], source: str) -> list[tuple[Trajectory, Score]]:
        """Rewards are looked up; a token outside the world cannot happen, its vocabulary being the world's."""
        out = []
        for episode in episodes:
            actions = episode.transcript.token_ids[2:]
            _, rewards = self._first.walk(int(episode.prompt_id), actions)
            if not self._over(episode):
                raise UserError(
                    f"an answer stops after {len(actions)} tokens, before its episode ends: raise max_length"
                )
            trajectory = episode.transcript.trajectory(
                episode.prompt_id, {t + 2: r for t, r in enumerate(rewards)}, source
            )
            total = float(sum(rewards))
            out.append((trajectory, Score(total, (total,), {"reward": total, "length": float(len(actions))})))
        return out

    def tiny(self) -> TinyModel:
        """A random two-layer Llama whose vocabulary is the world's actions."""
        words = tuple(f"t{a}" for a in range(self._first.actions))
        return TinyModel(words=words, width=64, layers=2, heads=2, steps=0)
