"""Statistics against hand-derived values, scipy, and small seeded simulations of coverage."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from shiq_bench.stats.clustered import clustered_mean, length_controlled, paired_examples, summarise
from shiq_bench.stats.intervals import mean_ci_t, paired_difference, t_interval
from shiq_bench.stats.tests import (
    binomial_stderr,
    detectable,
    detectable_difference,
    holm,
    paired_p,
    sign_flip_name,
    sign_flip_p,
)


def test_t_interval_against_scipy() -> None:
    values = [0.31, 0.42, 0.38, 0.29, 0.51, 0.33]
    low, high = stats.t.interval(0.95, 5, loc=np.mean(values), scale=stats.sem(values))
    got = mean_ci_t(values)
    assert (got.low, got.high) == pytest.approx((low, high), abs=1e-12)
    assert (got.mean, got.stderr) == pytest.approx((np.mean(values), stats.sem(values)))
    assert (got.n, got.units) == (6, 6)
    assert got.half == pytest.approx((high - low) / 2)


def test_undefined_is_none_and_never_zero() -> None:
    empty = mean_ci_t([])
    assert (empty.mean, empty.stderr, empty.low, empty.high, empty.half, empty.n) == (None, None, None, None, None, 0)
    single = mean_ci_t([0.5, None, float("nan")])
    assert (single.mean, single.stderr, single.low, single.n) == (0.5, None, None, 1)
    assert t_interval(0.5, 0.1, 10, 1).stderr is None
    assert clustered_mean([1.0, 0.0], ["a", "a"]).stderr is None
    assert clustered_mean([], []).mean is None
    assert mean_ci_t([1.0, float("inf")]).mean is None
    assert sign_flip_p([]) is None


def test_equal_values_have_no_spread() -> None:
    assert mean_ci_t([0.1] * 7).stderr == 0.0
    assert clustered_mean([0.1] * 7, range(7)).stderr == 0.0


def test_clustered_mean_of_singletons_is_the_textbook_error() -> None:
    values = np.random.default_rng(0).normal(size=30).tolist()
    got = clustered_mean(values, range(30))
    assert got.mean == pytest.approx(np.mean(values))
    assert got.stderr == pytest.approx(stats.sem(values))


def test_clustered_mean_by_hand() -> None:
    # Two prompts of two episodes: mean 1/2; e = (1 - 1/2) + (1 - 1/2) = 1 and -1;
    # variance = 2/1 * (1 + 1) / 4^2 = 1/4. As four independent episodes it would be 1/12.
    got = clustered_mean([1, 1, 0, 0], ["a", "a", "b", "b"])
    assert (got.mean, got.stderr, got.n, got.units) == (0.5, 0.5, 4, 2)


def test_rate_by_hand() -> None:
    # 1 of 4 and 3 of 4: r = 4/8; e = 1 - 2 = -1 and 3 - 2 = 1; variance = 2/1 * 2 / 8^2 = 1/16.
    got = clustered_mean([1, 3], ["a", "b"], [4, 4])
    assert (got.mean, got.stderr, got.n, got.units) == (0.5, 0.25, 8, 2)
    # Unequal trials: r = 4/10, not the mean of 1/2 and 3/8; e = 1 - 0.8 and 3 - 3.2.
    got = clustered_mean([1, 3], ["a", "b"], [2, 8])
    assert got.mean == pytest.approx(0.4)
    assert got.stderr == pytest.approx(math.sqrt(2 * (0.2**2 + 0.2**2)) / 10)


def test_rate_error_agrees_with_the_spread_of_repeated_experiments() -> None:
    generator = np.random.default_rng(1)
    rates, errors = [], []
    for _ in range(600):
        trials = generator.integers(2, 7, size=60)
        skill = generator.beta(2, 3, size=60)
        got = clustered_mean(generator.binomial(trials, skill).tolist(), range(60), trials.tolist())
        assert got.mean is not None and got.stderr is not None
        rates.append(got.mean)
        errors.append(got.stderr)
    # The relative error of a standard deviation from 600 draws is 3%.
    assert np.mean(errors) == pytest.approx(np.std(rates), rel=0.1)


def test_clustered_mean_needs_one_cluster_each() -> None:
    with pytest.raises(ValueError, match="clusters"):
        clustered_mean([1, 2], ["a"])


def test_paired_difference_against_scipy() -> None:
    generator = np.random.default_rng(2)
    a = {f"p{i}": float(generator.normal()) for i in range(20)}
    b = {k: v - 0.3 + 0.1 * float(generator.normal()) for k, v in a.items()}
    got = paired_difference(a, {**b, "only in b": 100.0})
    ci = stats.ttest_rel(list(a.values()), [b[k] for k in a]).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((ci.low, ci.high))
    assert got.n == 20


def test_paired_examples_of_equal_episodes_is_the_paired_t() -> None:
    generator = np.random.default_rng(3)
    a = [{"prompt_id": p, "reward": float(generator.normal(p))} for p in range(9) for _ in range(4)]
    b = [{"prompt_id": p, "reward": float(generator.normal(p))} for p in range(9) for _ in range(4)]

    def by_prompt(examples: list[dict[str, float]]) -> dict[str, float]:
        return {str(p): float(np.mean([e["reward"] for e in examples if e["prompt_id"] == p])) for p in range(9)}

    want = paired_difference(by_prompt(a), by_prompt(b))
    got = paired_examples(a, b, "reward")
    assert (got.mean, got.stderr, got.low) == pytest.approx((want.mean, want.stderr, want.low))


def test_paired_examples_is_the_difference_of_the_rates_shown() -> None:
    a = [{"prompt_id": "x", "t": 2, "t/n": 2}, {"prompt_id": "y", "t": 1, "t/n": 5}]
    b = [{"prompt_id": "x", "t": 1, "t/n": 2}, {"prompt_id": "y", "t": 1, "t/n": 5}]
    got = paired_examples(a, b, "t")
    assert got.mean == pytest.approx(3 / 7 - 2 / 7)
    # d_x = (2 - 6/7)/7 - (1 - 4/7)/7 = 5/49, and d_y = -d_x.
    assert got.stderr == pytest.approx(math.sqrt(2 * 2 * (5 / 49) ** 2))
    assert paired_examples(a, [], "t").mean is None
    assert paired_examples(a, [{"prompt_id": "x"}], "t").n == 0


def test_summarise() -> None:
    examples: list[dict[str, Any]] = [
        {"prompt_id": "a", "reward": 1.0, "turns": 1, "turns/n": 2, "kl": float("nan"), "won": True},
        {"prompt_id": "b", "reward": None, "turns": 3, "turns/n": 4, "kl": None, "won": False, "details": {}},
        {"prompt_id": "b", "reward": 0.0, "turns": 0, "turns/n": 0, "won": True},
    ]
    got = summarise(examples, ["reward", "turns", "kl", "won", "absent"])
    assert got["reward"] == {"mean": 0.5, "n": 2, "stderr": 0.5}
    assert got["turns"]["n"] == 6
    assert got["turns"]["mean"] == pytest.approx(4 / 6)
    assert got["kl"] == got["absent"] == {"mean": None, "n": 0, "stderr": None}
    assert got["won"]["mean"] == pytest.approx(2 / 3)
    assert summarise([], ["reward"]) == {"reward": {"mean": None, "n": 0, "stderr": None}}


def test_summarise_does_not_hide_what_is_no_number() -> None:
    assert summarise([{"prompt_id": "a", "kl": math.inf}, {"prompt_id": "b", "kl": 1}], ["kl"])["kl"]["mean"] is None
    with pytest.raises(ValueError, match="'high' is no number"):
        summarise([{"prompt_id": "a", "reward": "high"}], ["reward"])


@pytest.mark.parametrize(("n", "least"), [(5, 0.0625), (6, 0.03125)])
def test_sign_flip_floor(n: int, least: float) -> None:
    assert sign_flip_p([0.1] * n) == least
    assert sign_flip_p([-0.1 * (i + 1) for i in range(n)]) == least


def test_sign_flip_against_scipy_and_by_enumeration() -> None:
    d = np.random.default_rng(4).normal(0.4, 1, size=9)
    patterns = np.array(list(itertools.product([1, -1], repeat=9)))
    assert sign_flip_p(d.tolist()) == (np.abs(patterns @ d) >= abs(d.sum()) - 1e-9).mean()
    scipy = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=math.inf)
    assert sign_flip_p(d.tolist()) == pytest.approx(scipy.pvalue)
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0


@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_sign_flip_in_halves_is_every_pattern(n: int) -> None:
    for d in (np.random.default_rng(n).normal(0.4, 1, n), np.random.default_rng(n).integers(-2, 3, n) / 10):
        patterns = np.array(list(itertools.product([1, -1], repeat=n)))
        assert sign_flip_p(d.tolist()) == pytest.approx((np.abs(patterns @ d) >= abs(d.sum()) - 1e-9).mean())


def test_a_sign_flip_test_is_called_exact_where_it_is() -> None:
    assert sign_flip_name([2, 20]) == "exact sign-flip"
    assert sign_flip_name([21]) == "sign-flip (100,000 random patterns)"
    assert sign_flip_name([20, 21]) == "sign-flip (exact up to 20, beyond 100,000 patterns)"


def test_sign_flip_by_draws() -> None:
    d = [*np.random.default_rng(5).normal(0.4, 1, size=18), 0.0, 0.0, 0.0]
    exact = sign_flip_p(d[:18])
    drawn = sign_flip_p(d, np.random.default_rng(6), draws=20_000)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 20_000))
    assert drawn == sign_flip_p(d, np.random.default_rng(6), draws=20_000)
    assert (sign_flip_p([1.0] * 40, np.random.default_rng(0), draws=100) or 0) > 0
    with pytest.raises(ValueError, match="generator"):
        sign_flip_p(d)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1, then made monotone: 0.03, 0.06, max(0.06, 0.04).
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_is_of_the_interval_beside_it() -> None:
    x = [0.1, 0.3, 0.2, 0.4]
    assert paired_p(mean_ci_t(x), x) == pytest.approx(stats.ttest_1samp(x, 0).pvalue)
    # All alike: no error, and so no t. Six of one sign are 2 / 2^6.
    assert paired_p(mean_ci_t([0.5] * 6), [0.5] * 6) == 2 / 64
    assert paired_p(mean_ci_t([0.0] * 6), [0.0] * 6) == 1.0
    assert paired_p(mean_ci_t([0.5]), [0.5]) is None


def test_minimum_detectable_effect() -> None:
    assert binomial_stderr(0.4, 200) == pytest.approx(0.0346, abs=1e-4)
    assert binomial_stderr(0.4, 40) == pytest.approx(0.0775, abs=1e-4)
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert detectable_difference(0.1) == pytest.approx(z * math.sqrt(2) * 0.1)
    paired = mean_ci_t([0.1, 0.3, 0.2, 0.4])
    assert paired.stderr is not None
    t = stats.t(3).ppf(0.975) + stats.t(3).ppf(0.8)
    assert detectable(paired) == pytest.approx(t * paired.stderr)
    assert detectable(mean_ci_t([0.1])) is None and detectable(mean_ci_t([0.1, 0.1])) is None


def test_length_control_recovers_the_rate_at_equal_length() -> None:
    """Answers 50 characters longer on average, and a judge that likes length: raw 73%, at equal length 57.4%."""
    rng, found, covered = np.random.default_rng(0), [], []
    truth = 1 / (1 + np.exp(-0.3))
    for _ in range(200):
        gaps = rng.normal(50, 100, 300)
        wins = (rng.random(300) < 1 / (1 + np.exp(-(0.3 + 2 * np.tanh(gaps / gaps.std()))))).astype(float)
        estimate = length_controlled(list(wins), list(gaps), range(300))
        assert estimate.mean is not None and estimate.low is not None and estimate.high is not None
        found.append(estimate.mean)
        covered.append(estimate.low <= truth <= estimate.high)
    assert np.mean(found) == pytest.approx(truth, abs=0.01)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_length_control_without_lengths_is_the_win_rate() -> None:
    """No gap at all says nothing about length; with many episodes the pseudo-observation is nothing either."""
    wins = [1.0, 0.0, 1.0, 0.5] * 500
    estimate = length_controlled(wins, [0.0] * 2000, [n // 2 for n in range(2000)])
    raw = clustered_mean(wins, [n // 2 for n in range(2000)])
    assert estimate.mean == pytest.approx(raw.mean, abs=1e-4) and estimate.units == 1000
    assert estimate.stderr == pytest.approx(raw.stderr, rel=1e-3)
    assert length_controlled([], [], []).mean is None
    assert length_controlled([1.0, 0.0], [3.0, 1.0], [0, 1]).mean is None, "no answer of theirs is as long"
    certain = length_controlled([1.0] * 10, list(range(10)), list(range(10)))
    assert certain.mean is not None and 0.9 < certain.mean < 1
    assert certain.stderr is None, "all won bounds nothing"
