"""Bugs planted in ``models``."""

from __future__ import annotations

from tests.mutations.base import CHAT, Mutation

BUGS = [
    Mutation(
        "end-of-turn forced on a turn that has one",
        "shiq_bench/models/chat.py",
        "return ids if ended else [forced, *ids]",
        "return [forced, *ids]",
        f"{CHAT}::test_tiny_template",
    ),
    Mutation(
        "missing end-of-turn left missing",
        "shiq_bench/models/chat.py",
        "return ids if ended else [forced, *ids]",
        "return ids",
        f"{CHAT}::test_tiny_template",
    ),
    Mutation(
        "demonstrations without an end-of-turn",
        "shiq_bench/models/chat.py",
        "return [*self._encode(text), self.end_ids[0]]",
        "return self._encode(text)",
        f"{CHAT}::test_answers_come_back[f(x=1)]",
    ),
    Mutation(
        "parallel calls in another order",
        "shiq_bench/models/tool_calls.py",
        "return [call for call in calls if call.name not in format.idle] or None",
        "return [call for call in calls[::-1] if call.name not in format.idle] or None",
        "tests/models/test_reading_calls.py::test_several_calls_are_read_in_order",
    ),
]
