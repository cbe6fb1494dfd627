"""Official verdicts on a file of answers, whoever gave them: no model is loaded, nothing an answer holds is run.

One JSON object a line: ``category``, ``id`` and one of

* ``calls``: single-turn, decoded: a list of ``{function: {argument: value}}``, or null for no readable call;
* ``turns``: multi-turn: for each turn its steps, for each step its calls as strings;
* ``text``: as the model wrote it in the prompting format; multi-turn: for each turn the text of each step. It is
  decoded exactly as the official prompting decoder does, so reasoning (``<think>…</think>``) is not stripped: whoever
  writes the file must leave it out. (A run does strip it, as the official handlers of such models do.)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shiq_bench import Scores, suggest
from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.aggregate import PARTS, aggregate
from shiq_bench.tasks.bfcl.executor import UNSCORED, Executor
from shiq_bench.tasks.bfcl.official import IN_VAIN
from shiq_bench.tasks.bfcl.parse import Call, parse_answer, parse_call

FORMS = ("calls", "turns", "text")
FIELDS = ("category", "id", *FORMS)

#: Entries judged between two reports, and seconds before the first.
CHUNK = 128
QUIET = 2.0

#: Levels of lists and objects in a line, the line itself the first. Python's reader and writer of JSON give up at
#: different depths far beyond, and no answer needs as many.
DEPTH = 64

Report = Callable[[str, int, int], None]

_KINDS = {
    "NoneType": "null", "bool": "true or false", "int": "a number", "float": "a number", "str": "a string",
    "list": "a list", "dict": "an object",
}  # fmt: skip

_DEEP = f"is nested too deeply; expected at most {DEPTH} levels of lists and objects"


class _Bad(Exception):
    """What is wrong with a line."""


def score(
    root: Path, lines: Iterable[str], executor: Executor, report: Report | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Judge a file line by line.

    Args:
        root: folder that holds ``bfcl_eval/``.
        lines: of the file; blank ones are skipped.
        report: told ``(what, done, total)`` now and then, once two seconds have passed.

    Returns:
        Good lines, in order, as ``category``, ``id``, ``valid``, ``error_type`` (None when valid), ``refused`` (calls
        that were not executed) and, for multi-turn entries, ``turns``: for each turn of the ground truth whether it
        passes, None where it asks for no call. And what is wrong with each bad line, behind its number; a good line
        that could not be scored, such as one whose call hangs, is among them, and among the results as not valid.
    """
    good: list[tuple[data.Entry, dict[str, Any]]] = []
    numbers: list[int] = []
    problems: list[str] = []
    entries: dict[str, dict[str, data.Entry]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _read(line)
            category = row["category"]
            if category not in entries:
                entries[category] = data.entries(root, [category])
            entry = _entry(row, entries[category])
            _check_form(row, entry)
        except _Bad as error:
            problems.append(f"line {number}: {error}")
        else:
            good.append((entry, row))
            numbers.append(number)
    began, results = time.monotonic(), []
    for at in range(0, len(good), CHUNK):
        results += judge(good[at : at + CHUNK], executor)
        if report is not None and len(results) < len(good) and time.monotonic() - began > QUIET:
            report("scoring", len(results), len(good))
    for number, result in zip(numbers, results, strict=True):
        if _unscored(result):
            problems.append(f"line {number}: could not be scored, and counts as wrong ({result['error_type']})")
    return results, problems


def score_lines(root: Path, lines: Iterable[str], executor: Executor, report: Report | None = None) -> Scores:
    """:func:`score` with the official table, in which what was not run says so."""
    results, problems = score(root, lines, executor, report)
    counts: dict[str, tuple[float, int]] = {}
    refused: dict[str, int] = {}
    for category in dict.fromkeys(result["category"] for result in results):
        mine = [result for result in results if result["category"] == category]
        accuracy = sum(result["valid"] for result in mine) / len(mine)
        # A category weighs by the entries answered: to repeat a line must not make it weigh more.
        counts[category] = accuracy, len({result["id"] for result in mine})
        refused[category] = sum(result.pop("refused") for result in mine)
    table: list[tuple[str, ...]] = [("category", "accuracy", "scored", "refused calls")]
    for row in aggregate(counts):
        percent = "not run" if row.accuracy is None else f"{100 * row.accuracy:.2f}%"
        share = "" if not row.scored else f"{row.scored} of {row.entries}"
        table.append((row.name, percent, share, str(refused[row.name]) if row.name in refused else ""))
    total = sum(refused.values())
    notes = [f"{sum(result['valid'] for result in results)} of {len(results)} answers are valid; {total} calls refused"]
    if ended := sum(result["error_type"] == "multi_turn:force_terminated" for result in results):
        notes.append(f"{ended} dialogues have another number of turns than their ground truth: force_terminated")
    if again := len(results) - len({result["id"] for result in results}):
        notes.append(
            f"{again} lines answer an entry that another line has answered too: each counts in the accuracy of its "
            "category, which weighs by its entries"
        )
    if unscored := sum(map(_unscored, results)):
        notes.append(f"{unscored} of {len(results)} answers could not be scored and count as wrong")
    return Scores(results, problems, table, len(table) - len(PARTS), notes)


def judge(rows: Sequence[tuple[data.Entry, Mapping[str, Any]]], executor: Executor) -> list[dict[str, Any]]:
    """Verdicts on well-formed rows, one each, as :func:`score` returns them; an entry may come more than once."""
    dialogues, answers, refused = [], [], []
    for entry, row in rows:
        if entry.multi_turn:
            turns, count = _turns(entry, row)
            dialogues.append((executor.open(entry.request), turns))
            refused.append(count)
        else:
            answers.append((entry.request, {key: row[key] for key in ("calls", "text") if key in row}))
    many = zip(executor.judge(dialogues), refused, strict=True)
    single = iter(executor.judge_single(answers))
    out = []
    for entry, _ in rows:
        if entry.multi_turn:
            outcome, count = next(many)
            error = outcome.error("entry")
            reached = [] if outcome.failure else outcome.value["turns"]
            passed = [at < len(reached) and reached[at] == "" for at in range(len(entry.gold))]
            by_turn = {"turns": [one if gold else None for one, gold in zip(passed, entry.gold, strict=True)]}
        else:
            outcome, by_turn = next(single), {}
            error = outcome.error("error_type")
            count = 0 if outcome.failure else int(outcome.value["refused"])
        result = {"category": entry.category, "id": entry.id, "valid": not error, "error_type": error or None}
        out.append(result | by_turn | {"refused": count})
    return out


def _unscored(result: Mapping[str, Any]) -> bool:
    return str(result["error_type"]).startswith(UNSCORED)


def _turns(entry: data.Entry, row: Mapping[str, Any]) -> tuple[list[list[list[str]]], int]:
    """Calls for the official checker by turn and step, and how many were made in vain.

    A step without calls, or whose text the official decoder cannot read, is left out, as the official runner does.
    """
    refused, turns = 0, []
    for turn in row["turns"] if "turns" in row else row["text"]:
        steps = []
        for step in turn:
            if "turns" in row:
                calls = [] if step == [""] else [parse_call(text, entry.names) for text in step]
            else:
                calls = parse_answer(step, entry.names) or []
            if calls:
                steps.append([call.text if isinstance(call, Call) else IN_VAIN for call in calls])
                refused += sum(not isinstance(call, Call) for call in calls)
        turns.append(steps)
    return turns, refused


# --- reading -------------------------------------------------------------------------------------


def _read(line: str) -> dict[str, Any]:
    """A line as an object with a known category, an id and one form of answer."""
    try:
        line.encode()
        row = json.loads(line.strip(), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique)
    except UnicodeEncodeError:
        raise _Bad("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _Bad(f"is not JSON: {error.msg} at character {error.colno}") from None
    except RecursionError:
        raise _Bad(_DEEP) from None
    except ValueError:
        raise _Bad("holds a number with too many digits") from None
    _check_depth(row)
    if not isinstance(row, dict):
        raise _Bad(f"is {_kind(row)}; expected an object with category, id and one of {', '.join(FORMS)}")
    for name in row:
        if name not in FIELDS:
            raise _Bad(f"has an unknown field {_short(name)}{suggest(name[:40], FIELDS)}")
    for name in ("category", "id"):
        if name not in row:
            raise _Bad(f"has no {name}")
        _typed(row[name], str, name)
    given = [name for name in FORMS if name in row]
    if len(given) != 1:
        raise _Bad(f"has {' and '.join(given) or 'no answer'}; expected one of {', '.join(FORMS)}")
    if row["category"] not in data.CATEGORIES:
        raise _Bad(f"has an unknown category {_short(row['category'])}{suggest(row['category'][:40], data.CATEGORIES)}")
    return row


def _check_depth(row: Any) -> None:
    level = [row]
    for _ in range(DEPTH):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
    if any(isinstance(value, dict | list) for value in level):
        raise _Bad(_DEEP)


def _entry(row: Mapping[str, Any], entries: Mapping[str, data.Entry]) -> data.Entry:
    name, category = row["id"], row["category"]
    if name in entries:
        return entries[name]
    other = name.rsplit("_", 1)[0]
    if other != category and other in data.CATEGORIES:
        raise _Bad(f"has category {category!r} and id {_short(name)}, which is one of {other!r}")
    raise _Bad(f"has an unknown id {_short(name)}: {category} goes from {next(iter(entries))} to {list(entries)[-1]}")


def _check_form(row: Mapping[str, Any], entry: data.Entry) -> None:
    """Raise where an answer has another shape than its category takes, however deep inside."""
    if "calls" in row:
        if entry.multi_turn:
            raise _Bad(f"has calls; {entry.category} takes turns or text")
        if row["calls"] is not None:
            for at, call in enumerate(_typed(row["calls"], list, "calls")):
                if not isinstance(call, dict) or len(call) != 1 or not isinstance(next(iter(call.values())), dict):
                    raise _Bad(f"calls[{at}] is {_kind(call)}; expected {{function: {{argument: value, ...}}}}")
    elif "turns" in row or entry.multi_turn:
        form = "turns" if "turns" in row else "text"
        if not entry.multi_turn:
            raise _Bad(f"has turns; {entry.category} takes calls or text")
        for i, turn in enumerate(_typed(row[form], list, form)):
            for j, step in enumerate(_typed(turn, list, f"{form}[{i}]")):
                where = f"{form}[{i}][{j}]"
                if form == "text":
                    _typed(step, str, where)
                else:
                    for k, call in enumerate(_typed(step, list, where)):
                        _typed(call, str, f"{where}[{k}]")
    else:
        _typed(row["text"], str, "text")


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise _Bad(f"{where} is {_kind(value)}; expected {_KINDS[kind.__name__]}")
    return value


def _kind(value: Any) -> str:
    return _KINDS[type(value).__name__]


def _short(text: str) -> str:
    """For a message of one line."""
    return ascii(text if len(text) <= 40 else text[:40] + "…")


def _no_constant(name: str) -> Any:
    raise _Bad(f"holds {name}, which is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise _Bad(f"holds the number {text[:20]}, which is too large")
    return float(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise _Bad(f"has the field {_short(name)} twice in one object")
        out[name] = value
    return out
