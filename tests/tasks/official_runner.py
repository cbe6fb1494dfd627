"""BFCL's official runner functions, decoders and checkers in a clean process, and this project's verdicts beside.

Of this project the official side gets category, id and answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.decode import gold_calls, gold_text
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
