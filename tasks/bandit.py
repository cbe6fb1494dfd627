"""A contextual bandit: one action, one reward, and nothing to hide an error behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shiq_bench import TabularTask, UserError, task


@task("bandit")
@dataclass(frozen=True)
class Bandit(TabularTask):
    """A contextual bandit with an exact optimum: ``arms`` actions in each of ``contexts``, rewards uniform."""

    arms: int = 20
    contexts: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arms < 2 or not 1 <= self.contexts <= self.arms * (self.arms - 1):
            raise UserError(
                f"bandit with arms={self.arms}, contexts={self.contexts}: "
                "expected at least 2 arms, and 1 to arms * (arms - 1) contexts"
            )
        self._check_size(self.contexts * self.arms)

    def dynamics(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every action ends the episode."""
        shape = (self.contexts, self.arms)
        return np.full(shape, self.contexts), rng.random(shape), np.arange(self.contexts)
