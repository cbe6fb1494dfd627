"""Answers to BFCL's entries that are right, nearly right, or wrong in one of the ways that models are."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.decode import gold_calls, gold_text, language
from tests.tasks.official_runner import Row, gold_turn, written

# --- perturbations of single answers -------------------------------------------------------------

Calls = list[dict[str, dict[str, Any]]]


def other_accepted(entry: data.Entry, calls: Calls, rng: random.Random) -> None:
    """Another value that the ground truth accepts, or none where it accepts none."""
    at = rng.randrange(len(calls))
    if at < len(entry.possible):
        accepted = next(iter(entry.possible[at].values()))
        arguments = next(iter(calls[at].values()))
        for key in sorted(arguments.keys() & accepted.keys()):
            plain = [value for value in accepted[key] if not isinstance(value, dict)]
            if plain:
                arguments[key] = rng.choice(plain)
            if arguments[key] == "":
                del arguments[key]


def each_value(change: Callable[[Any, random.Random], Any]) -> Callable[[data.Entry, Calls, random.Random], None]:
    """A change of every argument of one call."""

    def apply(entry: data.Entry, calls: Calls, rng: random.Random) -> None:
        arguments = next(iter(rng.choice(calls).values()))
        for key in arguments:
            arguments[key] = change(arguments[key], rng)

    return apply


def one_value(change: Callable[[Any, random.Random], Any]) -> Callable[[data.Entry, Calls, random.Random], None]:
    """A change of one argument of one call."""

    def apply(entry: data.Entry, calls: Calls, rng: random.Random) -> None:
        arguments = next(iter(rng.choice(calls).values()))
        if arguments:
            key = rng.choice(sorted(arguments))
            arguments[key] = change(arguments[key], rng)

    return apply


def punctuation(value: Any, rng: random.Random) -> Any:
    """Harmless to the official comparison of strings, and of those in lists and dictionaries."""
    if isinstance(value, str):
        return rng.choice([value.upper(), value.title(), value.replace(" ", "-"), f"{value}.", value.replace(",", "")])
    if isinstance(value, list):
        return [punctuation(item, rng) for item in value]
    if isinstance(value, dict):
        return {key: punctuation(item, rng) for key, item in value.items()}
    return value


def retyped(value: Any, rng: random.Random) -> Any:
    match value:
        case bool():
            return rng.choice([str(value), int(value), str(value).lower()])
        case int():
            return rng.choice([float(value), str(value), [value]])
        case float():
            return rng.choice([str(value), int(value), -value])
        case str():
            return rng.choice([[value], {"value": value}, value.encode("ascii", "replace"), None, 0])
        case list():
            return rng.choice([tuple(value), str(value), value[::-1], dict.fromkeys(map(str, value), 1)])
        case dict():
            return rng.choice([[value], str(value), {**value, "more": 1}, dict(list(value.items())[1:]), {}])
    return value


def wrong(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice([-value, value + 1, 10**20])
    if isinstance(value, str):
        return rng.choice([f"{value} or so", "", "é"])
    if isinstance(value, list):
        return rng.choice([[*value, value[0]] if value else [0], value[:-1], [value]])
    return {**value, next(iter(value), "k"): "?"} if isinstance(value, dict) else None


def tuples(value: Any, rng: random.Random) -> Any:
    return tuple(tuples(item, rng) for item in value) if isinstance(value, list) else value


def whole(value: Any, rng: random.Random) -> Any:
    """5 for 5.0, which the official checker takes."""
    return int(value) if isinstance(value, float) and value == int(value) else value


def renamed(entry: data.Entry, calls: Calls, rng: random.Random) -> None:
    at = rng.randrange(len(calls))
    ((name, arguments),) = calls[at].items()
    calls[at] = {rng.choice([name.replace(".", "_"), f"{name}x", name.upper(), "no.such.function"]): arguments}


def missing(entry: data.Entry, calls: Calls, rng: random.Random) -> None:
    arguments = next(iter(rng.choice(calls).values()))
    if arguments:
        del arguments[rng.choice(sorted(arguments))]


def unknown_argument(entry: data.Entry, calls: Calls, rng: random.Random) -> None:
    next(iter(rng.choice(calls).values()))["no_such_argument"] = rng.choice([1, None, "x", [1], {"a": {"b": [2.5]}}])


PYTHON: list[tuple[int, Callable[[data.Entry, Calls, random.Random], Any]]] = [
    (3, other_accepted),
    (3, each_value(punctuation)),
    (2, each_value(whole)),
    (2, each_value(tuples)),
    (2, lambda entry, calls, rng: rng.shuffle(calls)),
    (2, one_value(retyped)),
    (2, one_value(wrong)),
    (1, missing),
    (1, unknown_argument),
    (1, renamed),
    (1, lambda entry, calls, rng: calls.pop(rng.randrange(len(calls)))),
    (1, lambda entry, calls, rng: calls.append(copy.deepcopy(rng.choice(calls)))),
]


def python_text(calls: Calls, rng: random.Random) -> str:
    parts = []
    for call in calls:
        ((name, arguments),) = call.items()
        values = [f"{key}={value!r}" for key, value in arguments.items()]
        if rng.random() < 0.1:
            values.insert(0, rng.choice(["1", "'x'", "g(2)", "[1, 2]"]))  # positional
        parts.append(f"{name}({', '.join(values)})")
    inner = ", ".join(parts)
    return rng.choice(
        [f"[{inner}]"] * 6 + [inner, f"```\n[{inner}]\n```", f"`[{inner}]`", f"[{inner}", f"Sure: [{inner}]"]
    )


#: Answers of every kind for entries that ask whether a call is made at all.
ANY = [
    "", "[]", "()", "[{}]", "{}", "I cannot help with that.", "[I cannot]", "None", "f", "[f]", "f()", "[f(),]",
    "[f(a=1)]",
    "[f(1)]", "[f(g(1))]", "f(a=-x)", "f(a=-'x')", "f(a=not 1)", "f(a=b)", "f(a=b.c)", "f(a=b[0])", "f(a=[b, (1,)])",
    "f(a=...)", "f(**{'a': 1})", "f(a={**b})", "f(a={[]: 1})", "f(a=g(b=1))", "f(a=g(1))", "f()()", "f.g.h()",
    "f().g()", "[[f()]]", "[f(), 1]", "{f()}", "f(a=f'{1}')", "f(a=1 if b else 2)", "f(a=lambda: 1)", "f(a=1",
    "[f(a='x)]", "```\nf()\n```", "f(a=b'x', c=1j, d=True)", "f(a=~1)", "f(a=1 < 2)", "f(a={1, 2})", "f(\0)",
    "f(a=0x" + "f" * 5000 + ")", "'[f()]'", "f() f()",
]  # fmt: skip


def perturbed_python(entry: data.Entry, rng: random.Random) -> Row:
    if "relevance" in entry.category:
        name = entry.functions[0]["name"] if entry.functions else "f"
        text = rng.choice(ANY).replace("f(", f"{name}(")
        if rng.random() < 0.2:
            calls = rng.choice([None, [], [{name: {}}], [{name: {"a": [1, {"b": None}]}}], [{name: {}}, {"g": {}}]])
            return entry.category, entry.id, "calls", calls
        return entry.category, entry.id, "text", text
    calls = copy.deepcopy(gold_calls(entry))
    weights, changes = zip(*PYTHON, strict=True)
    for change in rng.choices(changes, weights, k=rng.choice([1, 1, 2])):
        if calls:
            change(entry, calls, rng)
    if rng.random() < 0.3:
        plain = json.loads(json.dumps(calls, default=str))
        return entry.category, entry.id, "calls", plain
    return entry.category, entry.id, "text", python_text(calls, rng)


def perturbed_source(entry: data.Entry, rng: random.Random) -> Row:
    """A Java or JavaScript answer, changed as text."""
    text = gold_text(entry)
    changes: list[Callable[[str], str]] = [
        lambda t: t,
        lambda t: f"```\n{t}\n```",
        lambda t: t[1:-1],
        lambda t: f"[{t}]",
        lambda t: t[1:-1] + ";",
        lambda t: f"[ {t[1:-1]} ]",
        lambda t: t.replace("=", " = "),
        lambda t: re.sub(r'"(\w+)"', r"\1", t),
        lambda t: re.sub(r'"([^"]*)"', lambda m: f'"{m[1].upper()}"', t),
        lambda t: re.sub(r'"([^"]*)"', r"'\1'", t),
        lambda t: re.sub(r'"([^"]*)"', r'"\1."', t, count=1),
        lambda t: re.sub(r'"([^"]*)"', r'"\1 x"', t, count=1),
        lambda t: re.sub(r"\b(\d+)\b", r"\g<1>.0", t, count=1),
        lambda t: re.sub(r"\b(\d+)\b", r"\1L", t, count=1),
        lambda t: re.sub(r"\b(\d+)\b", r"-\1", t, count=1),
        lambda t: re.sub(r"=(\d[\w.]*)", r'="\1"', t),
        lambda t: t.replace("true", "True").replace("false", "False"),
        lambda t: t.replace("true", "false"),
        lambda t: re.sub(r"\w+=", "", t, count=1),
        lambda t: re.sub(r", \w+=[^,=]*\)\]$", ")]", t),
        lambda t: t.replace("(", "x(", 1),
        lambda t: t.replace(")]", ", more=1)]"),
        lambda t: f"{t[:-1]}, {t[1:]}",
        lambda t: t[: len(t) * 2 // 3],
        lambda t: f"Sure, {t}",
        lambda t: t.replace("(", "(é=1, ", 1),
        lambda t: t.replace('="', '=("', 1).replace('",', '"),', 1),
        lambda t: t.replace("{", "{ ").replace("[", "[ ").replace(",", " , "),
        lambda t: rng.choice(["", "[]", "none", "[f]", "f()", "f(a=1, a=2)", "()", "new F()"]),
    ]
    if rng.random() < 0.2:
        calls: Any = copy.deepcopy(gold_calls(entry))
        arguments = next(iter(calls[0].values()))
        for key in rng.sample(sorted(arguments), k=min(1, len(arguments))):
            arguments[key] = rng.choice([arguments[key], arguments[key].upper(), 1, True, None, [arguments[key]], "x"])
        return entry.category, entry.id, "calls", calls
    for _ in range(rng.choice([1, 1, 2])):
        text = rng.choice(changes if rng.random() < 0.7 else changes[:7])(text)
    return entry.category, entry.id, "text", text


# --- perturbations of dialogues ------------------------------------------------------------------


def perturbed_dialogue(entry: data.Entry, rng: random.Random) -> Row:
    turns = [[gold_turn(entry, at)] for at in range(len(entry.gold))]
    decoded = rng.random() < 0.5
    if decoded and rng.random() < 0.5:
        turns = [[list(turn)] for turn in entry.gold]  # positional arguments where the ground truth has them
    every = [call for turn in turns for step in turn for call in step]
    kinds = ["drop", "again", "early", "argument", "retype", "reorder", "split", "unknown", "look", "chat", "empty"]
    for _ in range(rng.randint(1, 2)):
        turn = rng.choice(turns)
        step = rng.choice(turn) if turn else []
        at = rng.randrange(len(step)) if step else 0
        match rng.choice([*kinds, "reorder", "split", "unknown", "look", "look", "end"]):
            case "drop" if step:
                step.pop(at)
            case "again" if step:
                step.insert(at, step[at])
            case "early":
                step.insert(at, rng.choice(every))
            case "argument" if step and "='" in step[at]:
                step[at] = step[at].replace("='", "='x", 1)
            case "retype" if step:
                step[at] = re.sub(r"=(\d+)\b", r"='\1'", re.sub(r"=(\d+)\.0\b", r"=\1", step[at]), count=1)
            case "reorder":
                rng.shuffle(step)
            case "split":
                turn[:] = [[call] for one in turn for call in one]
            case "unknown":
                step.insert(at, rng.choice(["no_such_tool(a=1)", "open('x')", "cd2()"]))
            case "look":
                step.insert(
                    at, rng.choice(["pwd()", "ls(a=True)", "displayCarStatus(option='fuel')", "get_watchlist()"])
                )
            case "chat":
                turn.insert(rng.randrange(len(turn) + 1), [])
            case "empty":
                turn[:] = []
            case "end" if rng.random() < 0.3:
                turns.pop()
                break
    if decoded:
        return entry.category, entry.id, "turns", turns
    said = [[written(step) if step else rng.choice(["Done!", "", "[]"]) for step in turn] for turn in turns]
    return entry.category, entry.id, "text", said


def perturbed(entries: Mapping[str, data.Entry], count: int, seed: int) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for category in data.CATEGORIES:
        members = [entry for entry in entries.values() if entry.category == category]
        picked = [entry for _ in range(count // len(members)) for entry in members]
        picked += rng.sample(members, count - len(picked))
        change = perturbed_python
        if picked[0].multi_turn:
            change = perturbed_dialogue
        elif language(category) != "Python":
            change = perturbed_source
        rows += [change(entry, rng) for entry in picked]
    return rows
