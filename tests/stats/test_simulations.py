"""What intervals and bold numbers promise, kept: the simulations of ``simulations.py`` with fewer replications."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shiq_bench.stats.intervals import crossed_t
from shiq_bench.stats.ranking import against_best, winner
from tests.stats import simulations
from tests.stats.simulations import EQUAL, SPREADS


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.proof
@pytest.mark.parametrize("seeds", [6, 10, 20])
def test_t_intervals_cover(seeds: int) -> None:
    # The error of a share of 95% over 6,000 replications is 0.28 points.
    assert 0.93 < simulations.t_coverage(seeds, 6000, _rng(seeds)) < 0.97


@pytest.mark.proof
def test_a_percentile_bootstrap_of_six_seeds_does_not() -> None:
    assert simulations.percentile_coverage(6, 1000, _rng()) < 0.90


@pytest.mark.proof
@pytest.mark.parametrize("spread", SPREADS, ids=lambda s: s.name)
@pytest.mark.parametrize("seeds", [6, 10, 20])
def test_crossed_t_covers(spread: simulations.Spread, seeds: int) -> None:
    # Over 2,500 replications: 0.44 points.
    assert 0.93 < simulations.crossed_coverage(spread, seeds, 40, 2500, _rng(seeds)) < 0.975


@pytest.mark.proof
@pytest.mark.parametrize("spread", SPREADS, ids=lambda s: s.name)
def test_p_and_interval_never_contradict(spread: simulations.Spread) -> None:
    own, alone, flips = simulations.contradictions(spread, 6, 40, 1000, _rng())
    assert own == alone == 0 < flips, "the sign-flip test of seeds does, beside an interval over seeds and prompts"


@pytest.mark.proof
def test_nested_resampling_covers_too_little() -> None:
    assert simulations.nested_coverage(SPREADS[0], 6, 40, 150, _rng()) < 0.75


@pytest.mark.proof
@pytest.mark.parametrize("spread", [SPREADS[0], SPREADS[2], SPREADS[4]], ids=lambda s: s.name)
def test_differences_to_one_evaluation_of_the_reference_cover(spread: simulations.Spread) -> None:
    # Over 300 replications: 1.3 points.
    covered, false, _, _ = simulations.reference_errors(spread, 6, 40, 300, _rng(1))
    assert covered > 0.91 and false < 0.09


@pytest.mark.proof
def test_seeds_alone_do_not_cover_the_reference() -> None:
    _, _, covered, false = simulations.reference_errors(SPREADS[4], 6, 40, 200, _rng())
    assert covered < 0.75 and false > 0.15


@pytest.mark.proof
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_rates_over_trials_cover(spread: float) -> None:
    assert simulations.ratio_coverage(spread, 6, 40, 300, _rng(2))[0] > 0.91


@pytest.mark.proof
def test_rates_over_seeds_alone_do_not_cover() -> None:
    assert simulations.ratio_coverage(0.0, 6, 40, 200, _rng())[1] < 0.85


def test_where_methods_tie_for_the_best_there_is_none_to_test_against() -> None:
    equal, lower = dict.fromkeys(range(6), 0.0), dict.fromkeys(range(6), -1.0)
    assert against_best({"copg": equal, "dpo": equal}) == {}
    assert against_best({"copg": equal, "dpo": equal, "sft": lower}) == {}
    up, down = ({s: 0.1 * x for s, x in enumerate(order)} for order in ((1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1)))
    assert against_best({"a": up, "b": down}) == {}, "equal means, whatever the order they are added in"
    assert against_best({"copg": equal, "sft": lower})["sft"].p == 2 / 64


@pytest.mark.proof
def test_equal_methods_are_seldom_told_from_the_best() -> None:
    # Over 400 rows: 1.1 points. Holm over the comparisons with the best alone gives 11%.
    assert simulations.false_best(EQUAL["normal"], 7, 10, 400, _rng()) < 0.075


def test_the_best_leads_every_other_and_not_the_runner_up_alone() -> None:
    """A clear lead on the second by the mean, and on the third, who has no luck but on one seed, none."""
    first = {s: 1.0 + 0.01 * s for s in range(6)}
    second = {s: 0.9 + 0.01 * s for s in range(6)}
    third = {s: 1.2 + 0.01 * s for s in range(5)} | {5: -1.0}
    assert winner({"a": first, "b": second}) == "a"
    assert winner({"a": first, "b": second, "c": third}) is None
    assert winner({"a": first, "b": second, "c": {0: 9.0, 1: 9.0}}) == "a", "two seeds rank nowhere"
    assert set(against_best({"a": first, "b": second, "c": {0: 9.0}})) == {"b", "c"}


def test_crossed_t_by_hand() -> None:
    """x = [[0, 2], [2, 6]]: A = 2 var(1, 4) = 9, B = 2 var(1, 4) = 9, E = (1/2)^2 * 4 = 1."""
    got = crossed_t([[0.0, 2.0], [2.0, 6.0]])
    assert got.mean == 2.5 and got.stderr == pytest.approx(((9 + 9 - 1) / 4) ** 0.5)
    # 17^2 / (81 + 81 + 1) = 1.77 degrees of freedom.
    assert got.half == pytest.approx(stats.t.ppf(0.975, 17**2 / 163) * got.stderr)
    assert crossed_t([[1.0, 2.0]]).low is None
    assert crossed_t([[1.0, 1.0], [1.0, 1.0]]).stderr == 0.0
    with pytest.raises(ValueError, match="complete"):
        crossed_t([[1.0, float("nan")], [1.0, 1.0]])


@pytest.mark.proof
@pytest.mark.parametrize("methods", [2, 4, 7])
@pytest.mark.parametrize("seeds", [6, 10])
@pytest.mark.parametrize("name", ["normal", "one noisy (x5)", "two best, rest far below", "rate of 1 in 40"])
def test_bold_numbers_of_equal_methods_are_rare(name: str, seeds: int, methods: int) -> None:
    # At 5%, over 4,000 rows, the error is 0.34 points.
    assert simulations.false_marks(EQUAL[name], methods, seeds, 4000, _rng(methods))[1] <= 0.055


def test_a_clear_winner_is_found() -> None:
    found = 0
    for generator in map(_rng, range(100)):
        x = generator.normal(size=(4, 6)) + np.array([4.0, 0, 0, 0])[:, None]
        found += winner({f"m{i}": dict(enumerate(row.tolist())) for i, row in enumerate(x)}) == "m0"
    assert found > 80


def test_nobody_wins_by_absence() -> None:
    six = {s: 1.0 + 0.1 * s for s in range(6)}
    assert winner({"a": six}) is None
    assert winner({"a": six, "b": {}}) is None
    assert winner({"a": six, "b": {s + 6: 0.0 for s in range(6)}}) is None, "no seed in common"
    assert winner({"a": six, "b": {s: 0.0 for s in range(6)}}) == "a"
    assert winner({"a": six, "b": {s: 0.0 for s in range(5)}}) is None, "five in common"
