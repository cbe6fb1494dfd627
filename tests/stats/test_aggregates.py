"""Statistics over several tasks, against scipy and against the published definitions worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shiq_bench.stats.aggregates import interquartile_mean, performance_profile, probability_of_improvement


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _scores(shift: float, seeds: int = 6, tasks: int = 5) -> dict[str, np.ndarray]:
    generator = _rng(int(100 * shift) + seeds)
    return {f"task{i}": generator.normal(i + shift, 1, seeds).round(1) for i in range(tasks)}


@pytest.mark.parametrize("seeds", [1, 3, 4, 6, 7])
def test_interquartile_mean_is_scipys_trimmed_mean(seeds: int) -> None:
    scores = _scores(0.3, seeds)
    got = interquartile_mean(scores, _rng())
    assert got.mean == pytest.approx(stats.trim_mean(np.concatenate(list(scores.values())), 0.25), abs=1e-12)
    assert got.n == got.units == 5 * seeds
    assert (got.low is None) == (seeds == 1)


def test_interquartile_mean_by_hand() -> None:
    """Eight runs, two cut off at either end: (3 + 4 + 5 + 6) / 4, whatever the outliers are."""
    got = interquartile_mean({"a": [1, 2, 3, 4], "b": [5, 6, 7, 1e9]}, _rng())
    assert got.mean == 4.5


def test_stratified_bootstrap_by_its_definition() -> None:
    """Seeds are drawn again within a task: with one level a task there is nothing to vary."""
    levels = {f"task{i}": [float(i)] * 6 for i in range(4)}
    got = interquartile_mean(levels, _rng())
    # Resampling all 24 runs together, or tasks, would vary.
    assert (got.low, got.high, got.stderr) == (got.mean, got.mean, 0.0)

    scores = _scores(0.0)
    got = interquartile_mean(scores, _rng(1), resamples=4000)
    means, generator = [], _rng(2)
    for _ in range(4000):
        drawn = [generator.choice(x, size=x.size, replace=True) for x in scores.values()]
        means.append(stats.trim_mean(np.concatenate(drawn), 0.25))
    assert [got.low, got.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    assert got.stderr == pytest.approx(np.std(means), rel=0.05)


def test_probability_of_improvement_is_mann_whitney_a_task() -> None:
    x, y = _scores(0.4, 6), _scores(0.0, 5)
    by_task = [stats.mannwhitneyu(x[t], y[t]).statistic / (6 * 5) for t in x]
    got = probability_of_improvement(x, y, _rng())
    assert got.mean == pytest.approx(np.mean(by_task), abs=1e-12)
    other = probability_of_improvement(y, x, _rng())
    assert other.mean == pytest.approx(1 - got.mean)
    assert got.n == 5 * 11


def test_probability_of_improvement_by_hand() -> None:
    """Pairs of a: 2 > 1, 2 = 2, 3 > 1, 3 > 2: 3.5 of 4; of b: none of 2; a third task only one of them has."""
    x = {"a": [2.0, 3.0], "b": [0.0], "c": [1.0]}
    y = {"a": [1.0, 2.0], "b": [1.0, 1.0]}
    got = probability_of_improvement(x, y, _rng())
    assert got.mean == (3.5 / 4 + 0) / 2
    assert got.low is None, "one seed of b says nothing of its spread"
    assert got.n == 2 + 2 + 1 + 2


def test_both_sides_are_resampled() -> None:
    x, y = _scores(0.4, 6, 3), _scores(0.0, 6, 3)
    got = probability_of_improvement(x, y, _rng(3), resamples=4000)
    found, generator = [], _rng(4)
    for _ in range(2000):
        drawn = [(generator.choice(x[t], 6)[:, None], generator.choice(y[t], 6)) for t in x]
        found.append(np.mean([((a > b) + 0.5 * (a == b)).mean() for a, b in drawn]))
    assert [got.low, got.high] == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.03)


def test_profile_by_hand() -> None:
    """Above 0.5: 2 of 2 and 1 of 4; above 1: 1 of 2 (1 itself is not) and none."""
    got = performance_profile({"a": [1.0, 2.0], "b": [0.0, 0.0, 0.5, 1.0]}, [0.5, 1.0, 3.0], _rng())
    assert got is not None
    assert got.share == ((1 + 0.25) / 2, (0.5 + 0) / 2, 0.0)
    assert got.low is not None and got.high is not None
    assert all(a <= b <= c for a, b, c in zip(got.low, got.share, got.high, strict=True))
    # Nobody is above 3, in any resample; and above 0.5 the first task's two runs always are.
    assert got.high[2] == 0.0 and got.low[0] >= 0.5


def test_profile_band_by_its_definition() -> None:
    scores, tau = _scores(0.2), np.linspace(-1, 5, 7)
    got = performance_profile(scores, list(tau), _rng(5), resamples=4000)
    assert got is not None and got.low is not None and got.high is not None
    found, generator = [], _rng(6)
    for _ in range(3000):
        drawn = np.concatenate([generator.choice(x, x.size) for x in scores.values()])
        found.append([(drawn > t).mean() for t in tau])
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    assert got.low == pytest.approx(low, abs=0.035) and got.high == pytest.approx(high, abs=0.035)
    assert got.share == pytest.approx([(np.concatenate(list(scores.values())) > t).mean() for t in tau])


def test_undefined_is_none_and_draws_are_the_callers() -> None:
    assert interquartile_mean({}, _rng()).mean is None
    assert interquartile_mean({"a": []}, _rng()).mean is None
    assert probability_of_improvement({"a": [1.0]}, {"b": [1.0]}, _rng()).mean is None
    assert performance_profile({}, [0.0], _rng()) is None
    one_seed = performance_profile({"a": [1.0]}, [0.0], _rng())
    assert one_seed is not None and one_seed.low is None
    scores = _scores(0.1)
    assert interquartile_mean(scores, _rng(7)) == interquartile_mean(scores, _rng(7))
    assert interquartile_mean(scores, _rng(7)) != interquartile_mean(scores, _rng(8))


def test_bad_scores() -> None:
    with pytest.raises(ValueError, match="b: expected one finite score a seed"):
        interquartile_mean({"a": [1.0], "b": [float("nan")]}, _rng())
    with pytest.raises(ValueError, match="ascending"):
        performance_profile({"a": [1.0]}, [1.0, 0.0], _rng())
