"""A small deterministic grid: many paths to one place, and a reward that may be far away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shiq_bench import TabularTask, UserError, task

MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1), (0, 0)])  # up, right, down, left, stay


@task("gridworld")
@dataclass(frozen=True)
class Gridworld(TabularTask):
    """A grid with a goal and an exact optimum: walk ``width`` x ``width`` cells for at most ``horizon`` steps.

    A state is (step, cell); walls stop, the goal ends the episode. ``sparse`` pays 1 at the goal and
    nothing else. ``dense`` pays every step for nearness to the goal, and on arrival all that staying
    there would have paid; a return lies in [0, 1] either way.
    """

    width: int = 4
    horizon: int = 10
    contexts: int = 2
    reward: Literal["sparse", "dense"] = "sparse"

    def __post_init__(self) -> None:
        super().__post_init__()
        prompts = len(MOVES) * (len(MOVES) - 1)
        if self.width < 2 or not 1 <= self.horizon <= 50 or not 1 <= self.contexts <= min(self.width**2 - 1, prompts):
            raise UserError(
                f"gridworld with width={self.width}, horizon={self.horizon}, contexts={self.contexts}: "
                f"expected width of 2 or more, horizon 1 to 50, and fewer contexts than cells, at most {prompts}"
            )
        self._check_size(self.horizon * self.width**2 * len(MOVES))

    def dynamics(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The goal is a corner; starts are other cells drawn with the instance."""
        cells = self.width**2
        place = np.stack(np.divmod(np.arange(cells), self.width), -1)
        to = (place[:, None] + MOVES).clip(0, self.width - 1) @ np.array([self.width, 1])  # [cells, 5]
        goal = int(rng.choice([0, self.width - 1, cells - self.width, cells - 1]))
        start = rng.choice(np.delete(np.arange(cells), goal), self.contexts, replace=False)
        size = self.horizon * cells
        step = np.arange(size) // cells
        moved = np.tile(to, (self.horizon, 1))
        over = (moved == goal) | (step[:, None] == self.horizon - 1)
        next_state = np.where(over, size, (step[:, None] + 1) * cells + moved)
        if self.reward == "sparse":
            return next_state, (moved == goal).astype(float), start
        distance = np.abs(place - place[goal]).sum(-1)
        near = 1 - distance[moved] / distance.max()
        steps_paid = np.where(moved == goal, self.horizon - step[:, None], 1)
        return next_state, near * steps_paid / self.horizon, start
