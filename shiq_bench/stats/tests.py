"""Tests of paired differences, their adjustment for how many there are, and what they could have found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from shiq_bench.stats.intervals import Estimate, Floats

#: Of so many differences :func:`sign_flip_p` still enumerates every pattern of signs.
EXACT_UNITS = 20

#: Of minimum detectable differences.
POWER = 0.8


def sign_flip_p(
    differences: Sequence[float], generator: np.random.Generator | None = None, draws: int = 100_000
) -> float | None:
    """Two-sided p of the sign-flip test: is the mean of paired differences zero?

    Under the null each difference is as likely to have the other sign. All 2^n patterns are
    enumerated up to :data:`EXACT_UNITS` differences; beyond, ``draws`` random ones from ``generator``, with
    the observed pattern among them (Phipson and Smyth 2010), so that p is never 0. The smallest p
    of n seeds is 2/2^n: five seeds cannot go below 0.0625, six reach 0.031.

    Raises:
        ValueError: too many differences to enumerate, and no generator.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size == 0 or not np.isfinite(d).all():
        return None
    # Sums of the same terms in another order differ in the last bits: they count as ties.
    bar = abs(d.sum()) - 1e-12 * np.abs(d).sum()
    if bar <= 0:
        return 1.0
    if d.size <= EXACT_UNITS:
        # Every sum is one of the first half plus one of the second: 2^(n/2) of either instead of 2^n.
        first, second = _signed_sums(d[: d.size // 2]), np.sort(_signed_sums(d[d.size // 2 :]))
        above = second.size - np.searchsorted(second, bar - first, "left")
        below = np.searchsorted(second, -bar - first, "right")
        return float((above + below).sum() / (first.size * second.size))
    if generator is None:
        raise ValueError(f"{d.size} differences are too many to enumerate: pass a generator")
    hits = 0
    for start in range(0, draws, 4096):
        signs = generator.integers(0, 2, size=(min(4096, draws - start), d.size)) * 2 - 1
        hits += int((np.abs(signs @ d) >= bar).sum())
    return (1 + hits) / (1 + draws)


def _signed_sums(d: Floats) -> Floats:
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def sign_flip_name(units: Iterable[int], draws: int = 100_000) -> str:
    """What :func:`sign_flip_p` does with so many differences, in words."""
    exact = {n <= EXACT_UNITS for n in units}
    if exact == {False}:
        return f"sign-flip ({draws:,} random patterns)"
    return "exact sign-flip" if exact <= {True} else f"sign-flip (exact up to {EXACT_UNITS}, beyond {draws:,} patterns)"


def t_p(e: Estimate) -> float | None:
    """Two-sided p of the t test that belongs to an interval; None where the error is 0 or unknown."""
    if e.mean is None or not e.stderr:
        return None
    return float(2 * stdtr(e.degrees, -abs(e.mean / e.stderr)))


def sign_p(differences: Sequence[float]) -> float | None:
    """:func:`sign_flip_p` whose patterns, where they are drawn, come from one fixed generator; None below two units.

    The same records give the same p.
    """
    return sign_flip_p(differences, np.random.default_rng(0)) if len(differences) > 1 else None


def paired_p(e: Estimate, differences: Sequence[float]) -> float | None:
    """Two-sided p of no difference, by the procedure of the interval that stands beside it.

    It is the t test of the estimate, over whatever its error covers (seeds and prompts, seeds, prompts, or the
    instances of a table), so that p is below 5% exactly where the 95% interval excludes 0. A sign-flip test beside a
    t interval contradicts it in 4% of simulated comparisons. Only where all differences are alike, which leaves no
    error and bounds nothing, is it the sign-flip test over the units.

    Args:
        differences: one a unit, for the sign-flip test; none where units are not to be tested.
    """
    return sign_p(differences) if e.stderr == 0 else t_p(e)


def holm(pvalues: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number by Holm's step-down (1979), in the order given.

    None stays None and is not counted.
    """
    known = sorted((p, i) for i, p in enumerate(pvalues) if p is not None)
    adjusted: list[float | None] = [None] * len(pvalues)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted


def binomial_stderr(rate: float, n: int) -> float:
    """Standard error of a rate over n independent prompts; at 40%, 3.5 points over 200 and 7.7 over 40."""
    return float(np.sqrt(rate * (1 - rate) / n))


def detectable_difference(stderr: float) -> float:
    """Smallest true difference of two unpaired means, each with this error, found with 80% power.

    (z_0.975 + z_0.8) * sqrt(2) * stderr, two-sided at 5%: 3.96 errors.
    """
    return float((ndtri(0.975) + ndtri(POWER)) * np.sqrt(2) * stderr)


def detectable(e: Estimate) -> float | None:
    """Smallest true value that an estimate like this one would have told from 0 with 80% power.

    (t_0.975 + t_0.8) * stderr with the estimate's degrees of freedom (Bloom 1995): for a mean of
    paired differences. None where there is no error, or an error of 0, which promises nothing.
    """
    if not e.stderr or e.units < 2:
        return None
    return float(stdtrit(e.degrees, 0.975) + stdtrit(e.degrees, POWER)) * e.stderr
