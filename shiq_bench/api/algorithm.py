"""One method: hyperparameters, declared needs, and a pure loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from shiq_bench.api.needs import N, Need, Pairs

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from shiq_bench.api.batch import Batch, Dense, LossOutput, Stats
    from shiq_bench.tabular.exact import Exact


class Algorithm(ABC):
    """One method: a frozen dataclass of hyperparameters, declared needs, and a pure ``loss``.

    Class attributes:
        couples_groups: True where the loss holds an estimate over the whole batch, so that prompt
            groups do not add up.
        deviations: where the method departs from its paper; every record says so.
    """

    couples_groups: ClassVar[bool] = False
    deviations: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the engine must supply; most methods override it with a plain class attribute."""
        return ()

    @property
    def couples_answers(self) -> bool:
        """Whether a trajectory's part of the loss depends on the prompt's others, so that they stay in one batch.

        A method whose ``loss`` and ``count`` are sums over trajectories, each of its own numbers alone, says
        ``couples_answers = False``: prompts too large for a forward pass are then cut between their answers.
        """
        return True

    @abstractmethod
    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        """Tensors in, tensors out: no optimiser, no logger, no I/O, no data-dependent shapes."""

    def count(self, batch: Batch) -> Tensor:
        """What ``loss(...).total`` is a sum over, as a 0-dim tensor; by default weights, of pairs if it needs any."""
        return (batch.pair_weight if self.need(Pairs) else batch.weight).sum()

    def act(self, dense: Dense) -> Tensor:
        """Logits of the policy that is sampled and judged, from those that were trained. ``[..., V]``"""
        return dense.logits

    def fixed_point(self, exact: Exact) -> np.ndarray | None:
        """Log-probabilities of the policy (as it acts) that training converges to. ``[S, A]``

        The contract tests hold the method to it on worlds small enough to be solved. None says
        that there is no finite one, or that none is known.
        """
        return None

    @property
    def reweights(self) -> bool:
        """Whether it acts otherwise than by softmax of its logits."""
        return type(self).act is not Algorithm.act

    def need(self, kind: type[N]) -> N | None:
        """The declared need of this kind, or None."""
        return next((n for n in self.needs if isinstance(n, kind)), None)
