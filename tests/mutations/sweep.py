"""Bugs planted in ``sweep`` and ``studies``."""

from __future__ import annotations

from tests.mutations.base import STUDY, TUNE, WORKER, Mutation

BUGS = [
    Mutation(
        "what failed is tried again unasked",
        "shiq_bench/sweep/worker.py",
        'return record.status == "done" or not options.retry',
        'return record.status == "done"',
        f"{WORKER}::test_what_failed_is_tried_again_once_and_only_when_asked[failed]",
    ),
    Mutation(
        "what diverged is chosen by the rest",
        "shiq_bench/sweep/tuning.py",
        'if best is None or any(e.get("diverged") for e in best.examples):',
        "if best is None:",
        f"{TUNE}::test_who_diverged_somewhere_is_not_chosen_for_where_it_did_not",
    ),
    Mutation(
        "the worst candidate is chosen",
        "shiq_bench/sweep/tuning.py",
        'sign = -1 if metric.better == "lower" else 1',
        'sign = 1 if metric.better == "lower" else -1',
        f"{TUNE}::test_the_best_on_validation_is_chosen_and_everything_is_kept",
    ),
    Mutation(
        "tuned on the instances that are reported",
        "shiq_bench/sweep/tuning.py",
        "range(max(seeds) + 1, max(seeds) + 1 + len(seeds))",
        "range(min(seeds), min(seeds) + len(seeds))",
        f"{TUNE}::test_tables_are_validated_on_instances_behind_the_reported_ones",
    ),
    Mutation(
        "a study runs again, unasked, what other code has finished",
        "shiq_bench/studies/study.py",
        'wanted = ("missing", "stale") if fresh else ("missing",)',
        'wanted = ("missing", "stale")',
        f"{STUDY}::test_runs_of_other_code_are_not_mixed_unasked",
    ),
    Mutation(
        "a study draws an old result where the new run failed",
        "shiq_bench/studies/study.py",
        "replace(trial, record=None, problem=problem) if (problem := problems.get(trial.run_id)) else trial",
        "trial",
        f"{STUDY}::test_a_failing_cell_is_a_line_and_the_rest_goes_on",
    ),
]
