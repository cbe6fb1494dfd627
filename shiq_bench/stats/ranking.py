"""When a method is called the best: one rule, whose rate of false alarms is measured.

``python -m tests.stats.simulations`` prints every rate that is quoted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import isclose

from shiq_bench.stats.intervals import mean_ci_t
from shiq_bench.stats.tests import holm, sign_p

#: Below this many shared seeds nobody is called best: the exact sign-flip test of five cannot fall below 0.0625.
BOLD_SEEDS = 6

#: Level of every test.
ALPHA = 0.05

#: The largest measured share of rows of equal methods that are marked (see :func:`winner`).
FALSE_MARKS = "5%"
#: The same where one method is skewed, the others are quiet, and their means alone are equal.
SKEWED_MARKS = "9.4%"

#: Label of a method -> seed -> its number, higher is better.
BySeed = Mapping[str, Mapping[int, float]]


def paired(scores: BySeed, one: str, other: str) -> list[float]:
    """One minus the other on every seed both have, by seed. ``[S]``"""
    shared = sorted(scores[one].keys() & scores[other].keys())
    return [scores[one][seed] - scores[other][seed] for seed in shared]


def ranked(scores: BySeed, least: int = 1) -> list[tuple[float, str]]:
    """Mean over seeds and method, best first; methods with fewer seeds than ``least`` are left out."""
    means = [(sum(x.values()) / len(x), label) for label, x in scores.items() if len(x) >= least]
    return sorted(means, key=lambda found: (-found[0], found[1]))


def winner(scores: BySeed) -> str | None:
    r"""The method that is better than every other beyond doubt, or None.

    Methods with fewer than :data:`BOLD_SEEDS` seeds are not ranked. Of the others it has the highest
    mean, and its lead over each of them, over at least that many shared seeds, has a 95% t interval
    above 0 *and* a sign-flip p below 5%. Looking only at the best of k does not inflate the rate:
    the more methods are alike, the closer are the best two, so k = 2 is the least favourable case
    (Gutmann and Maymin 1987, "Is the selected population the best?").
    Of 20,000 rows of 2 equal methods the t interval alone marks 5.0% at six seeds and 5.3% at ten, with the sign-flip
    test 2.6% and 4.9%; of 4 and 7 methods 0.1% and 0.0% at six seeds, 0.5% and 0.1% at ten (4,000 rows); standard
    errors up to 0.15 points. It bounds one row (one metric on one split): a table of many has as many chances.

    Neither test is exact where means are equal and distributions are not: one skewed method among
    quiet ones is marked in 9.4% of rows (two methods, ten seeds; the t interval alone: 10.0%).
    """
    order = [label for _, label in ranked(scores, BOLD_SEEDS)]
    if len(order) < 2 or not all(_ahead(paired(scores, order[0], other)) for other in order[1:]):
        return None
    return order[0]


def _ahead(lead: list[float]) -> bool:
    low = mean_ci_t(lead).low
    if len(lead) < BOLD_SEEDS or low is None or low <= 0:
        return False
    p = sign_p(lead)
    return p is not None and p < ALPHA


def against_best(scores: BySeed) -> dict[str, Test]:
    """Every other method against the best of two seeds or more, by the sign-flip test over the seeds both have.

    Which one is the best is learnt from the same numbers, so Holm's adjustment is over all pairs of
    methods, of which these are some. No interval stands beside these p. Empty where no method has two seeds,
    or where several have the best mean (up to rounding): then none of them is the best.
    """
    order = ranked(scores, 2)
    if not order or (len(order) > 1 and isclose(order[0][0], order[1][0], rel_tol=1e-12)):
        return {}
    best = order[0][1]
    pairs = [(best, other) for other in scores if other != best]
    every = [*pairs, *combinations([k for k in scores if k != best], 2)]
    differences = [paired(scores, *pair) for pair in every]
    raw = [sign_p(d) for d in differences]
    tests = [Test(p, adjusted, len(d)) for p, adjusted, d in zip(raw, holm(raw), differences, strict=True)]
    return {other: test for (_, other), test in zip(pairs, tests, strict=False)}


@dataclass(frozen=True)
class Test:
    """One of the paired tests of a row, which is one metric on one split in one mode.

    Attributes:
        p: None below two units, or where there is nothing to test with.
        adjusted: p after Holm: over the methods of the row where each is tested against the reference, over
            all pairs of them where against the best.
        units: pairs behind it, seeds or a table's instances.
    """

    p: float | None
    adjusted: float | None
    units: int
