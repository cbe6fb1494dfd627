"""A run's settings with everything they name, checked and filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.needs import OnPolicy
from shiq_bench.api.task import Task
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

    @property
    def fresh(self) -> bool:
        """Whether every update learns from fresh samples of the current policy."""
        if self.spec.collect == "auto":
            return self.algorithm.need(OnPolicy) is not None and not self.spec.allow_off_policy
        return self.spec.collect == "fresh"

    @property
    def fresh_samples(self) -> int:
        """Fresh samples a prompt, at every update that collects them."""
        need = self.algorithm.need(OnPolicy)
        return need.samples if need else self.spec.samples
