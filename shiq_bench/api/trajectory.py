"""What travels between stages: answers, dialogues as token ids, verdicts. Standard library alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    Attributes:
        token_ids: ids exactly as sampled, the end-of-turn token included when it was emitted.
        logps: natural-log probability of each id under the sampler, at temperature 1. ``[T]``
        finish: ``stop`` when an end-of-turn token was emitted, ``length`` when the limit cut it.
    """

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, as a chat template writes it: a name, and arguments as JSON data.

    ``id`` is what the answer itself named the call, where its format does: results refer to it.
    Two calls are equal whatever their ids.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A prompt and everything that followed it, as token ids that are never re-tokenised.

    Attributes:
        prompt_id: the prompt this answers; trajectories that share it form a group.
        token_ids: prompt, actions and observations in order. ``[L]``
        action_mask: True where the policy emitted the token. ``[L]``
        rewards: reward credited at each token, zero off the actions. ``[L]``
        sampler_logp: the sampler's log-probability at each action, zero elsewhere. ``[L]`` or None
        truncated: the episode was cut by a limit rather than ended by the policy.
        source: who acted: ``reference``, ``gold``, ``enumerated`` ...
        weight: weight in expectations; enumerated data carry probabilities here.
        rank: what preference methods compare by, higher preferred, where a judge's word and not the
            return decides; None: the return.

    Raises:
        ValueError: lengths differ, or a reward stands off the actions.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    rewards: tuple[float, ...]
    sampler_logp: tuple[float, ...] | None = None
    truncated: bool = False
    source: str = "reference"
    weight: float = 1.0
    rank: float | None = None

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if not len(self.action_mask) == len(self.rewards) == n:
            raise ValueError(f"trajectory of {self.prompt_id}: token_ids, action_mask and rewards differ in length")
        if self.sampler_logp is not None and len(self.sampler_logp) != n:
            raise ValueError(f"trajectory of {self.prompt_id}: sampler_logp has another length than token_ids")
        if any(r and not a for r, a in zip(self.rewards, self.action_mask, strict=True)):
            raise ValueError(f"trajectory of {self.prompt_id}: a reward stands on a token that is no action")
        if n and self.action_mask[0]:
            raise ValueError(f"trajectory of {self.prompt_id}: the first token has no context to be an action in")

    @property
    def total_reward(self) -> float:
        """Undiscounted return: the sum of rewards over the actions."""
        return float(sum(self.rewards))

    @property
    def preference_score(self) -> float:
        """What preferences are made from: ``rank``, or else the return."""
        return self.total_reward if self.rank is None else self.rank


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one dialogue, the first preferred.

    Attributes:
        prompt_id: the dialogue; pairs of one dialogue share it.
        messages: what was said before, ``{"role": ..., "content": ...}`` each.
        chosen, rejected: the answers' text.
    """

    prompt_id: str
    messages: tuple[Mapping[str, str], ...]
    chosen: str
    rejected: str


class Transcript:
    """A trajectory under construction: observations and actions, in the order they happened."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self.token_ids: list[int] = list(prompt_ids)
        self.action_mask: list[bool] = [False] * len(self.token_ids)
        self.logps: list[float] = [0.0] * len(self.token_ids)
        self.truncated = False

    def act(self, completion: Completion) -> None:
        """Append what the policy emitted."""
        self.token_ids += completion.token_ids
        self.action_mask += [True] * len(completion.token_ids)
        self.logps += completion.logps

    def observe(self, token_ids: Sequence[int]) -> None:
        """Append what the policy did not emit: tool results, user turns, forced ends."""
        self.token_ids += token_ids
        self.action_mask += [False] * len(token_ids)
        self.logps += [0.0] * len(token_ids)

    @property
    def last_action(self) -> int:
        """Position of the most recent action token, or -1."""
        return next((i for i in range(len(self.action_mask) - 1, -1, -1) if self.action_mask[i]), -1)

    def trajectory(self, prompt_id: str, rewards: Mapping[int, float], source: str, weight: float = 1.0) -> Trajectory:
        """Freeze, with ``rewards`` given as position -> reward."""
        return Trajectory(
            prompt_id=prompt_id,
            token_ids=tuple(self.token_ids),
            action_mask=tuple(self.action_mask),
            rewards=tuple(rewards.get(i, 0.0) for i in range(len(self.token_ids))),
            sampler_logp=tuple(self.logps),
            truncated=self.truncated,
            source=source,
            weight=weight,
        )


@dataclass(frozen=True, slots=True)
class Score:
    """A task's verdict on one episode.

    Attributes:
        total: the return, equal to the sum of the trajectory's rewards.
        turns: reward of each turn.
        scored: False where scoring itself failed; such an episode counts as a failure in
            evaluations and is left out of training data.
        metrics: numbers by metric name. A metric that is a rate over turns is given as two
            numbers, ``name`` (successes) and ``name/n`` (trials); otherwise n counts episodes.
        details: anything worth reading later (texts, verdicts); must be JSON.
    """

    total: float
    turns: tuple[float, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    scored: bool = True
