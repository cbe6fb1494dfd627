"""Planted bugs, each with the test that has to catch it. tests/test_mutations.py plants them one by one in a copy.

A refactoring that moves a text must move it here too: one that is not found exactly once is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

VALUES = "tests/algorithms/test_values.py"


@dataclass(frozen=True)
class Mutation:
    """One bug.

    Attributes:
        name: what is wrong, in a few words.
        file: where, from the project's root.
        old: text that occurs there exactly once.
        new: what stands there instead.
        test: node id of the one test named to catch it, by a failed assertion.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    Mutation(
        "sign of w",
        "shiq_bench/ops.py",
        "return stats.policy.logp - reference_of(stats).logp",
        "return reference_of(stats).logp - stats.policy.logp",
        f"{VALUES}::test_shiq_multi_step",
    ),
]
