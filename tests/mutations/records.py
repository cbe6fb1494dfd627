"""Bugs planted in ``records``."""

from __future__ import annotations

from tests.mutations.base import COMPARE, LEASES, LITERAL, Mutation

BUGS = [
    Mutation(
        "a lease that is there is taken all the same",
        "shiq_bench/records/leases.py",
        "                if not _dead(path, lock.now()):\n",
        "                if False:\n",
        f"{LEASES}::test_one_of_many_gets_it_and_one_of_many_follows_the_dead",
    ),
    Mutation(
        "a dead holder keeps its lease",
        "shiq_bench/records/leases.py",
        'return _born(int(who["pid"])) != who["born"]',
        "return False",
        f"{LEASES}::test_a_number_that_is_used_again_is_not_the_holder",
    ),
    Mutation(
        "a silent machine is waited for in all eternity",
        "shiq_bench/records/leases.py",
        "return now - touched > TTL",
        "return False",
        f"{LEASES}::test_another_machine_is_dead_once_it_is_silent_for_long[240.0-True]",
    ),
    Mutation(
        "who was thought dead gives back another's lease",
        "shiq_bench/records/leases.py",
        "            if self._ours():\n                self.path.unlink()",
        "            if True:\n                self.path.unlink()",
        f"{LEASES}::test_who_was_thought_dead_must_not_write_and_takes_nothing_back",
    ),
    Mutation(
        "no sign of life",
        "shiq_bench/records/leases.py",
        "                os.utime(self._descriptor)\n",
        "                pass\n",
        f"{LEASES}::test_a_holder_gives_signs_of_life",
    ),
    Mutation(
        "a machine that slept loses its runs",
        "shiq_bench/records/leases.py",
        'if who.get("where") == _where() and who.get("born") != "unknown":',
        "if False:",
        f"{LEASES}::test_one_that_was_suspended_here_is_alive",
    ),
    Mutation(
        "a dead holder is followed without a lock",
        "shiq_bench/records/leases.py",
        "                if not lock.real and path.exists():\n",
        "                if False:\n",
        f"{LEASES}::test_without_locks_a_dead_holder_is_not_followed",
    ),
    Mutation(
        "a model's image in Markdown",
        "shiq_bench/records/escaping.py",
        r"""text = _MARKS.sub(r"\\\g<0>", in_line(text).strip())""",
        "text = in_line(text).strip()",
        f"{LITERAL}::test_two_compared_in_markdown",
    ),
    Mutation(
        "a method's name is a formula",
        "shiq_bench/records/escaping.py",
        """return ("'" if formula else "") + visible(text)""",
        """return visible(text)""",
        f"{LITERAL}::test_files_of_numbers_hold_no_formula_and_all_numbers",
    ),
    Mutation(
        "of two contents of one run the first is taken",
        "shiq_bench/records/run_store.py",
        "if same is not record and same.to_json() != record.to_json():",
        "if same.run_id != record.run_id:",
        "tests/records/test_run_store.py::test_one_run_with_two_contents_is_refused",
    ),
    Mutation(
        "control characters of a model reach the terminal",
        "shiq_bench/records/escaping.py",
        """c if c.isprintable() or c == "\\n" else c.encode("unicode_escape").decode("ascii") for c in text""",
        """c for c in text""",
        f"{COMPARE}::test_model_text_is_text[200]",
    ),
]
