"""Every verdict is that of the official runner, which is run beside ours on the same answers.

The official side is the package's own runner functions, decoders and checkers in a clean process; of this project it
gets category, id and answer.
"""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.decode import LONGEST, decode, gold_calls, gold_text, language
from shiq_bench.tasks.bfcl.executor import Executor
from shiq_bench.tasks.bfcl.score import judge

#: Ground truths that nobody can satisfy.
IMPOSSIBLE = {
    "java_36",
    "java_65",
    "live_simple_106-63-0",
    "live_simple_112-68-0",
    "live_multiple_862-181-3",
    "live_multiple_964-207-0",
}

OFFICIAL = """
import ast, json, os, sys, types
from pathlib import Path
root = sys.argv[1]
sys.path.insert(0, root)
config = types.ModuleType("bfcl_eval.constants.model_config")
config.MODEL_CONFIG_MAPPING = {"m": types.SimpleNamespace(underscore_to_dot=False)}
sys.modules[config.__name__] = config
from bfcl_eval.constants.category_mapping import TEST_FILE_MAPPING, VERSION_PREFIX
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import *
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import *
from bfcl_eval.model_handler.parser.java_parser import parse_java_function_call
from bfcl_eval.model_handler.parser.js_parser import parse_javascript_function_call
from bfcl_eval.utils import *

def take(path, *names):  # out of modules whose imports need vendors' packages
    tree = ast.parse(Path(root, "bfcl_eval", path).read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert len(tree.body) == len(names)
    exec(compile(tree, path, "exec"), globals())

take("model_handler/utils.py", "default_decode_ast_prompting", "default_decode_execute_prompting", "ast_parse",
     "resolve_ast_call", "resolve_ast_by_type", "parse_nested_value", "decoded_output_to_execution_list")
take("eval_checker/eval_runner.py", "relevance_file_runner", "ast_file_runner", "multi_turn_runner")

written = []
def write_list_of_dicts_to_file(name, rows, folder):
    written.append(rows)

class Text:
    decode_ast = staticmethod(default_decode_ast_prompting)
    decode_execute = staticmethod(default_decode_execute_prompting)

class Decoded:
    def decode_ast(self, result, language):
        assert result is not None
        return result
    def decode_execute(self, result):
        return result

def read(path):
    return {row["id"]: row for row in load_file(path)} if os.path.exists(path) else {}

def runner(category, identity, kind, answer):
    handler = Text() if kind == "text" else Decoded()
    prompt = json.loads(json.dumps(prompts[category][identity]))
    result, here = [{"id": identity, "result": answer}], Path(".")
    if is_relevance_or_irrelevance(category):
        relevance_file_runner(handler, result, [prompt], "m", category, here)
    elif is_multi_turn(category):
        multi_turn_runner(handler, result, [prompt], [answers[category][identity]], "m", category, here)
    else:
        language = "JavaScript" if is_js(category) else "Java" if is_java(category) else "Python"
        try:
            ast_file_runner(handler, result, [prompt], [answers[category][identity]], language, category, "m", here)
        except Exception as error:  # where the whole official run would end
            return "checker_failed:" + type(error).__name__
    _, *failed = written.pop()
    return (failed[0].get("error_type") or failed[0]["error"]["error_type"]) if failed else ""

def by_turn(category, identity, kind, answer):
    # The official functions in the order of the official checker, without its return after the first failure.
    handler, prompt = Text() if kind == "text" else Decoded(), prompts[category][identity]
    so_far, out = [], []
    def run(name, calls):
        return execute_multi_turn_func_call(calls, prompt["initial_config"], prompt["involved_classes"], name, identity,
                                            long_context="long_context" in category, is_evaL_run=True)
    for index, gold in enumerate(answers[category][identity]["ground_truth"]):
        steps = []
        for step in answer[index] if index < len(answer) else []:
            try:
                calls = handler.decode_execute(step)
            except Exception:
                continue
            if not is_empty_execute_response(calls):
                steps.append(calls)
        instances = {}
        for calls in steps:
            results, instances = run("t", calls)
            so_far += results
        wanted, truth = run("t_ground_truth", gold)
        if not gold:
            out.append(None)
        elif not steps:
            out.append(False)
        else:
            out.append(state_checker(instances, truth)["valid"] and response_checker(so_far, wanted, index)["valid"])
    return out

def isolated(work):
    # Every service is imported anew and its instances forgotten: nothing survives from one dialogue to the next.
    for name in [name for name in sys.modules if ".func_source_code" in name]:
        del sys.modules[name]
    state = execute_multi_turn_func_call.__globals__
    for name in [name for name in state if name.endswith("_instance")]:
        del state[name]
    return work()

def decoded(text):
    try:
        return repr(default_decode_ast_prompting(text))
    except Exception:
        return "failed"

rows = json.load(sys.stdin)
if rows and isinstance(rows[0], str):
    json.dump([[decoded(text), []] for text in rows], sys.stdout)
    sys.exit()
folder = os.path.join(root, "bfcl_eval", "data")
prompts = {c: read(os.path.join(folder, TEST_FILE_MAPPING[c])) for c in {row[0] for row in rows}}
answers = {c: read(os.path.join(folder, "possible_answer", TEST_FILE_MAPPING[c])) for c in prompts}
verdicts = []
for row in rows:
    if is_multi_turn(row[0]):
        verdicts.append([isolated(lambda: runner(*row)), isolated(lambda: by_turn(*row))])
    else:
        verdicts.append([runner(*row), []])
json.dump(verdicts, sys.stdout)
"""

#: Category, id, ``text``, ``calls`` or ``turns``, and the answer.
Row = tuple[str, str, str, Any]

#: Error type, "" when valid, and what became of each turn.
Verdict = tuple[str, list[bool | None]]


@pytest.fixture(scope="module")
def entries(bfcl_root: Path) -> dict[str, data.Entry]:
    return data.entries(bfcl_root, data.CATEGORIES)


@pytest.fixture(scope="module")
def executor(bfcl_root: Path) -> Iterator[Executor]:
    executor = Executor(bfcl_root, workers=1)
    yield executor
    executor.close()


def official(root: Path, rows: Sequence[Row] | Sequence[str]) -> list[Verdict]:
    """Verdicts on rows, or what the official decoder makes of texts."""
    command = [sys.executable, "-W", "ignore", "-c", OFFICIAL, str(root)]
    done = subprocess.run(command, input=json.dumps(rows), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(error, turns) for error, turns in json.loads(done.stdout)]


def ours(entries: Mapping[str, data.Entry], executor: Executor, rows: Sequence[Row]) -> list[Verdict]:
    judged = judge([(entries[i], {"category": c, "id": i, kind: answer}) for c, i, kind, answer in rows], executor)
    return [(row["error_type"] or "", row.get("turns", [])) for row in judged]


def gold_rows(entries: Mapping[str, data.Entry]) -> list[Row]:
    rows: list[Row] = []
    for number, entry in enumerate(entries.values()):
        if entry.multi_turn and number % 2:
            rows.append((entry.category, entry.id, "turns", [[list(turn)] for turn in entry.gold]))
        elif entry.multi_turn:
            texts = [[written(gold_turn(entry, at))] for at in range(len(entry.gold))]
            rows.append((entry.category, entry.id, "text", texts))
        else:
            rows.append((entry.category, entry.id, "text", gold_text(entry)))
            rows.append((entry.category, entry.id, "calls", gold_calls(entry)))
    return rows


def gold_turn(entry: data.Entry, at: int) -> list[str]:
    return [call.text for call in entry.gold_calls(at)]


def written(calls: Sequence[str]) -> str:
    return f"[{', '.join(calls)}]"


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


def disagreements(rows: Sequence[Row], theirs: Sequence[Verdict], mine: Sequence[Verdict]) -> list[Any]:
    return [triple for triple in zip(rows, theirs, mine, strict=True) if triple[1] != triple[2]]


def test_ground_truths(bfcl_root: Path, entries: dict[str, data.Entry], executor: Executor) -> None:
    rows = gold_rows(entries)
    assert len(rows) == 2 * 3641 + 800
    theirs = official(bfcl_root, rows)
    mine = ours(entries, executor, rows)
    assert disagreements(rows, theirs, mine) == []
    failed = Counter(row[1] for row, (error, _) in zip(rows, theirs, strict=True) if error)
    assert failed == dict.fromkeys(IMPOSSIBLE, 2)


def test_perturbed_answers(bfcl_root: Path, entries: dict[str, data.Entry], executor: Executor) -> None:
    rows = perturbed(entries, count=100, seed=20250717)
    assert len(rows) == 1700
    theirs = official(bfcl_root, rows)
    mine = ours(entries, executor, rows)
    assert disagreements(rows, theirs, mine) == []
    accepted = sum(not error for error, _ in theirs)
    print(f"{len(rows)} perturbed answers, {accepted} of them accepted officially")
    assert 0.3 <= accepted / len(rows) <= 0.7
    # Every category is tried both ways, and the reasons are of many kinds.
    for category in data.CATEGORIES:
        verdicts = {not error for row, (error, _) in zip(rows, theirs, strict=True) if row[0] == category}
        assert verdicts == {True, False}, category
    assert len({error for error, _ in theirs}) >= 20


def test_python_is_decoded_to_the_same_values(bfcl_root: Path, entries: dict[str, data.Entry]) -> None:
    texts = [text.replace("f(", "a.b.f(") for text in ANY] + [*ANY, "f(a=" + "b[0]" * 8000 + ")"]
    texts += [answer for _, _, kind, answer in perturbed(entries, 40, 11) if kind == "text" and isinstance(answer, str)]
    texts = [text for text in texts if "0xffff" not in text]  # a number that Python does not print
    theirs = [value for value, _ in official(bfcl_root, texts)]
    mine = [decode(text, "simple") for text in texts]
    assert [("failed" if one.failed else repr(one.output)) for one in mine] == theirs
    assert not any(one.refused for one in mine)
    assert 100 <= theirs.count("failed") <= len(texts) - 200


def test_partial_credit_is_full_exactly_where_the_verdict_is_valid(
    entries: dict[str, data.Entry], executor: Executor
) -> None:
    rows = [row for row in [*gold_rows(entries), *perturbed(entries, count=100, seed=7)] if row[2] != "turns"]
    rows = [row for row in rows if not entries[row[1]].multi_turn]
    requests = [({**entries[i].request, "partial": True}, {kind: answer}) for _, i, kind, answer in rows]
    verdicts = [outcome.value for outcome in executor.judge_single(requests)]
    assert all((verdict["partial"] == 1) == verdict["valid"] for verdict in verdicts)
    assert all(0 <= verdict["partial"] <= 1 for verdict in verdicts)
    between = {verdict["partial"] for verdict in verdicts} - {0, 1}
    assert len(between) >= 20
    without = executor.judge_single([(entries["simple_0"].request, {"text": ""})])[0].value
    assert "partial" not in without


def test_partial_credit_by_hand(entries: dict[str, data.Entry], executor: Executor) -> None:
    area = "calculate_triangle_area"
    order = gold_calls(entries["parallel_96"])
    ((force, arguments),) = order[0].items()
    omitted = {force: {key: value for key, value in arguments.items() if key != "medium_permittivity"}}

    def induced(time: int) -> dict[str, Any]:
        return {"calculate_em_force": {"b_field": 5, "area": 2, "d_time": time}}

    cases: list[tuple[str, Any, float]] = [
        ("simple_0", [{area: {"base": 10, "height": 5}}], 1),
        ("simple_0", [{area: {"base": 10, "height": 6}}], 3 / 4),  # 1/2 + 1/2 * 1/2
        ("simple_0", [{area: {"base": 10}}], 3 / 4),
        ("simple_0", [{area: {"base": 10, "height": 5, "more": 1}}], 5 / 6),
        ("simple_0", [{area: {}}], 1 / 2),
        ("simple_0", [{"area": {"base": 10, "height": 5}}], 0),
        ("simple_0", [{area: {"base": 10, "height": 5}}] * 2, 1 / 2),
        ("simple_0", None, 0),
        ("simple_0", [], 0),
        ("parallel_96", order, 1),
        ("parallel_96", order[::-1], 1),
        ("parallel_96", order[:1], 1 / 2),
        ("parallel_96", [order[0], omitted], 1),
        ("parallel_1", [induced(4), induced(10)], 1),
        ("parallel_1", [induced(4), induced(9)], (1 + 5 / 6) / 2),  # 2 of 3 arguments are right
        ("parallel_1", [induced(9), induced(4)], (1 + 5 / 6) / 2),
        ("parallel_1", [induced(4), induced(10), induced(11)], 2 / 3),
        ("parallel_1", [{"f": {}}, induced(10)], 5 / 6 / 2),  # the first of the two wanted takes it
        ("parallel_96", [omitted, order[0]], (1 + 1 / 2 + 3 / 8) / 2),  # officially wrong for its order
        ("irrelevance_0", [], 1),
        ("irrelevance_0", [{"f": {}}], 0),
    ]
    outcomes = executor.judge_single([({**entries[i].request, "partial": True}, {"calls": c}) for i, c, _ in cases])
    for (identity, calls, expected), outcome in zip(cases, outcomes, strict=True):
        assert outcome.value["partial"] == pytest.approx(expected), (identity, calls)


AREA = "calculate_triangle_area"
BASE_0 = [["cd(folder='document')", "mkdir(dir_name='temp')", "mv(source='final_report.pdf', destination='temp')"],
          ["cd(folder='temp')", "grep(file_name='final_report.pdf',pattern='budget analysis')"],
          ["sort('final_report.pdf')"],
          ["cd(folder='..')", "mv(source='previous_report.pdf',destination='temp')", "cd(folder='temp')",
           "diff(file_name1='final_report.pdf',file_name2='previous_report.pdf')"]]  # fmt: skip
BASE_0_TEXT = [written(turn).replace("sort(", "sort(file_name=") for turn in BASE_0]
WRONG_STATE, WRONG_RESULT = "multi_turn:instance_state_mismatch", "multi_turn:execution_response_mismatch"
CALLED, NOT_CALLED = "irrelevance_error:decoder_success", "relevance_error:decoder_failed"

#: Where we do not evaluate, or do not read, what the official code does: answer, official verdict, ours.
DIFFERENT: list[tuple[str, str, Any, str, str]] = [
    ("simple_0", "text", f"[{AREA}(base=5+5, height=5)]", "", "ast_decoder:decoder_failed"),
    ("simple_0", "text", f"[{AREA}(base=10, height=5{' ' * LONGEST})]", "", "ast_decoder:decoder_failed"),
    # Whether a call is made does not depend on what its arguments come to: a refused call is one.
    ("irrelevance_0", "text", "[f(a=1+1)]", CALLED, CALLED),
    ("irrelevance_0", "text", "[f(a=1/0)]", "", CALLED),
    ("irrelevance_0", "text", "[f(a='x'/2)]", "", CALLED),
    ("irrelevance_0", "text", "[f(a=(b or 1)*2)]", "", CALLED),
    # What is too long to be read counts as a call.
    ("irrelevance_0", "text", "No. " * LONGEST, "", CALLED),
    ("live_relevance_0-0-0", "text", "No. " * LONGEST, NOT_CALLED, ""),
    ("live_relevance_0-0-0", "text", "[f(a=1+1)]", "", ""),
    ("live_relevance_0-0-0", "text", "[f(a=1/0)]", NOT_CALLED, ""),
    *(
        ("multi_turn_base_0", "turns", [[[call, *BASE_0[0][1:]]], *([turn] for turn in BASE_0[1:])], "", WRONG_STATE)
        for call in (
            "cd(folder='docu' + 'ment')",
            "cd(folder=str('document'))",
            "cd(folder='{}'.format('document'))",
            "cd(folder=(lambda: 'document')())",
            "cd(folder=f'document')",
            "cd(folder=['document'][0])",
            "cd(folder='document' if True else cd)",
            "cd(folder=(x := 'document'))",
            "cd(*['document'])",
            "cd(**{'folder': 'document'})",
            "cd(folder='document') or ls()",
            "(cd)(folder='document') if 0 else cd(folder='document')",
        )
    ),
    (
        "multi_turn_base_4",
        "turns",
        [[["ls(a=not False)"]], [], []],
        "multi_turn:empty_turn_model_response",
        WRONG_RESULT,
    ),
    *(
        (
            "multi_turn_base_0",
            "text",
            [[written([call, *BASE_0[0][1:]])], *([t] for t in BASE_0_TEXT[1:])],
            "",
            WRONG_STATE,
        )
        for call in ("cd(folder='docu' + 'ment')", "cd(print(), folder='document')")
    ),
]

#: What no kind of answer may change: arithmetic on names, which fails, and texts of great length.
SINGLE_ALIKE: list[tuple[str, Any]] = [
    (identity, text)
    for identity in ("simple_0", "irrelevance_0", "live_relevance_0-0-0")
    for text in (
        "[f(a=radius*2)]", "[f(a=1+1), g(b=x.y)]", "[f(a=[1+1, b*2])]", "[f(a=sum*1.05)]",
        f"[{'f(), ' * 6000}]", f"[{AREA}(base=10, height=5{' ' * 40_000})]", f"{'I cannot say. ' * 5000}",
        f"[{AREA}(base=10, height=5)]{'`' * 40_000}",
    )
]  # fmt: skip

#: What looks like a call inside a string is left alone by both, or spoilt by both.
ALIKE: list[tuple[str, Any]] = [
    ("turns", [[["echo(content='see ls() and cd(x)')", *BASE_0[0]]], *([turn] for turn in BASE_0[1:])]),
    ("turns", [[[*BASE_0[0], "touch(file_name='ls(a)')"]], *([turn] for turn in BASE_0[1:])]),
    (
        "turns",
        [[[*BASE_0[0], "no_such_tool('cd(1)')", "open('/etc/passwd')", "ls("]], *([turn] for turn in BASE_0[1:])],
    ),
    ("turns", [[["cd ( folder = 'document' )", *BASE_0[0][1:]]], *([turn] for turn in BASE_0[1:])]),
    ("turns", [[[' cd(folder="document")', *BASE_0[0][1:]]], *([turn] for turn in BASE_0[1:])]),
    ("turns", [[["\uff43d(folder='document')", *BASE_0[0][1:]]], *([turn] for turn in BASE_0[1:])]),
    ("turns", [[["(cd)(folder='document')", *BASE_0[0][1:]]], *([turn] for turn in BASE_0[1:])]),
    ("turns", [[["cd(folder='document', folder='document')", *BASE_0[0][1:]]], *([turn] for turn in BASE_0[1:])]),
    ("turns", [[BASE_0[0], [], [""]], *([turn] for turn in BASE_0[1:])]),
    ("text", [[turn, "see ls()", "[]"] for turn in BASE_0_TEXT]),
    ("text", [[turn, "see ls()", "[]"] for turn in BASE_0_TEXT[:3]]),
    ("text", [[turn, "[echo(content='see ls() and cd(x)')]"] for turn in BASE_0_TEXT]),
]


def test_where_the_verdicts_differ(bfcl_root: Path, entries: dict[str, data.Entry], executor: Executor) -> None:
    rows: list[Row] = [(entries[i].category, i, kind, answer) for i, kind, answer, _, _ in DIFFERENT]
    rows += [("multi_turn_base", "multi_turn_base_0", kind, answer) for kind, answer in ALIKE]
    rows += [(entries[i].category, i, "text", text) for i, text in SINGLE_ALIKE]
    theirs, mine = official(bfcl_root, rows), ours(entries, executor, rows)
    assert disagreements(rows[len(DIFFERENT) :], theirs[len(DIFFERENT) :], mine[len(DIFFERENT) :]) == []
    assert len({error for error, _ in mine[len(DIFFERENT) :]}) >= 3
    for case, (their, _), (our, _) in zip(DIFFERENT, theirs, mine, strict=False):
        assert (their, our) == case[3:], case[2]


SPEND = "book_flight(access_token='abc123token', card_id='1234567812345678', travel_date='2024-10-06', {})".format(
    "travel_from='RMS', travel_to='SBK', travel_class='economy'"
)
BUDGET = "set_budget_limit(access_token='abc123token', budget_limit=1.0)"
LOOK = "get_credit_card_balance(access_token='abc123token', card_id='1234567812345678')"


def test_the_order_of_entries_does_not_matter(
    bfcl_root: Path, entries: dict[str, data.Entry], executor: Executor
) -> None:
    """Every long-context entry of the travel service is given the same cards, which calls change."""
    request = entries["multi_turn_long_context_150"].request
    first, second = executor.open(request), executor.open(request)
    (_, booked, told), (left,) = (executor.run([(first, calls)])[0].value for calls in ([BUDGET, SPEND, LOOK], [LOOK]))
    assert '"booking_status": true' in booked and float(json.loads(left)["card_balance"]) < 5000
    assert told == left
    assert executor.run([(second, [LOOK])])[0].value == ['{"card_balance": 5000.0}']
    assert executor.run([(first, [LOOK])])[0].value == [left]  # and it goes on where it was

    # The model buys until the card is empty; what it has bought decides whether the last look is the wanted one.
    members = [e for e in entries.values() if e.category == "multi_turn_long_context" and "TravelAPI" in e.classes][:12]
    rows: list[Row] = []
    for entry in members:
        token = re.search(r"access_token='(\w+)'", str(entry.gold))
        spend = [
            call.replace("abc123token", token[1] if token else "abc123token") for call in [BUDGET, *[SPEND] * 9, LOOK]
        ]
        rows.append((entry.category, entry.id, "turns", [[spend, list(turn)] for turn in entry.gold]))
        rows.append((entry.category, entry.id, "turns", [[list(turn)] for turn in entry.gold]))
    theirs = official(bfcl_root, rows)
    assert disagreements(rows, theirs, ours(entries, executor, rows)) == []
    assert disagreements(rows[::-1], theirs[::-1], ours(entries, executor, rows[::-1])) == []
