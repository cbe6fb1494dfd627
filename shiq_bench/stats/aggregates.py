"""Statistics over several tasks from few seeds each (Agarwal et al. 2021, arXiv:2108.13264).

The caller normalises the scores of different tasks. Every interval is a percentile of the stratified bootstrap: seeds
are resampled within a task, never tasks, so it says how the same tasks would have come out with other seeds. With one
seed in some task there is no interval.

With few seeds a task these intervals are somewhat narrow: with six seeds on each of 1 to 10 tasks, 95% intervals of the
interquartile mean covered 89% to 93%, those of the probability of improvement 93% to 95%
(``python -m tests.stats.simulations``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shiq_bench.stats.intervals import Estimate, Floats

#: Scores of one method: task -> one normalised score a seed, ``[S]``.
Scores = Mapping[str, ArrayLike]

#: Below this many tasks, intervals of every single task come first.
FEW_TASKS = 5

#: Quantiles of a bootstrap that bound a 95% interval.
LIMITS = (0.5 - 0.95 / 2, 0.5 + 0.95 / 2)


def interquartile_mean(scores: Scores, generator: np.random.Generator, resamples: int = 2000) -> Estimate:
    """Mean of the middle half of all runs, pooled over tasks, with its stratified bootstrap interval.

    A quarter of the runs, rounded down, is cut off at either end: ``scipy.stats.trim_mean(x, 0.25)``.
    A task weighs as many runs as it has.

    Returns:
        Estimate in the unit of the scores; n and units count runs. Without any run the mean is None.

    Raises:
        ValueError: a score is not finite.
    """
    rows = _rows(scores)
    drawn = [x[generator.integers(0, x.size, size=(resamples, x.size))] for x in rows.values()]  # [B, S] a task
    mean = float(_trimmed(np.concatenate(list(rows.values())))) if rows else None
    means = _trimmed(np.concatenate(drawn, axis=1)) if rows else np.empty(0)
    return _estimate(mean, means, rows.values())


def probability_of_improvement(x: Scores, y: Scores, generator: np.random.Generator, resamples: int = 2000) -> Estimate:
    r"""How likely a run of X beats a run of Y on a task drawn at random, with its stratified bootstrap interval.

    Per task it is the Mann-Whitney statistic over its number of pairs, ties half, and then the mean over tasks:

    .. math:: P(X > Y) = \frac{1}{M} \sum_m \frac{1}{N_m K_m} \sum_{i, j}
              \big[ 1\{x_{mi} > y_{mj}\} + \tfrac12 1\{x_{mi} = y_{mj}\} \big]

    The seeds of X and of Y are resampled independently, within a task. Higher scores are better.

    Returns:
        Estimate of a probability over the tasks both have; n and units count the runs of both.

    Raises:
        ValueError: as :func:`interquartile_mean`.
    """
    a, b = _rows(x), _rows(y)
    shared = [task for task in a if task in b]
    means, point = np.zeros(resamples), 0.0
    for task in shared:
        won = _wins(a[task], b[task])  # [N, K]
        left = _counts(a[task].size, generator, resamples)  # [B, N]
        right = _counts(b[task].size, generator, resamples)  # [B, K]
        means += ((left @ won) * right).sum(axis=1) / won.size / len(shared)
        point += float(won.mean()) / len(shared)
    rows = [found[task] for found in (a, b) for task in shared]
    return _estimate(point if shared else None, means, rows)


@dataclass(frozen=True)
class Profile:
    """A performance profile: the share of runs above every threshold.

    Attributes:
        thresholds: in the unit of the scores, ascending. ``[T]``
        share: runs whose score is above each, averaged over tasks. ``[T]``
        low, high: pointwise confidence limits; None where some task has one seed. ``[T]``
    """

    thresholds: tuple[float, ...]
    share: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


def performance_profile(
    scores: Scores, thresholds: Sequence[float], generator: np.random.Generator, resamples: int = 2000
) -> Profile | None:
    r"""Score distribution of a method's runs over all tasks, with a pointwise bootstrap band.

    .. math:: \hat F(\tau) = \frac{1}{M} \sum_m \frac{1}{N_m} \sum_n 1\{x_{mn} > \tau\}

    Returns:
        The profile; None without any run.

    Raises:
        ValueError: thresholds that do not ascend; as :func:`interquartile_mean`.
    """
    rows = _rows(scores)
    tau = np.asarray(thresholds, dtype=np.float64)
    if tau.ndim != 1 or not tau.size or np.any(np.diff(tau) <= 0):
        raise ValueError("expected thresholds in ascending order, at least one")
    if not rows:
        return None
    share, drawn = np.zeros(tau.size), np.zeros((resamples, tau.size))
    for x in rows.values():
        above = (x[:, None] > tau).astype(np.float64)  # [S, T]
        share += above.mean(axis=0) / len(rows)
        drawn += _counts(x.size, generator, resamples) @ above / x.size / len(rows)
    low = high = None
    if all(x.size > 1 for x in rows.values()):
        low, high = (tuple(map(float, q)) for q in np.quantile(drawn, LIMITS, axis=0))
    return Profile(tuple(map(float, tau)), tuple(map(float, share)), low, high)


def _rows(scores: Scores) -> dict[str, Floats]:
    """The scores of every task that has any: ``[S]`` each."""
    rows = {task: np.asarray(x, dtype=np.float64) for task, x in scores.items()}
    for task, x in rows.items():
        if x.ndim != 1 or not np.isfinite(x).all():
            raise ValueError(f"{task}: expected one finite score a seed; got shape {x.shape}")
    return {task: x for task, x in rows.items() if x.size}


def _trimmed(x: Floats) -> Floats:
    """Mean over the last axis without its lowest and highest quarter, rounded down."""
    cut = x.shape[-1] // 4
    return np.asarray(np.sort(x, axis=-1)[..., cut : x.shape[-1] - cut].mean(axis=-1))


def _wins(x: Floats, y: Floats) -> Floats:
    """1 where a run of X is above one of Y, one half where they tie. ``[N, K]``"""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


def _counts(size: int, generator: np.random.Generator, resamples: int) -> Floats:
    """How often each of ``size`` seeds is in each resample. ``[B, size]``"""
    return generator.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)


def _estimate(mean: float | None, means: Floats, rows: Collection[Floats]) -> Estimate:
    n = sum(x.size for x in rows)
    if mean is None or any(x.size < 2 for x in rows):
        return Estimate(mean, None, None, None, n, n)
    low, high = np.quantile(means, LIMITS)
    return Estimate(mean, float(means.std(ddof=1)), float(low), float(high), n, n)
