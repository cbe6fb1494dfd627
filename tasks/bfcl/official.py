"""The one door to official code: its executor and its checkers, unmodified. Used inside a worker process only.

The executor keeps instances in its module's globals under the name of the model, so every dialogue and every
scoring has a name of its own, and :meth:`Official.purge` removes what stands under it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

#: Evaluates to a string that no ground truth yields: takes the place of a call that was made in vain (an unknown
#: name, a call that ran out of time), which the official checker knows as one more useless result.
IN_VAIN = "'call made in vain'"

_CHECKS = "bfcl_eval.eval_checker.multi_turn_eval"

Turns = Sequence[Sequence[Sequence[str]]]


class Official:
    """Official execution and verdicts.

    Args:
        root: folder that holds ``bfcl_eval/``.
    """

    def __init__(self, root: Path) -> None:
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        # The real module imports the SDK of every vendor; checkers read one attribute of it, through this name.
        stand_in = ModuleType("bfcl_eval.constants.model_config")
        stand_in.__dict__["MODEL_CONFIG_MAPPING"] = {}
        sys.modules.setdefault(stand_in.__name__, stand_in)
        self._executor: Any = importlib.import_module(f"{_CHECKS}.multi_turn_utils")
        self._checker: Any = importlib.import_module(f"{_CHECKS}.multi_turn_checker")
        #: Every public method of every simulated service.
        self.names: frozenset[str] = frozenset(
            name
            for service, module in self._executor.CLASS_FILE_PATH_MAPPING.items()
            for name, _ in inspect.getmembers(getattr(importlib.import_module(module), service), inspect.isfunction)
            if not name.startswith("_")
        )

    def step(self, session: str, entry: Mapping[str, Any], calls: Sequence[str]) -> list[str]:
        """Execute canonical calls in the live dialogue ``session``; one result a call."""
        results, _ = self._execute(session, entry, calls, scoring=False)
        return results

    def purge(self, session: str) -> None:
        """Forget every instance of ``session``."""
        state = vars(self._executor)
        for name in [name for name in state if name.startswith(f"{session}_")]:
            del state[name]

    def judge(self, session: str, entry: Mapping[str, Any], turns: Turns) -> dict[str, Any]:
        """Official verdicts on a dialogue, from its initial state.

        Args:
            turns: calls by turn and step; a turn that was never entered is missing.

        Returns:
            ``turns``: for each turn the error type, "" when it passes, None when it has no ground truth;
            ``entry``: the error type of the whole, "" when it passes.
        """
        return {
            "turns": self._judge_turns(f"{session}_turns", entry, turns),
            "entry": self._judge_entry(f"{session}_entry", entry, turns),
        }

    def _judge_turns(self, name: str, entry: Mapping[str, Any], turns: Turns) -> list[str | None]:
        """The official checks turn by turn, without the early return after the first that fails."""
        verdicts: list[str | None] = []
        so_far: list[str] = []
        for index, gold in enumerate(entry["ground_truth"][: len(turns)]):
            instances: dict[str, Any] = {}
            for calls in turns[index]:
                results, instances = self._execute(name, entry, calls, scoring=True)
                so_far += results
            wanted, gold_instances = self._execute(f"{name}_ground_truth", entry, gold, scoring=True)
            if not gold:
                verdicts.append(None)
            elif not turns[index] or self._executor.is_empty_execute_response(turns[index]):
                verdicts.append("multi_turn:empty_turn_model_response")
            else:
                state = self._checker.state_checker(instances, gold_instances)
                both = state if not state["valid"] else self._checker.response_checker(so_far, wanted, index)
                verdicts.append("" if both["valid"] else both["error_type"])
        return verdicts

    def _judge_entry(self, name: str, entry: Mapping[str, Any], turns: Turns) -> str:
        gold = entry["ground_truth"]
        if len(turns) != len(gold):
            # The official runner fails such an entry without asking the checker.
            return "multi_turn:force_terminated"
        category = entry["id"].rsplit("_", 1)[0]
        verdict = self._checker.multi_turn_checker(turns, gold, entry, category, name)
        return "" if verdict["valid"] else str(verdict["error_type"])

    def _execute(
        self, name: str, entry: Mapping[str, Any], calls: Sequence[str], *, scoring: bool
    ) -> tuple[list[str], dict[str, Any]]:
        results, instances = self._executor.execute_multi_turn_func_call(
            func_call_list=list(calls),
            initial_config=entry["initial_config"],
            involved_classes=entry["involved_classes"],
            model_name=name,
            test_entry_id=entry["id"],
            long_context="long_context" in entry["id"],
            is_evaL_run=scoring,
        )
        return results, instances
