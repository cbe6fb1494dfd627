"""Bugs planted in ``stats``."""

from __future__ import annotations

from tests.mutations.base import ACROSS, COMPARISON, SIMULATIONS, Mutation

BUGS = [
    Mutation(
        "length left uncontrolled",
        "shiq_bench/stats/clustered.py",
        "np.tanh(g / spread) if spread else np.zeros_like(g)",
        "np.zeros_like(g)",
        "tests/stats/test_statistics.py::test_length_control_recovers_the_rate_at_equal_length",
    ),
    Mutation(
        "interquartile mean cuts a tenth",
        "shiq_bench/stats/aggregates.py",
        "cut = x.shape[-1] // 4",
        "cut = x.shape[-1] // 10",
        f"{ACROSS}::test_interquartile_mean_is_scipys_trimmed_mean[6]",
    ),
    Mutation(
        "ties count for nobody",
        "shiq_bench/stats/aggregates.py",
        "return (x[:, None] > y) + 0.5 * (x[:, None] == y)",
        "return (x[:, None] > y) + 0.0 * (x[:, None] == y)",
        f"{ACROSS}::test_probability_of_improvement_by_hand",
    ),
    Mutation(
        "seeds of the other method are not resampled",
        "shiq_bench/stats/aggregates.py",
        "right = _counts(b[task].size, generator, resamples)",
        "right = np.ones((resamples, b[task].size))",
        f"{ACROSS}::test_both_sides_are_resampled",
    ),
    Mutation(
        "crossed t interval of seeds alone",
        "shiq_bench/stats/intervals.py",
        "variance = max(a + b - e, a, b) if np.ptp(x) else 0.0",
        "variance = a if np.ptp(x) else 0.0",
        f"{SIMULATIONS}::test_crossed_t_covers[20-prompts differ]",
    ),
    Mutation(
        "best of the methods without the exact test",
        "shiq_bench/stats/ranking.py",
        "return p is not None and p < ALPHA",
        "return True",
        f"{COMPARISON}::test_a_lead_that_one_seed_contradicts_is_not_bold_at_six",
    ),
    Mutation(
        "best of the methods by its lead over the worst",
        "shiq_bench/stats/ranking.py",
        "for other in order[1:]):",
        "for other in order[-1:]):",
        f"{SIMULATIONS}::test_bold_numbers_of_equal_methods_are_rare[normal-10-7]",
    ),
    Mutation(
        "best of the methods by its lead over the runner-up",
        "shiq_bench/stats/ranking.py",
        "for other in order[1:]):",
        "for other in order[1:2]):",
        f"{SIMULATIONS}::test_the_best_leads_every_other_and_not_the_runner_up_alone",
    ),
    Mutation(
        "p against the best with Holm over those comparisons alone",
        "shiq_bench/stats/ranking.py",
        "every = [*pairs, *combinations([k for k in scores if k != best], 2)]",
        "every = pairs",
        f"{COMPARISON}::test_p_is_exact_over_paired_seeds_and_adjusted_over_all_pairs_of_methods",
    ),
    Mutation(
        "a single seed is the best of its row",
        "shiq_bench/stats/ranking.py",
        "order = ranked(scores, 2)",
        "order = ranked(scores)",
        f"{COMPARISON}::test_who_lost_runs_is_not_bold_and_a_lucky_survivor_is_not_the_best",
    ),
    Mutation(
        "prompts of a rate by their own rates",
        "shiq_bench/stats/clustered.py",
        "rate + len(influence) * e for g, e in influence.items()}",
        "rate + e for g, e in influence.items()}",
        f"{COMPARISON}::test_several_seeds_are_a_t_interval_over_them_and_their_prompts",
    ),
    Mutation(
        "degrees of freedom of seeds alone",
        "shiq_bench/stats/intervals.py",
        "return self.units - 1 if self.freedom is None else self.freedom",
        "return self.units - 1",
        f"{COMPARISON}::test_differences_to_the_reference_are_tested_over_seeds_and_prompts",
    ),
    Mutation(
        "p by another procedure than the interval beside it",
        "shiq_bench/stats/tests.py",
        "return sign_p(differences) if e.stderr == 0 else t_p(e)",
        "return sign_p(differences)",
        f"{SIMULATIONS}::test_p_and_interval_never_contradict[both differ]",
    ),
    Mutation(
        "the first of equal methods is the best",
        "shiq_bench/stats/ranking.py",
        "isclose(order[0][0], order[1][0], rel_tol=1e-12)",
        "False",
        f"{SIMULATIONS}::test_where_methods_tie_for_the_best_there_is_none_to_test_against",
    ),
]
