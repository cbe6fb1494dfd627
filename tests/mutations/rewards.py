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
    Mutation(
        "score of an answer that shares its prompt read a token early",
        "shiq_bench/rewards/model.py",
        "nodes[n][-1]",
        "nodes[n][-2 if len(nodes[n]) > 6 else -1]",
        "tests/rewards/test_model.py::test_answers_that_share_a_prompt_score_as_they_do_alone[llama]",
    ),
]
