"""``shiq-bench score``: official verdicts on a file of answers, bad lines named, no model loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.decode import gold_calls, gold_text
from tests.command import Finished, shiq_bench

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def entries(bfcl_root: Path) -> dict[str, data.Entry]:
    return data.entries(bfcl_root, data.CATEGORIES)


def run(folder: Path, lines: list[Any], *options: str, out: str = "out.jsonl") -> Finished:
    """Score lines (a string stands as it is) from ``in.jsonl`` to ``out``, both in ``folder``."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "in.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    return command(folder, "in.jsonl", "--out", out, *options)


def command(folder: Path, *arguments: str) -> Finished:
    return shiq_bench("score", "--task", "bfcl", *arguments, cwd=folder)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def gold(entry: data.Entry, form: str) -> dict[str, Any]:
    said: dict[str, Any] = {"category": entry.category, "id": entry.id}
    if form == "turns":
        return said | {"turns": [[list(turn)] for turn in entry.gold]}
    if not entry.multi_turn:
        return said | {form: gold_text(entry) if form == "text" else gold_calls(entry)}
    texts = [f"[{', '.join(call.text for call in entry.gold_calls(at))}]" for at in range(len(entry.gold))]
    return said | {"text": [[text, "Done."] for text in texts]}


def rows_of_all_forms(entries: dict[str, data.Entry]) -> list[dict[str, Any]]:
    rows = []
    for number, entry in enumerate(entries.values()):
        if number % 89 == 0 or entry.id in ("multi_turn_base_0", "simple_0"):
            forms = ("text", "turns") if entry.multi_turn else ("text", "calls")
            rows.append(gold(entry, forms[number % 2]))
    return rows


def test_good_lines(entries: dict[str, data.Entry], tmp_path: Path) -> None:
    rows = rows_of_all_forms(entries)
    spoilt = {"category": "multi_turn_base", "id": "multi_turn_base_4"}
    calls = [[list(turn)] for turn in entries["multi_turn_base_4"].gold]
    calls[1] = [["open('/etc/passwd')", "pwd()"]]
    rows += [
        spoilt | {"turns": calls},
        {
            "category": "multi_turn_base",
            "id": "multi_turn_base_2",
            "turns": [[list(entries["multi_turn_base_2"].gold[0])]],
        },
        {"category": "multi_turn_base", "id": "multi_turn_base_167", "text": [["[]"]] * 5},
        {"category": "simple", "id": "simple_1", "text": "[f(a=1+1)]"},
        {"category": "irrelevance", "id": "irrelevance_1", "calls": None},
    ]
    done = run(tmp_path, [*rows[:3], "", *rows[3:], "   "])
    assert (done.code, done.err) == (0, "")
    out = written(tmp_path)
    assert [(row["category"], row["id"]) for row in out] == [(row["category"], row["id"]) for row in rows]
    *good, wrong, short, silent, refused, none = out
    assert len(good) >= 50 and len({row["category"] for row in good}) >= 12
    for row in good:
        assert (row["valid"], row["error_type"]) == (True, None)
        assert list(row) == ["category", "id", "valid", "error_type"] + ["turns"] * ("turns" in row)
        assert ("turns" in row) == row["category"].startswith("multi_turn")
    assert (wrong["valid"], wrong["error_type"]) == (False, "multi_turn:execution_response_mismatch")
    assert wrong["turns"] == [True, False, True]
    assert (short["error_type"], short["turns"]) == ("multi_turn:force_terminated", [True, False, False, False, False])
    assert silent["turns"][4] is None and set(silent["turns"][:4]) == {False}
    assert refused == {
        "category": "simple",
        "id": "simple_1",
        "valid": False,
        "error_type": "ast_decoder:decoder_failed",
    }
    assert none == {"category": "irrelevance", "id": "irrelevance_1", "valid": True, "error_type": None}

    table = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.strip()}
    assert table["multi_turn_base"][1:4] == [str(sum(r["category"] == "multi_turn_base" for r in out)), "of", "200"]
    assert table["multi_turn_base"][-1] == "1" and table["simple"][-1] == "1"
    assert table["live_parallel"] == ["not", "run"] and table["overall"][:2] == ["not", "run"]
    assert f"{len(rows) - 4} of {len(rows)} answers are valid; 2 calls refused" in done.out

    again = (tmp_path / "out.jsonl").read_bytes()
    assert run(tmp_path, [*rows[:3], "", *rows[3:], "   "]).out == done.out
    assert (tmp_path / "out.jsonl").read_bytes() == again


AREA = {"category": "simple", "id": "simple_0"}
BASE = {"category": "multi_turn_base", "id": "multi_turn_base_0"}

BAD: list[tuple[Any, str]] = [
    ("{", "is not JSON: Expecting property name enclosed in double quotes at character 2"),
    ("nothing", "is not JSON"),
    ("[1]", "is a list; expected an object with category, id and one of calls, turns, text"),
    ("null", "is null; expected an object"),
    ("[" * 200_000, "is nested too deeply"),
    ('{"category": "simple", "id": "simple_0", "calls": [{"f": {"a": NaN}}]}', "holds NaN, which is no JSON number"),
    ('{"category": "simple", "id": "simple_0", "calls": [{"f": {"a": -Infinity}}]}', "holds -Infinity"),
    ('{"category": "simple", "id": "simple_0", "calls": [{"f": {"a": 1e999}}]}', "holds the number 1e999"),
    ('{"category": "simple", "id": "simple_0", "calls": [{"f": {"a": ' + "9" * 5000 + "}}]}", "too many digits"),
    ('{"category": "simple", "id": "simple_0", "calls": [{"f": {"a": 1, "a": 2}}]}', "has the field 'a' twice"),
    ('{"category": "simple", "id": "simple_0", "text": "\udcff"}', "is not UTF-8"),
    ({"category": "simple", "text": ""}, "has no id"),
    ({"id": "simple_0", "text": ""}, "has no category"),
    ({"category": "simple", "id": 0, "text": ""}, "id is a number; expected a string"),
    ({"category": ["simple"], "id": "simple_0", "text": ""}, "category is a list; expected a string"),
    *(
        (json.dumps(AREA)[:-1] + f', "calls": [{{"f": {{"a": {"[" * depth}{"]" * depth}}}}}]}}', "nested too deeply")
        for depth in (61, 968, 975, 980)
    ),
    (BASE | {"turns": [[["ls()", json.loads("[" * 70 + "]" * 70)]]]}, "nested too deeply; expected at most 64 levels"),
    (AREA, "has no answer; expected one of calls, turns, text"),
    (AREA | {"text": "", "calls": []}, "has calls and text; expected one of calls, turns, text"),
    (AREA | {"txt": ""}, "has an unknown field 'txt': did you mean 'text'?"),
    (AREA | {"category": "simpel", "text": ""}, "has an unknown category 'simpel': did you mean 'simple'?"),
    (
        AREA | {"id": "simple_400", "text": ""},
        "has an unknown id 'simple_400': simple goes from simple_0 to simple_399",
    ),
    (AREA | {"id": "java_0", "text": ""}, "has category 'simple' and id 'java_0', which is one of 'java'"),
    (AREA | {"turns": []}, "has turns; simple takes calls or text"),
    (AREA | {"text": []}, "text is a list; expected a string"),
    (AREA | {"text": None}, "text is null; expected a string"),
    (AREA | {"calls": {}}, "calls is an object; expected a list"),
    (AREA | {"calls": ["f()"]}, "calls[0] is a string; expected {function: {argument: value, ...}}"),
    (AREA | {"calls": [{"f": {}}, {"f": []}]}, "calls[1] is an object; expected {function: {argument: value, ...}}"),
    (AREA | {"calls": [{}]}, "calls[0] is an object; expected"),
    (AREA | {"calls": [{"f": {}, "g": {}}]}, "calls[0] is an object; expected"),
    (BASE | {"calls": []}, "has calls; multi_turn_base takes turns or text"),
    (BASE | {"text": "[ls()]"}, "text is a string; expected a list"),
    (BASE | {"text": ["[ls()]"]}, "text[0] is a string; expected a list"),
    (BASE | {"text": [["[ls()]", None]]}, "text[0][1] is null; expected a string"),
    (BASE | {"turns": [[], ["ls()"]]}, "turns[1][0] is a string; expected a list"),
    (BASE | {"turns": [[["ls()", 1]]]}, "turns[0][0][1] is a number; expected a string"),
    (BASE | {"turns": True}, "turns is true or false; expected a list"),
]


def test_bad_lines_are_named_and_left_out(entries: dict[str, data.Entry], tmp_path: Path) -> None:
    first, last = gold(entries["parallel_0"], "calls"), gold(entries["multi_turn_base_3"], "turns")
    done = run(tmp_path, [first, *(line for line, _ in BAD), last, first])
    assert done.code == 1
    errors = done.err.splitlines()
    assert len(errors) == len(BAD)
    for number, ((_, message), error) in enumerate(zip(BAD, errors, strict=True), 2):
        assert error.startswith(f"in.jsonl: line {number}: ") and message in error and len(error) < 600, error
    assert "1 lines answer an entry that another line has answered too" in done.out
    assert [(row["id"], row["valid"]) for row in written(tmp_path)] == [
        ("parallel_0", True),
        ("multi_turn_base_3", True),
        ("parallel_0", True),
    ]


def test_as_deep_as_it_may_be(entries: dict[str, data.Entry], tmp_path: Path) -> None:
    done = run(tmp_path, [AREA | {"calls": [{"f": {"a": json.loads("[" * 60 + "]" * 60)}}]}])
    assert (done.code, done.err) == (0, "")
    assert written(tmp_path)[0]["error_type"].startswith("simple_function_checker")


def test_a_line_that_is_repeated_moves_no_weight(entries: dict[str, data.Entry], tmp_path: Path) -> None:
    """One answer right, in a category of one entry; one wrong, in another: whatever is repeated, the mean is 1/2."""
    members = [next(e for e in entries.values() if e.category == name) for name in data.LIVE]
    lines = [gold(entry, "text") for entry in members]
    lines[0] = AREA | {"category": "live_simple", "id": members[0].id, "text": "[f()]"}

    def scores(lines: list[Any]) -> dict[str, list[str]]:
        done = run(tmp_path, lines)
        assert done.code == 0
        return {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.strip()}

    once, repeated = scores(lines), scores([*lines, *[lines[0]] * 7])
    assert once["live"][:2] == repeated["live"][:2] == ["83.33%", "6"]
    assert once["live_ast"][:2] == repeated["live_ast"][:2] == ["75.00%", "4"]
    assert repeated["live_simple"][:4] == ["0.00%", "1", "of", "258"]
    right = gold(members[0], "text")
    assert scores([*lines, right, right, right])["live_simple"][:2] == ["75.00%", "1"]  # accuracy is over lines


def test_an_answer_that_cannot_be_scored_is_named(entries: dict[str, data.Entry], tmp_path: Path) -> None:
    maths = next(e for e in entries.values() if e.multi_turn and "MathAPI" in e.classes)
    hang = {"category": maths.category, "id": maths.id, "turns": [[["power(base=7, exponent=99999999999)"]]]}
    done = run(tmp_path, [gold(entries["simple_0"], "text"), hang, "{"])
    assert done.code == 1
    assert [line.split(": ", 2)[1] for line in done.err.splitlines()] == ["line 3", "line 2"]
    assert "line 2: could not be scored, and counts as wrong (unscored: stopped after 10 seconds)" in done.err
    assert "1 of 2 answers could not be scored and count as wrong" in done.out
    good, bad = written(tmp_path)
    assert good["valid"] and not bad["valid"]
    assert bad["error_type"] == "unscored: stopped after 10 seconds"


def test_nothing_is_written_where_nothing_can_be_scored(tmp_path: Path) -> None:
    for lines in (["{"], [""], []):
        done = run(tmp_path, lines)
        assert done.code == 2
        assert done.err.splitlines()[-1] == ("error: in.jsonl holds no answer that can be scored: nothing was written")
        assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be_had(entries: dict[str, data.Entry], tmp_path: Path) -> None:
    lines = [gold(entries["simple_0"], "text")]
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    before = json.dumps(lines[0]) + "\n"
    for out, message in {
        "in.jsonl": "--out in.jsonl is the file of answers",
        "folder": "--out folder is a folder",
        "file/out.jsonl": "cannot write --out file/out.jsonl: its folder is a file",
        "x" * 300: "File name too long",
        f"new/{'x' * 250}": "File name too long",  # a name that fits, and whose temporary one does not
        "circle": "cannot write --out circle",
    }.items():
        done = run(tmp_path, lines, out=out)
        assert done.code == 2 and done.err.count("\n") == 1, done.err
        assert message in done.err and "scoring" not in done.err
        assert (tmp_path / "in.jsonl").read_text() == before
    for name in ("absent.jsonl", "folder"):
        done = command(tmp_path, name, "--out", "out.jsonl")
        assert done.code == 2 and done.err.startswith(f"error: cannot read {name}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file", "folder", "in.jsonl", "new"]


def test_the_file_of_verdicts_is_tried_before_anything_is_scored(tmp_path: Path) -> None:
    """No line can be scored, and it is the file that is complained about."""
    for out in ("x" * 300, f"new/{'x' * 250}", "in.jsonl/out.jsonl"):
        done = run(tmp_path, ["{"], out=out)
        assert done.code == 2 and done.err.startswith(f"error: cannot write --out {out}: ")
        assert done.err.count("\n") == 1


def test_a_task_that_scores_no_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    done = command(tmp_path, "in.jsonl", "--out", "out.jsonl", "--task", "tree")
    assert done.code == 2
    assert done.err == "error: task tree cannot score a file\n"


def test_no_model_library_is_loaded(entries: dict[str, data.Entry], tmp_path: Path) -> None:
    rows = rows_of_all_forms(entries)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = (
        "import sys; from shiq_bench.cli.app import app; "
        "app(['score', '--task', 'bfcl', 'in.jsonl', '--out', 'out.jsonl'], standalone_mode=False); "
        "heavy = {'torch', 'transformers', 'vllm', 'numpy', 'pandas', 'datasets', 'tree_sitter', 'bfcl_eval'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(written(tmp_path)) == len(rows)
