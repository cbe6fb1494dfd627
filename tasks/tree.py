"""A token tree: the smallest task with credit over time whose optimum is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shiq_bench import TabularTask, UserError, task


@task("tree")
@dataclass(frozen=True)
class Tree(TabularTask):
    """A token tree with random rewards: every completion can be enumerated, so pi* is known exactly.

    A completion is ``depth`` tokens out of ``actions``; its state is all that was said. Rewards are
    uniform, at every token, or all paid at the last one; a return lies in [0, 1].
    """

    actions: int = 4
    depth: int = 3
    contexts: int = 2
    reward: Literal["token", "final"] = "token"
    enumerated: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actions < 2 or not 1 <= self.depth <= 20 or not 1 <= self.contexts <= self.actions * (self.actions - 1):
            raise UserError(
                f"tree with actions={self.actions}, depth={self.depth}, contexts={self.contexts}: "
                "expected at least 2 actions, depth 1 to 20, and 1 to actions * (actions - 1) contexts"
            )
        self._check_size(self.contexts * sum(self.actions**t for t in range(1, self.depth + 1)))

    def dynamics(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nodes level by level; a node's children stand side by side in the next level."""
        widths = [self.contexts * self.actions**t for t in range(self.depth)]
        size = sum(widths)
        child = self.contexts + np.arange(size * self.actions).reshape(size, self.actions)
        next_state = np.minimum(child, size)
        rewards = rng.random((size, self.actions)) / self.depth
        if self.reward == "final":
            paid = np.zeros(size)  # what the way to a node would have paid
            for s in range(size - widths[-1]):
                paid[next_state[s]] = paid[s] + rewards[s]
            rewards[-widths[-1] :] += paid[-widths[-1] :, None]
            rewards[: -widths[-1]] = 0
        return next_state, rewards, np.arange(self.contexts)
