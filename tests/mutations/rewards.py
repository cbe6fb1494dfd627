"""Bugs planted in ``rewards``."""

from __future__ import annotations

from tests.mutations.base import FEEDBACK, Mutation

BUGS = [
    Mutation(
        "reward model fitted to the wrong order",
        "shiq_bench/rewards/fit.py",
        "-logsigmoid(chosen - rejected)",
        "-logsigmoid(rejected - chosen)",
        f"{FEEDBACK}::test_a_reward_model_pays_fresh_answers_and_orders_stored_ones",
    ),
]
