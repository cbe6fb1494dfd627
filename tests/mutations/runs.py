"""Bugs planted in ``runs``."""

from __future__ import annotations

from tests.mutations.base import ONPOLICY, RUN, WORKER, Mutation

BUGS = [
    Mutation(
        "fixed point of a table without unit reward scaling",
        "shiq_bench/runs/tabular.py",
        "replace(w, rewards=w.rewards / task.largest_return) if unit else w",
        "w",
        f"{RUN}::test_a_table_is_trained_on_unit_returns_and_judged_on_its_own",
    ),
    Mutation(
        "on-policy samples from stale weights",
        "shiq_bench/runs/context.py",
        "self._serving != folder or stale",
        "self._serving != folder",
        f"{ONPOLICY}::test_the_main_job_draws_from_the_weights_of_the_update",
    ),
    Mutation(
        "on-policy weights written once",
        "shiq_bench/runs/language_data.py",
        "        policy.model.save_pretrained(scratch)\n",
        "        if step == 0:\n            policy.model.save_pretrained(scratch)\n",
        f"{ONPOLICY}::test_the_main_job_draws_from_the_weights_of_the_update",
    ),
    Mutation(
        "a run is written that another process has",
        "shiq_bench/runs/context.py",
        "            self.lease.check()\n",
        "            pass\n",
        f"{WORKER}::test_a_lost_lease_ends_the_run_without_a_record",
    ),
    Mutation(
        "a lost run is said to have failed",
        "shiq_bench/runs/execute.py",
        "                if run.lease.held:",
        "                if True:",
        f"{WORKER}::test_a_lost_lease_ends_the_run_without_a_record",
    ),
    Mutation(
        "what was found before the claim decides",
        "shiq_bench/runs/execute.py",
        "if done := _earlier(run, resume, fresh) if needed() else run_store.load(run.folder):",
        "if done := _earlier(run, resume, fresh):",
        f"{WORKER}::test_a_claimed_run_that_is_needed_no_more_stays_as_it_is",
    ),
    Mutation(
        "whatever is there is replaced",
        "shiq_bench/runs/execute.py",
        'if not same and fresh == "foreign":',
        'if fresh == "foreign":',
        f"{WORKER}::test_what_this_code_left_is_gone_on_from",
    ),
    Mutation(
        "a sampler for every folder of weights",
        "shiq_bench/runs/context.py",
        "if self._generator is None:\n",
        "if self._serving != folder:\n",
        "tests/runs/test_openings.py::test_reference_data_and_policy_share_one_opening[more0-expected0]",
    ),
]
