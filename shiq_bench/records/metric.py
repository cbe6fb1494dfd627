"""A number that an evaluation reports, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A number a task reports, and which way is better."""

    name: str
    better: Literal["higher", "lower", "neither"]
    title: str
    percent: bool = False
    headline: bool = False  # shown with its difference to the reference
    exact: bool = False  # computed from a whole table, so no single episode has it
    optional: bool = False  # of some kinds of episodes only, or pooled from other metrics
    own: bool = False  # measured against a target of the method's own: no number of another's is comparable


#: Metrics every task's evaluation may hold; a task's own Metric of the same name comes first.
ENGINE_METRICS = (
    Metric("reward", "higher", "mean reward", headline=True),
    Metric("kl", "neither", "KL to reference (nats)"),
    Metric("kl_k1", "neither", "KL, k1 estimate (nats)"),
    Metric("kl_token", "neither", "KL a token (nats)"),
    Metric("length", "neither", "length (tokens)"),
    Metric("truncated", "lower", "truncated", percent=True),
    Metric("preference_accuracy", "higher", "preferences ordered right", percent=True),
    Metric("preference_margin", "higher", "margin, better minus worse (nats)"),
    Metric("logratio_data", "neither", "log-ratio to reference (nats)"),
)
