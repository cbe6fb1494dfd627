"""What an algorithm asks of the engine, which supplies exactly that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar


@dataclass(frozen=True)
class Need:
    """Base of everything an algorithm may declare; the engine supplies exactly what is declared."""


N = TypeVar("N", bound=Need)


@dataclass(frozen=True)
class Reference(Need):
    """Token statistics of the starting policy, as ``stats.reference``.

    With ``refresh`` N the reference becomes a copy of the policy after every N updates; 0 is never.
    """

    refresh: int = 0


@dataclass(frozen=True)
class Rewards(Need):
    """Rewards with a scale: ``center_rewards`` applies, and a task must be able to score.

    ``unit`` asks for returns in [0, 1]: the engine divides by the task's ``largest_return`` and
    refuses what still lies outside.
    """

    unit: bool = False


@dataclass(frozen=True)
class Pairs(Need):
    """Preference pairs inside each prompt group, as ``batch.pairs`` and ``batch.pair_weight``.

    ``ties`` says whether pairs of equal return are dropped (and counted) or kept.
    """

    ties: Literal["drop", "keep"] = "drop"


@dataclass(frozen=True)
class Labels(Need):
    """Whether each trajectory is desirable, judged against its prompt's mean return, as ``batch.label``."""


@dataclass(frozen=True)
class Mismatched(Need):
    """Policy and reference on each prompt with another prompt's answer, as ``stats.mismatched``."""


@dataclass(frozen=True)
class Support(Need):
    """The loss only finds its fixed point where the data cover what the reference may do; a gap is warned of."""


@dataclass(frozen=True)
class ValueHead(Need):
    """A learned V(s_t), zero at the start, as ``stats.value``."""


@dataclass(frozen=True)
class QHeads(Need):
    """Learned Q(s_t, .) over the vocabulary, independently initialised, as ``stats.q``."""

    count: int = 2


@dataclass(frozen=True)
class TargetNetwork(Need):
    """A Polyak average of everything trained, ``tau`` of the new at every update, as ``stats.target``."""

    tau: float = 0.005


@dataclass(frozen=True)
class BehaviourModel(Need):
    """A model of the data fitted beforehand by maximum likelihood, frozen, as ``stats.behaviour``.

    ``start`` makes it the starting point of the policy as well.
    """

    start: bool = False


@dataclass(frozen=True)
class SumLogits(Need):
    """Sum of the policy's logits over the vocabulary, as ``stats.sum_logits``."""


@dataclass(frozen=True)
class MaxRatio(Need):
    """max_a pi_target(a|s_t) / pi_behaviour(a|s_t) over actions whose behaviour is at least ``floor``,
    as ``stats.max_ratio``; needs a target network and a behaviour model."""

    floor: float = 0.01


@dataclass(frozen=True)
class OnPolicy(Need):
    """Fresh samples of the current policy at every update, ``samples`` a prompt."""

    samples: int = 8
