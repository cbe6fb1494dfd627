"""Means and their intervals.

Three rules hold throughout: what is undefined is None and never 0; every random draw comes from a
generator that the caller passes; n says how much data stands behind a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, how well it is known, and from how much data.

    Attributes:
        mean: the estimate, in the unit of the data; None when there was nothing to estimate from.
        stderr: its standard error; None below two independent units.
        low, high: confidence limits; None below two independent units.
        n: data behind the mean (values, or trials of a rate).
        units: independent units behind the error (seeds, or prompts).
        freedom: degrees of freedom of the error; None is units - 1.
    """

    mean: float | None
    stderr: float | None
    low: float | None
    high: float | None
    n: float
    units: int
    freedom: float | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the t distribution behind the interval."""
        return self.units - 1 if self.freedom is None else self.freedom


def t_interval(
    mean: float | None, stderr: float | None, n: float, units: int, freedom: float | None = None
) -> Estimate:
    """95% t interval around a mean of known error, with ``units - 1`` degrees of freedom or as many as given."""
    if mean is None or stderr is None or units < 2:
        return Estimate(mean, stderr if units >= 2 else None, None, None, n, units)
    half = float(stdtrit(units - 1 if freedom is None else freedom, 0.975)) * stderr
    return Estimate(mean, stderr, mean - half, mean + half, n, units, freedom)


def mean_ci_t(values: Iterable[float | None]) -> Estimate:
    """Mean of one value a seed, with Student's 95% t interval.

    The training seed is the unit. A percentile bootstrap over six seeds covers 86% where it says
    95%, over three 74%; the t interval covers what it says when seeds are about normal.
    Missing values (None, NaN) are left out and n says so.
    """
    x = np.array([x for v in values if not isnan(x := number(v))], dtype=np.float64)
    stderr = None
    if x.size >= 2 and np.isfinite(x).all():
        # Equal values have spread 0, not the rounding of their mean.
        stderr = float(x.std(ddof=1) / np.sqrt(x.size)) if np.ptp(x) else 0.0
    return t_interval(_mean(x), stderr, x.size, x.size)


def paired_difference(a_by_prompt: Mapping[str, float], b_by_prompt: Mapping[str, float]) -> Estimate:
    """Mean of a - b over the prompts both have, with the paired t interval; n counts prompts."""
    shared = sorted(a_by_prompt.keys() & b_by_prompt.keys())
    return mean_ci_t(a_by_prompt[p] - b_by_prompt[p] for p in shared)


def crossed_rows(rows: Sequence[Mapping[str, float]]) -> Estimate | None:
    """:func:`crossed_t` of one mapping of prompts a seed; None unless there are two seeds, with the same prompts."""
    if len(rows) < 2 or len(rows[0]) < 2 or any(row.keys() != rows[0].keys() for row in rows):
        return None
    return crossed_t([[row[prompt] for prompt in rows[0]] for row in rows])


def crossed_t(matrix: ArrayLike) -> Estimate:
    r"""Mean of a seeds x prompts matrix, with a t interval from its variance components.

    With :math:`x_{sp} = \mu + a_s + b_p + e_{sp}`, mean squares :math:`A` between seeds, :math:`B` between prompts
    and :math:`E` of what is left (two-way random effects, one value a cell; Searle, Casella and
    McCulloch 1992, chapter 4), the mean has

    .. math:: \widehat{Var}(\bar x) = \frac{\max(A + B - E, A, B)}{S P}, \quad
              \nu = \frac{(A + B - E)^2}{A^2/(S-1) + B^2/(P-1) + E^2/((S-1)(P-1))}

    degrees of freedom (Satterthwaite 1946), at least :math:`\min(S, P) - 1`. The variance is never
    taken to be less than that of seeds alone or of prompts alone: A + B - E by itself covers as little as
    86% where neither matters. Measured coverage of 95% intervals (``python -m tests.stats.simulations``): 93.8% to
    95.8% over 6, 10 and 20 seeds, whichever spread dominates; where neither is there, up to 99%. Percentile bootstraps
    of seeds and prompts (Owen 2007) cover 87% of six seeds where these differ most, and with prompts drawn afresh
    within each seed, as though they were not shared, 65% where prompts do.

    Args:
        matrix: one value a seed and prompt, ``[S, P]``, complete.

    Returns:
        Estimate with n = S * P and units = S; no interval below two seeds or two prompts.

    Raises:
        ValueError: the matrix is not two-dimensional or not finite.
    """
    x = np.asarray(matrix, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"expected a complete seeds x prompts matrix; got shape {x.shape}")
    seeds, prompts = x.shape
    if seeds < 2 or prompts < 2:
        return Estimate(_mean(x.ravel()), None, None, None, x.size, seeds)
    mean, rows, columns = float(x.mean()), x.mean(axis=1), x.mean(axis=0)
    a, b = float(prompts * rows.var(ddof=1)), float(seeds * columns.var(ddof=1))
    rest = x - rows[:, None] - columns + mean
    e = float(np.square(rest).sum()) / ((seeds - 1) * (prompts - 1))
    # Rounding leaves 1e-32 where every value is alike; there the error is exactly 0.
    variance = max(a + b - e, a, b) if np.ptp(x) else 0.0
    spread = a**2 / (seeds - 1) + b**2 / (prompts - 1) + e**2 / ((seeds - 1) * (prompts - 1))
    freedom = max((a + b - e) ** 2 / spread if spread else 0.0, min(seeds, prompts) - 1)
    return t_interval(mean, float(np.sqrt(variance / x.size)), x.size, seeds, freedom=freedom)


def number(value: Any) -> float:
    """A float, NaN for None; text is refused rather than guessed at."""
    if value is None:
        return float("nan")
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        return float(value)
    raise ValueError(f"{value!r} is no number")


def _mean(x: Floats) -> float | None:
    return float(x.mean()) if x.size and np.isfinite(x).all() else None
