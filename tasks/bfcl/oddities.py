"""What is odd about the official data and checkers: reported, never mended."""

from __future__ import annotations

#: Entries that no answer satisfies, and why.
UNSATISFIABLE = {
    "java_36": "the accepted list mixes types, and the type check wants one type of all its items",
    "java_65": "the accepted list mixes types, and the type check wants one type of all its items",
    "live_simple_106-63-0": "no value is accepted for some required arguments",
    "live_simple_112-68-0": "no value is accepted for some required arguments",
    "live_multiple_862-181-3": "the answer must have journey_start_time, which the function has not",
    "live_multiple_964-207-0": "the answer must have question, where the function has statement",
    "multi_turn_base_154": "5 turns and 6 answers: the counts never agree",
}

#: Calls are matched greedily: of several right orders only some pass.
ORDER_DEPENDENT = ("parallel_96", "parallel_178", "parallel_180")

GAMED = (
    "The official checker skips a turn whose ground truth is to make no call, so it forgives calls there. In "
    "miss_func and miss_param the right move in such a turn is to say that something is missing.",
    "The official verdict is computed as it stands. The metric `gamed` is the share of entries that pass it although "
    "a call was made in such a turn: an accuracy that rises together with it is not skill.",
)

SINGLE_TURN = (
    "Strings are compared without case and without the characters space , . / - _ * ^ (so 1.5 equals 15).",
    "A model that never calls anything scores 19.73% overall: it is right wherever no call is wanted.",
)

MULTI_TURN = (
    "Three turns (one of 167, two of 180) have no ground truth: the official checker skips them.",
    "verify_traveler_information depends on today's date.",
    "Extra read-only calls, and positional arguments (the official decoder drops them), go unpunished.",
    "A dialogue may take one step more than the limit, and a forced end in its last turn is no fault officially.",
)

RETOLD = (
    "The four multi-turn categories retell the same 200 scenarios: intervals of group scores say so, those of metrics "
    "over all entries count prompts and are too narrow."
)

REFUSED_CALLS = (
    "Arithmetic, bare names and nested calls are refused, and counted; officially they run or return an error."
)
REFUSED_ANSWERS = "Arithmetic in an argument is refused, and counted; officially it is worked out."

HELD_OUT = (
    "Tools of a template's own format are fixed when a dialogue opens: held-out functions arrive in the message, where "
    "the official loop rewrites the list of tools."
)
