"""Bugs planted in ``tabular``."""

from __future__ import annotations

from tests.mutations.base import EXACT, HEADS, ONPOLICY, RECORDING, VALUE_LEARNING, Mutation

BUGS = [
    Mutation(
        "soft optimum without the reference",
        "shiq_bench/tabular/exact.py",
        "scores = log_rho[rows] + (world.rewards[rows]",
        "scores = (world.rewards[rows]",
        f"{EXACT}::test_soft_optimum_is_the_tilted_reference[tree-0.1]",
    ),
    Mutation(
        "KL the other way round",
        "shiq_bench/tabular/exact.py",
        "p * (log_p - log_q)",
        "np.exp(log_q) * (log_q - log_p)",
        f"{EXACT}::test_expectations_agree_with_enumeration[tree]",
    ),
    Mutation(
        "oracle's expectile on the wrong side",
        "shiq_bench/tabular/solvers.py",
        "np.where(values < v, 1 - expectile, expectile)",
        "np.where(values > v, 1 - expectile, expectile)",
        f"{VALUE_LEARNING}::test_expectile_backup_meets_its_conditions[tree-1.0-0.7-0.0]",
    ),
    Mutation(
        "oracle ignores the behaviour's floor",
        "shiq_bench/tabular/exact.py",
        "proposed = (log_mu >= np.log(floor)) if floor > 0 else (mu > 0)",
        "proposed = mu > 0",
        f"{VALUE_LEARNING}::test_behaviour_backup_is_where_its_operator_stays[tree-0.9-0.21]",
    ),
    Mutation(
        "target of tables never updated",
        "shiq_bench/tabular/training.py",
        "table.lerp_(trained[name], need_target.tau)",
        "pass",
        f"{HEADS}::test_a_tables_target_and_reference_do_the_same",
    ),
    Mutation(
        "reference of tables never refreshed",
        "shiq_bench/tabular/training.py",
        'fixed["reference"] = trained["logits"].clone()',
        "pass",
        f"{HEADS}::test_a_tables_target_and_reference_do_the_same",
    ),
    Mutation(
        "tables ignore the behaviour's floor",
        "shiq_bench/tabular/training.py",
        "math.log(max(ratio.floor, 10 * LEAST))",
        "math.log(10 * LEAST)",
        f"{HEADS}::test_max_ratio_of_a_table[0.3-0.5]",
    ),
    Mutation(
        "enumerated data of a stale table",
        "shiq_bench/tabular/training.py",
        'data = enumerated_fresh(tables, trained["logits"])',
        'data = enumerated_fresh(tables, fixed["reference"])',
        f"{ONPOLICY}::test_data_of_tables_come_from_the_tables_of_the_update[enumerated]",
    ),
    Mutation(
        "samples of a stale table",
        "shiq_bench/tabular/training.py",
        'data = sampled_fresh(tables, trained["logits"], draws, generator)',
        'data = sampled_fresh(tables, fixed["reference"], draws, generator)',
        f"{ONPOLICY}::test_data_of_tables_come_from_the_tables_of_the_update[sampled]",
    ),
    Mutation(
        "learning rate of tables one update ahead",
        "shiq_bench/tabular/training.py",
        "_factor(self._done, spec)",
        "_factor(self._done + 1, spec)",
        f"{RECORDING}::test_updates_are_those_of_torch",
    ),
    Mutation(
        "recording changes a constant at every playing",
        "shiq_bench/tabular/recording.py",
        "        if not recorder.spoilt:\n",
        "        if folding:\n",
        f"{RECORDING}::test_what_depends_on_nothing_is_computed_once_unless_it_is_changed",
    ),
]
