"""A run's settings with everything they name, checked and filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.needs import OnPolicy
from shiq_bench.api.task import Task
from shiq_bench.records.errors import UserError
from shiq_bench.records.spec import RunSpec


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A spec and the objects it names.

    ``values`` are the settings it was resolved from: given to :func:`resolve` again, they make it again.
    """

    spec: RunSpec
    algorithm: Algorithm
    task: Task
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def collects_fresh(resolved: Resolved) -> bool:
    """Whether every update learns from fresh samples of the current policy.

    Raises:
        UserError: an on-policy method is to learn from stored trajectories and nobody allowed it.
    """
    spec, on_policy = resolved.spec, resolved.algorithm.need(OnPolicy) is not None
    if spec.collect == "auto":
        return on_policy and not spec.allow_off_policy
    if spec.collect == "offline" and on_policy and not spec.allow_off_policy:
        raise UserError(
            f"{spec.algo} learns from its own samples; stored trajectories bias it: "
            "add --allow-off-policy to do it all the same, marked in the record"
        )
    return spec.collect == "fresh"


def fresh_samples(resolved: Resolved) -> int:
    """Fresh samples a prompt, at every update that collects them."""
    need = resolved.algorithm.need(OnPolicy)
    return need.samples if need else resolved.spec.samples
