"""The one door to official code: its executor and its checkers, unmodified. Used inside a worker process only.

The executor keeps instances in its module's globals under the name of the model, so every dialogue and every
scoring has a name of its own, and :meth:`Official.purge` removes what stands under it.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from shiq_bench.tasks.bfcl.decode import Decoded, chosen_by_name, decode, language

#: Evaluates to a string that no ground truth yields: takes the place of a call that was made in vain (refused, an
#: unknown name, out of time), which the official checker knows as one more useless result.
IN_VAIN = "'call made in vain'"

_CHECKS = "bfcl_eval.eval_checker.multi_turn_eval"

_SHARED = ("CREDIT_CARD_EXTENSION", "BOOKING_RECORD_EXTENSION")

#: The name under which the single-turn checkers look up whether a function's dots were replaced: here they never are.
_MODEL = "model"

Turns = Sequence[Sequence[Sequence[str]]]


class Official:
    """Official execution and verdicts, by the package in a folder that holds ``bfcl_eval/``."""

    def __init__(self, root: Path) -> None:
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        # The real module imports the SDK of every vendor; checkers read one attribute of it, through this name.
        stand_in = ModuleType("bfcl_eval.constants.model_config")
        stand_in.__dict__["MODEL_CONFIG_MAPPING"] = {_MODEL: SimpleNamespace(underscore_to_dot=False)}
        sys.modules.setdefault(stand_in.__name__, stand_in)
        self._executor: Any = importlib.import_module(f"{_CHECKS}.multi_turn_utils")
        self._checker: Any = importlib.import_module(f"{_CHECKS}.multi_turn_checker")
        self._single: Any = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
        self._utils: Any = importlib.import_module("bfcl_eval.utils")
        # Cards and bookings that every long-context entry is given are shared by all instances of a process.
        self._travel: Any = importlib.import_module(self._executor.CLASS_FILE_PATH_MAPPING["TravelAPI"])
        self._pristine = {name: copy.deepcopy(getattr(self._travel, name)) for name in _SHARED}
        #: Every public method of every simulated service.
        self.names: frozenset[str] = frozenset(
            name
            for service, module in self._executor.CLASS_FILE_PATH_MAPPING.items()
            for name, _ in inspect.getmembers(getattr(importlib.import_module(module), service), inspect.isfunction)
            if not name.startswith("_")
        )

    def open(self) -> None:
        """Call it before a dialogue begins or is judged: what entries share is again as in a fresh process.

        Instances that exist keep the records they were made with.
        """
        for name, value in self._pristine.items():
            setattr(self._travel, name, copy.deepcopy(value))

    def step(self, session: str, entry: Mapping[str, Any], calls: Sequence[str]) -> list[str]:
        """Execute canonical calls in the live dialogue ``session``; one result a call."""
        return self._execute(session, entry, calls, scoring=False)[0]

    def purge(self, session: str) -> None:
        """Forget every instance of ``session``."""
        state = vars(self._executor)
        for name in [name for name in state if name.startswith(f"{session}_")]:
            del state[name]

    def judge(
        self, session: str, entry: Mapping[str, Any], turns: Turns, allow: Callable[[int], object]
    ) -> dict[str, Any]:
        """Official verdicts on a dialogue, from its initial state.

        Args:
            turns: calls by turn and step; a turn that was never entered is missing.
            allow: called before every step, and before the second run through all of them, with the number of steps
                to come: from then on they have the time of so many.

        Returns:
            ``turns``: for each turn the error type, "" when it passes, None when it has no ground truth;
            ``entry``: the error type of the whole, "" when it passes.
        """
        self.open()
        by_turn = self._judge_turns(f"{session}_turns", entry, turns, allow)
        self.open()
        allow(sum(map(len, turns)) + len(entry["ground_truth"]) + 1)
        return {"turns": by_turn, "entry": self._judge_entry(f"{session}_entry", entry, turns)}

    def judge_single(self, entry: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
        """The official runner's verdict on one single-turn answer.

        Args:
            entry: ``Entry.request`` as it comes out of JSON; ``"partial": true`` asks for partial credit.
            answer: ``{"text": ...}`` as a model gave it, or ``{"calls": ...}`` decoded, None for no readable call.

        Returns:
            ``valid``; ``error_type``, "" when valid; ``calls``, the number of them; ``unparsable``: there is text
            and no readable call; ``refused``: a call stands outside the grammar; and ``partial``, if asked for.
        """
        if "text" in answer:
            decoded = decode(answer["text"], entry["category"])
        else:
            decoded = Decoded(answer["calls"], failed=answer["calls"] is None, empty=False)
        readable = not decoded.failed and self._utils.is_function_calling_format_output(decoded.output)
        if "relevance" in entry["category"]:
            error = self._judge_relevance(entry["category"], decoded)
        elif decoded.failed:
            error = "ast_decoder:decoder_failed"
        elif not readable:
            error = "ast_decoder:decoder_wrong_output_format"
        else:
            error = self._judge_calls(entry, decoded.output)
        verdict = {
            "valid": not error,
            "error_type": error,
            "calls": decoded.refused or (len(decoded.output) if readable else 0),
            "unparsable": not readable and not decoded.refused and not decoded.empty,
            "refused": decoded.refused > 0,
        }
        if entry.get("partial"):
            verdict["partial"] = self._partial(entry, decoded.output if readable else [], valid=not error)
        return verdict

    def _judge_relevance(self, category: str, decoded: Decoded) -> str:
        # A refused call is a call: whether one was made is all that is asked here, not what its arguments come to.
        called = decoded.refused or not (decoded.failed or self._utils.is_empty_output(decoded.output))
        if "irrelevance" in category:
            return "irrelevance_error:decoder_success" if called else ""
        return "" if called else "relevance_error:decoder_failed"

    def _judge_calls(self, entry: Mapping[str, Any], calls: Sequence[Any]) -> str:
        category = entry["category"]
        try:
            verdict = self._single.ast_checker(
                entry["function"], calls, entry["ground_truth"], language(category), category, _MODEL
            )
        except Exception as error:  # the official runner would stop here; an answer that does this is not right
            return f"checker_failed:{type(error).__name__}"
        return "" if verdict["valid"] else str(verdict["error_type"])

    def _partial(self, entry: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], valid: bool) -> float:
        """Credit in [0, 1]; 1 exactly where the verdict is valid.

        Every call of the ground truth, in order, takes the call left that resembles it most: 1/2 for the right
        function and 1/2 times the share of arguments that are right, among those of the call and those that are
        required. The sum is divided by the number of calls, of the ground truth or of the answer, whichever has
        more. An argument is right when the official checker accepts it alone. (Ir)relevance earns its verdict.
        """
        wanted = entry["ground_truth"]
        if valid or "relevance" in entry["category"] or not calls or not wanted:
            return float(valid)
        left, total, count = list(calls), 0.0, max(len(calls), len(wanted))
        for gold in wanted:
            credits = [self._likeness(entry, gold, call) for call in left]
            if credits:
                best = max(credits)
                total += best
                left.pop(credits.index(best))
        return total / count

    def _likeness(self, entry: Mapping[str, Any], gold: Mapping[str, Any], call: Mapping[str, Any]) -> float:
        ((name, accepted),) = gold.items()
        document = entry["function"][0]
        if chosen_by_name(entry["category"]):
            document = self._single.find_description(entry["function"], name)
        name, parameters = document["name"], document["parameters"]
        if name not in call:
            return 0.0
        alone = {**document, "parameters": {**parameters, "required": []}}
        needed = {*parameters["required"], *(key for key, values in accepted.items() if "" not in values)}
        names = needed | call[name].keys()
        right = 0
        for key, value in call[name].items():
            try:
                verdict = self._single.simple_function_checker(
                    alone, {name: {key: value}}, {name: {key: accepted[key]}}, language(entry["category"]), _MODEL
                )
                right += verdict["valid"]
            except Exception:  # the official checker fails on it: not right
                continue
        return 0.5 + 0.5 * (right / len(names) if names else 1.0)

    def _judge_turns(
        self, name: str, entry: Mapping[str, Any], turns: Turns, allow: Callable[[int], object]
    ) -> list[str | None]:
        """The official checks turn by turn, without the early return after the first that fails."""
        verdicts: list[str | None] = []
        so_far: list[str] = []
        for index, gold in enumerate(entry["ground_truth"][: len(turns)]):
            instances: dict[str, Any] = {}
            for calls in turns[index]:
                allow(1)
                results, instances = self._execute(name, entry, calls, scoring=True)
                so_far += results
            allow(1)
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
        return self._executor.execute_multi_turn_func_call(
            func_call_list=list(calls),
            initial_config=entry["initial_config"],
            involved_classes=entry["involved_classes"],
            model_name=name,
            test_entry_id=entry["id"],
            long_context="long_context" in entry["id"],
            is_evaL_run=scoring,
        )
