"""Bugs planted in ``tasks``."""

from __future__ import annotations

from tests.mutations.base import BFCL, CATEGORIES, FEEDBACK, Mutation

BUGS = [
    Mutation(
        "reward of a turn at the end of its first answer",
        "tasks/bfcl/dialogue.py",
        "if completion.token_ids:",
        "if completion.token_ids and self.turn not in self.turn_end:",
        f"{BFCL}::test_credit_reaches_the_trajectory",
    ),
    Mutation(
        "cut answer taken for an ended one",
        "tasks/bfcl/dialogue.py",
        'self._ended = completion.finish == "stop"',
        "self._ended = True",
        f"{BFCL}::test_an_answer_cut_by_its_limit_is_taken_as_it_is",
    ),
    Mutation(
        "final reward paid as it is earned",
        "tasks/bfcl/__init__.py",
        'if self.reward == "turn":',
        "if self.reward:",
        f"{CATEGORIES}::test_final_reward_is_the_same_sum_paid_at_the_end",
    ),
    Mutation(
        "an entry that does not fit is right to say nothing",
        "tasks/bfcl/__init__.py",
        'UNFIT = {"valid": False, "error_type": "unfit", "partial": 0.0}',
        'UNFIT = {"valid": False, "error_type": "", "partial": 0.0}',
        f"{CATEGORIES}::test_an_entry_that_does_not_fit_is_counted_with_its_length",
    ),
    Mutation(
        "calls in an empty turn not counted",
        "tasks/bfcl/dialogue.py",
        "any(calls and not gold for",
        "any(calls and gold is None for",
        f"{CATEGORIES}::test_a_call_in_an_empty_turn_passes_and_is_counted",
    ),
    Mutation(
        "held-out functions offered from the start",
        "tasks/bfcl/data.py",
        'return [f for f in self.functions if f["name"] not in later]',
        "return [f for f in self.functions if later is not None]",
        f"{CATEGORIES}::test_held_out_functions_come_at_their_turn",
    ),
    Mutation(
        "calls in a model's reasoning judged",
        "tasks/bfcl/dialogue.py",
        "spoken = text.rpartition(THOUGHT)[2]",
        "spoken = text",
        f"{CATEGORIES}::test_reasoning_is_not_judged",
    ),
    Mutation(
        "live score unweighted",
        "tasks/bfcl/aggregate.py",
        'BY_ENTRIES = ("live_ast", "live")',
        'BY_ENTRIES = ("live_ast",)',
        "tests/tasks/test_bfcl_aggregate.py::test_scores_are_the_official_ones",
    ),
    Mutation(
        "state of a long context left to the next entry",
        "tasks/bfcl/official.py",
        "setattr(self._travel, name, copy.deepcopy(value))",
        "setattr(self._travel, name, value)",
        "tests/tasks/test_bfcl_differential.py::test_the_order_of_entries_does_not_matter",
    ),
    Mutation(
        "stored answers cut with their end of turn",
        "tasks/ultrafeedback/data.py",
        "    kept = tuple(ids[:limit])\n",
        "    kept = (*ids[: limit - 1], ids[-1])\n",
        f"{FEEDBACK}::test_stored_answers_end_as_sampled_ones_do[llama_tokenizer]",
    ),
    Mutation(
        "the rejected answer ranked first",
        "tasks/ultrafeedback/data.py",
        "Answer(t, float(1 - i), s)",
        "Answer(t, float(i), s)",
        f"{FEEDBACK}::test_every_schema_and_every_file_hold_the_same_questions[plain-jsonl]",
    ),
    Mutation(
        "wins against the reference by length",
        "tasks/ultrafeedback/judges.py",
        'wins = [beats(e["reward"], other["reward"]) for e, other in met]',
        'wins = [beats(e["details"]["characters"], other["details"]["characters"]) for e, other in met]',
        f"{FEEDBACK}::test_win_rates_by_hand",
    ),
]
