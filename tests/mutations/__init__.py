"""Planted bugs by room, each with the one test that has to catch it; ``tests/test_mutations.py`` plants them in a copy.

A refactoring that moves a text moves it here too: one that is not found exactly once is an error.
"""

from __future__ import annotations

from tests.mutations import (
    algorithms,
    api,
    data,
    generation,
    models,
    records,
    report,
    rewards,
    runs,
    stats,
    sweep,
    tabular,
    tasks,
    training,
)
from tests.mutations.base import Mutation

ROOMS = (
    algorithms, api, data, generation, models, records, report, rewards, runs, stats, sweep,
    tabular, tasks, training,
)  # fmt: skip
MUTATIONS: list[Mutation] = [bug for room in ROOMS for bug in room.BUGS]

__all__ = ["MUTATIONS", "Mutation"]
