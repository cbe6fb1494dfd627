"""How often intervals cover and how often a bold number is an accident: ``python -m tests.stats.simulations``.

Everything runs through the package's own functions. Tests run the same with fewer replications.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from shiq_bench.stats.aggregates import interquartile_mean, probability_of_improvement
from shiq_bench.stats.clustered import linearised, linearised_difference
from shiq_bench.stats.intervals import Estimate, crossed_rows, crossed_t, mean_ci_t
from shiq_bench.stats.ranking import ALPHA, against_best, winner
from shiq_bench.stats.tests import paired_p, sign_flip_p, t_p

Generator = np.random.Generator
Draw = Callable[[Generator, tuple[int, int, int]], np.ndarray]


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a seeds x prompts matrix: between seeds, between prompts, of what is left."""

    name: str
    seeds: float
    prompts: float
    rest: float

    def draw(self, generator: Generator, seeds: int, prompts: int) -> np.ndarray:
        """A matrix whose true mean is 0. ``[S, P]``"""
        x = generator.normal(0, self.seeds, (seeds, 1)) + generator.normal(0, self.prompts, (1, prompts))
        return x + generator.normal(0, self.rest, (seeds, prompts))


SPREADS = (
    Spread("prompts differ", 0.05, 1.0, 0.5),
    Spread("both differ", 0.3, 1.0, 0.5),
    Spread("seeds differ", 1.0, 0.2, 0.5),
    Spread("seeds alone differ", 1.0, 0.0, 1.0),
    Spread("prompts alone differ", 0.0, 1.0, 1.0),
)


def covers(e: Estimate, truth: float = 0.0) -> bool:
    """Whether an interval holds the truth."""
    return e.low is not None and e.high is not None and e.low <= truth <= e.high


def t_coverage(seeds: int, replications: int, generator: Generator) -> float:
    """Share of t intervals over normal seeds that hold the mean."""
    return sum(covers(mean_ci_t(x.tolist())) for x in generator.normal(size=(replications, seeds))) / replications


def percentile_coverage(seeds: int, replications: int, generator: Generator) -> float:
    """The same of a percentile bootstrap over seeds."""
    hits = 0
    for x in generator.normal(size=(replications, seeds)):
        means = x[generator.integers(0, seeds, (400, seeds))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        hits += bool(low <= 0 <= high)
    return hits / replications


def crossed_coverage(spread: Spread, seeds: int, prompts: int, replications: int, generator: Generator) -> float:
    """Share of variance-component t intervals that hold the mean of seeds and prompts."""
    return sum(covers(crossed_t(spread.draw(generator, seeds, prompts))) for _ in range(replications)) / replications


def nested_coverage(spread: Spread, seeds: int, prompts: int, replications: int, generator: Generator) -> float:
    """The same where prompts are resampled afresh within each seed, as though they were not shared."""
    hits = 0
    for _ in range(replications):
        x = spread.draw(generator, seeds, prompts)
        rows = generator.integers(0, seeds, (400, seeds, 1))
        means = x[rows, generator.integers(0, prompts, (400, seeds, prompts))].mean(axis=(1, 2))
        low, high = np.quantile(means, [0.025, 0.975])
        hits += bool(low <= 0 <= high)
    return hits / replications


def contradictions(spread: Spread, seeds: int, prompts: int, replications: int, generator: Generator) -> np.ndarray:
    """Share of differences whose p is below 5% though the interval holds 0, or the reverse.

    Returns:
        For the p of the interval's own procedure over seeds and prompts, the same over seeds alone, and for the
        sign-flip test of seeds beside the former interval. ``[3]``
    """
    hits = np.zeros(3)
    for _ in range(replications):
        x = spread.draw(generator, seeds, prompts) + 0.3
        means = x.mean(axis=1).tolist()
        crossed, alone = crossed_t(x), mean_ci_t(means)
        for i, (e, p) in enumerate(
            ((crossed, paired_p(crossed, means)), (alone, paired_p(alone, means)), (crossed, sign_flip_p(means)))
        ):
            hits[i] += (p is not None and p < ALPHA) == covers(e)
    return hits / replications


def _episodes(values: np.ndarray, trials: np.ndarray | None = None) -> list[dict[str, float | str]]:
    """Examples of one evaluation, an answer a prompt. ``[P]`` each"""
    found: list[dict[str, float | str]] = [{"prompt_id": str(p), "x": float(v)} for p, v in enumerate(values)]
    return found if trials is None else [e | {"x/n": float(m)} for e, m in zip(found, trials, strict=True)]


def ratio_coverage(
    spread: float, seeds: int, prompts: int, replications: int, generator: Generator
) -> tuple[float, float]:
    """Coverage of a rate over trials, such as turn success: over seeds and prompts, and over seeds alone.

    A prompt has 1 to 6 turns, and those of more turns are harder, so that the rate is not the mean of prompts'.

    Args:
        spread: standard deviation of the chance of success between seeds.
    """
    turns = np.arange(1, 7)
    truth = float((turns * (0.7 - 0.06 * turns)).sum() / turns.sum())
    crossed = alone = 0
    for _ in range(replications):
        trials = generator.integers(1, 7, prompts)
        chance = 0.7 - 0.06 * trials + generator.uniform(-0.25, 0.25, prompts)
        lucky = generator.normal(0, spread, (seeds, 1))
        passed = generator.binomial(trials, np.clip(chance + lucky, 0, 1), (seeds, prompts))
        found = crossed_rows([linearised(_episodes(x, trials), "x") for x in passed])
        assert found is not None
        crossed += covers(found, truth)
        alone += covers(mean_ci_t(float(x.sum() / trials.sum()) for x in passed), truth)
    return crossed / replications, alone / replications


def reference_errors(
    spread: Spread, seeds: int, prompts: int, replications: int, generator: Generator
) -> tuple[float, float, float, float]:
    """Seeds of a policy that is the reference's equal, minus one evaluation of the reference.

    Returns:
        Coverage of 0 and share of p below 5%, over seeds and prompts, and then over seeds alone.
    """
    hits = np.zeros(4)
    for _ in range(replications):
        hard = generator.normal(0, spread.prompts, prompts)
        begun = hard + generator.normal(0, spread.rest, prompts)  # the reference is one policy, without a seed's luck
        lucky = generator.normal(0, spread.seeds, (seeds, 1))
        ended = hard + lucky + generator.normal(0, spread.rest, (seeds, prompts))
        crossed = crossed_rows([linearised_difference(_episodes(x), _episodes(begun), "x") for x in ended])
        assert crossed is not None
        means = (ended - begun).mean(axis=1).tolist()
        p, alone = t_p(crossed), sign_flip_p(means)
        hits += [covers(crossed), p is not None and p < ALPHA, covers(mean_ci_t(means)), (alone or 1.0) < ALPHA]
    return tuple((hits / replications).tolist())


def false_best(draw: Draw, methods: int, seeds: int, replications: int, generator: Generator) -> float:
    """Share of rows of equal methods in which some method is told from the best of them."""
    rows = draw(generator, (replications, methods, seeds))
    hits = 0
    for row in rows:
        tests = against_best({f"m{i}": dict(enumerate(by_seed.tolist())) for i, by_seed in enumerate(row)})
        hits += any(t.adjusted is not None and t.adjusted < ALPHA for t in tests.values())
    return hits / replications


def _skewed(generator: Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Equal means, one method with a long lower tail among quiet ones."""
    x = 0.1 * generator.normal(size=shape)
    x[:, 0] = 1 - generator.exponential(size=x[:, 0].shape)
    return x


def _first(shape: tuple[int, int, int], first: float, others: float) -> np.ndarray:
    """One number for the first method and another for the rest. ``[k, 1]``"""
    return np.where(np.arange(shape[1]) == 0, first, others)[:, None]


def _two_best(generator: Generator, shape: tuple[int, int, int]) -> np.ndarray:
    return generator.normal(size=shape) - np.where(np.arange(shape[1]) > 1, 5.0, 0.0)[:, None]


#: Rows of methods that are equal, ``[R, k, S]``; the last one in their means alone.
EQUAL: dict[str, Draw] = {
    "normal": lambda g, shape: g.normal(size=shape),
    "normal, seeds shared": lambda g, shape: g.normal(size=shape) + 2 * g.normal(size=(shape[0], 1, shape[2])),
    "exponential": lambda g, shape: g.exponential(size=shape),
    "one noisy (x5)": lambda g, shape: g.normal(size=shape) * _first(shape, 5.0, 1.0),
    "two best, rest far below": _two_best,
    "rate of 1 in 40": lambda g, shape: g.binomial(40, 0.025, size=shape) / 40,
    "one skewed, means equal": _skewed,
}


def false_marks(draw: Draw, methods: int, seeds: int, replications: int, generator: Generator) -> tuple[float, float]:
    """Share of rows of equal methods in which the t interval alone, and the whole rule, mark a best one."""
    x = draw(generator, (replications, methods, seeds))
    order = np.argsort(-x.mean(axis=2), axis=1)
    first, second = (np.take_along_axis(x, order[:, i, None, None], axis=1)[:, 0] for i in (0, 1))  # [R, S]
    lead = first - second
    half = stdtrit(seeds - 1, 0.975) * lead.std(axis=1, ddof=1) / np.sqrt(seeds)
    alone = lead.mean(axis=1) - half > 1e-12
    # Only rows that the interval marks can be marked by the rule; of the rest, a few are looked at all the same.
    looked_at = np.flatnonzero(alone | (np.arange(replications) < 50))
    marked = [_marked(x[i]) for i in looked_at]
    assert not any(m and not alone[i] for m, i in zip(marked, looked_at, strict=True))
    return float(alone.mean()), sum(marked) / replications


def _marked(row: np.ndarray) -> bool:
    return winner({f"m{i}": dict(enumerate(by_seed.tolist())) for i, by_seed in enumerate(row)}) is not None


def across_coverage(tasks: int, seeds: int, replications: int, generator: Generator) -> tuple[float, float]:
    """Coverage of the interquartile mean's interval (truth 0) and of the probability of improvement's (truth 1/2)."""
    iqm = better = 0
    for _ in range(replications):
        x, y = ({str(i): row for i, row in enumerate(generator.normal(size=(tasks, seeds)))} for _ in range(2))
        iqm += covers(interquartile_mean(x, generator, 400))
        better += covers(probability_of_improvement(x, y, generator, 400), 0.5)
    return iqm / replications, better / replications


def report(scale: float = 1.0) -> Iterator[str]:
    """The table that is printed, line by line."""
    generator, many, few = np.random.default_rng(0), int(20_000 * scale), int(2_000 * scale)
    yield f"coverage of 95% intervals, % ({few} to {many} replications: standard error up to 0.5)"
    for n in (3, 6, 10, 20):
        t, bootstrap = t_coverage(n, many, generator), percentile_coverage(n, few, generator)
        yield f"  mean of {n:2} normal seeds: t {100 * t:.1f}, percentile bootstrap {100 * bootstrap:.1f}"
    for seeds in (6, 10, 20):
        for prompts in (40, 200):
            for spread in SPREADS:
                given = (spread, seeds, prompts)
                t = crossed_coverage(*given, few, generator)
                yield f"  {seeds:2} seeds x {prompts:3} prompts, {spread.name:20}: crossed t {100 * t:.1f}"
    nested = nested_coverage(SPREADS[0], 6, 40, few // 2, generator)
    yield f"   6 seeds x  40 prompts, {SPREADS[0].name:20}: nested bootstrap {100 * nested:.1f}"
    for tasks in (1, 3, 5, 10):
        iqm, better = across_coverage(tasks, 6, few // 2, generator)
        yield f"  {tasks:2} tasks x 6 seeds: interquartile mean {100 * iqm:.1f}, improvement {100 * better:.1f}"
    for luck in (0.0, 0.02, 0.1):
        crossed, alone = ratio_coverage(luck, 6, 40, few // 2, generator)
        yield (
            f"   6 seeds x  40 prompts, rate over turns, seeds differ by {luck}: over seeds and prompts "
            f"{100 * crossed:.1f}, over seeds alone {100 * alone:.1f}"
        )
    yield f"minus the reference, policies its equal, % ({few // 2} replications): covers 0, p below 5%"
    for spread in (*SPREADS, Spread("nothing differs", 0.0, 0.0, 1.0)):
        for seeds in (6, 10):
            c, p, ca, pa = (100 * r for r in reference_errors(spread, seeds, 40, few // 2, generator))
            yield (
                f"  {spread.name:20} {seeds:2} seeds: over seeds and prompts {c:.1f}, {p:.1f}; over seeds alone "
                f"{ca:.1f}, {pa:.1f}"
            )
    yield f"p and interval that contradict each other, % ({few // 2} replications)"
    for spread in SPREADS:
        own, seeds_own, flips = 100 * contradictions(spread, 6, 40, few // 2, generator)
        yield (
            f"  {spread.name:20}: t over seeds and prompts {own:.1f}, over seeds {seeds_own:.1f}; sign-flip over "
            f"seeds beside the interval over seeds and prompts {flips:.1f}"
        )
    yield f"rows of equal methods of which one is told from the best, % ({few} replications)"
    for seeds in (6, 10):
        rates = ", ".join(f"k={k} {100 * false_best(EQUAL['normal'], k, seeds, few, generator):.1f}" for k in (2, 4, 7))
        yield f"  {seeds:2} seeds: {rates}"
    yield f"rows of equal methods with a bold number, % ({many} replications): t interval alone -> with sign-flip"
    for name, draw in EQUAL.items():
        for seeds in (6, 10):
            found = [false_marks(draw, k, seeds, many, generator) for k in (2, 4, 7)]
            rates = ", ".join(
                f"k={k} {100 * a:.2f} -> {100 * b:.2f}" for k, (a, b) in zip((2, 4, 7), found, strict=True)
            )
            yield f"  {name:24} {seeds:2} seeds: {rates}"


if __name__ == "__main__":
    for line in report(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0):
        print(line, flush=True)
