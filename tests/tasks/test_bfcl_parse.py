"""The grammar: inside it the official decoder and ours agree, everything else is refused or ends the turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.parse import (
    MAX_TEXT,
    Call,
    Refusal,
    is_canonical,
    is_empty,
    parse_answer,
    parse_call,
    parse_gold,
)
from tests.tasks.conftest import run_official

OFFERED = {"cd", "ls", "mean", "f", "g"}

#: Inside the grammar: the official decoder, run beside ours, yields the same call strings.
SAME = [
    "[ls()]",
    "ls()",
    "ls(), cd(folder='a')",
    "```\n[cd(folder='a')]\n```",
    "`[ls()]`",
    "[cd(folder='a b'), cd(folder=\"it's\")]",
    "[cd(folder='line\\nbreak'), ls(a=True)]",
    "[mean(numbers=[1, -2, 3.5, 1e3])]",
    "[f(a=None, b=(1, 2), c=[[1], []], d={'k': 1, 'n': {'m': [2]}})]",
    "[f(d={1: 'x', 2.5: 'y', None: 3})]",
    "[f(d={-1: 'x', True: 'y'})]",
    "[f(d=[{'k': {}}])]",
    "[f(a=1, a=2)]",
    "[ls(True), cd('x', folder='y')]",
    "{ls(), f()}",
    "([ls()])",
    "()",
    "'[ls()]'",
    "[ls(),]",
    "[f(a='x' 'y', b=0x10, c=1_000, d='\\d', e=-0.0)]",
    "[ｆ(a=1)]",
    "[f(a='\\ud800')]",
    "[ls()",
    # Undecodable alike.
    "",
    "[]",
    "I have moved the file.",
    "[ ls()]",
    "ls()\ncd(folder='a')",
    "[ls(), 1]",
    "[[ls()], [ls()]]",
    "[f(a={})]",
    "[f(a={'b': 1, 'c': {}})]",
    "[f(a=0x" + "f" * 5000 + ")]",
    "[f(a=" + "9" * 5000 + ")]",
    "f(\0)",
    "[" * 300,
    "f" + "()" * 10_000,
    "-" * 30_000 + "1",
    "a." * 15_000 + "b()",
    "1+" * 15_000 + "f()",
]

#: Outside the grammar: never executed, whatever the official decoder makes of it.
REFUSED = [
    "f(a=1+1)",
    "f(a=g())",
    "f(a=b)",
    "f(a=b.c)",
    "f(a=b[0])",
    "f(a=[x for x in (1,)])",
    "f(a=lambda: 0)",
    "f(a=f'{1}')",
    "f(a={1, 2})",
    "f(a=b'x')",
    "f(a=1j)",
    "f(a=...)",
    "f(a=not True)",
    "f(a=-True)",
    "f(a=--1)",
    "f(a=1e999)",
    "f(a=1 if True else 2)",
    "f(a={'b': {'c': 1}})",
    "f(a={'it\\'s': 1})",
    "f(a={**{}, 'b': 1})",
    "f(a=(b := 1))",
    "f(*[1])",
    "f(**{'a': 1})",
    "f(g())",
    "f.g(a=1)",
    "f()()",
    "f(a=[g()])",
]


def test_decoder_agrees_with_the_official_one(bfcl_root: Path) -> None:
    theirs = run_official(bfcl_root, texts=SAME)["decoded"]
    for text, official in zip(SAME, theirs, strict=True):
        ours = parse_answer(text, OFFERED)
        if official is None:
            assert ours is None, text[:80]
        else:
            assert ours is not None, text[:80]
            assert [call.text for call in ours if isinstance(call, Call)] == official, text[:80]
    assert sum(official is None for official in theirs) == 17


@pytest.mark.parametrize("text", REFUSED)
def test_outside_the_grammar_is_refused_and_its_neighbours_are_not(text: str) -> None:
    parsed = parse_answer(f"[ls(), {text}, cd(folder='a')]", OFFERED)
    assert parsed is not None
    first, refusal, last = parsed
    assert isinstance(first, Call) and isinstance(last, Call)
    assert isinstance(refusal, Refusal)
    assert refusal.error.startswith("Error during execution: ") and len(refusal.error) < 120


def test_unknown_names_are_refused() -> None:
    assert parse_answer("open(file='x')", OFFERED) == [Refusal("Error during execution: name 'open' is not defined")]
    (long,) = parse_answer("x" * 5000 + "()", OFFERED) or []
    assert isinstance(long, Refusal) and len(long.error) < 200


@pytest.mark.parametrize(
    ("text", "rebuilt"),
    [
        ("cd('a')", "cd('a')"),
        ("cd('a', 2, folder=\"b\")", "cd('a', 2, folder='b')"),
        (" cd ( folder = 'a' ) # there", "cd(folder='a')"),
        ("f({}, a={1: {'b': {2: None}}}, c={})", "f({}, a={1: {'b': {2: None}}}, c={})"),
        ("f(-1, (2,), [-3.50], {-1: 0x10})", "f(-1, (2,), [-3.5], {-1: 16})"),
        ("f(a={'it\\'s': 1})", 'f(a={"it\'s": 1})'),
    ],
)
def test_decoded_calls_keep_what_they_say(text: str, rebuilt: str) -> None:
    call = parse_call(text, OFFERED)
    assert isinstance(call, Call)
    assert call.text == rebuilt
    assert is_canonical(rebuilt, OFFERED)
    assert eval(rebuilt, {"cd": _record, "f": _record}) == eval(text.strip(), {"cd": _record, "f": _record})


def _record(*args: object, **keywords: object) -> object:
    return args, keywords


@pytest.mark.parametrize(
    "text", [text for text in REFUSED if text not in ("f(a={'b': {'c': 1}})", "f(a={'it\\'s': 1})")]
)
def test_decoded_calls_are_refused_like_others(text: str) -> None:
    assert isinstance(parse_call(text, OFFERED), Refusal)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cd",
        "[cd()]",
        "cd(), ls()",
        "cd(a=1, a=2)",
        "open('x')",
        "(cd)('a')",
        "\uff43d('a')",
        "cd(",
        "\0",
        "1",
        "x" * 40_000,
        "cd(a='" + "x" * MAX_TEXT + "')",
    ],
)
def test_what_is_no_call_is_refused(text: str) -> None:
    refusal = parse_call(text, OFFERED)
    assert isinstance(refusal, Refusal) and len(refusal.error) < 200


def test_positional_arguments_are_dropped_and_counted() -> None:
    (call,) = parse_answer("cd('a', 2, folder='b')", OFFERED) or []
    assert isinstance(call, Call)
    assert (call.text, call.dropped) == ("cd(folder='b')", 2)


def test_too_long_a_text_is_no_answer() -> None:
    assert parse_answer("f(a='" + "x" * MAX_TEXT + "')", OFFERED) is None


def test_what_is_rebuilt_may_be_longer_than_what_was_said() -> None:
    said = "cd(folder='" + "\U000e0001" * (MAX_TEXT - 20) + "')"
    (answered,), decoded = parse_answer(said, OFFERED) or [], parse_call(said, OFFERED)
    assert isinstance(answered, Call) and isinstance(decoded, Call)
    assert answered.text == decoded.text and len(decoded.text) > 9 * MAX_TEXT
    assert is_canonical(decoded.text, OFFERED)
    assert isinstance(parse_call(decoded.text, OFFERED), Refusal)


@pytest.mark.parametrize(("text", "empty"), [("", True), ("[]", True), ("``` \n```", True), ("done", False)])
def test_is_empty(text: str, empty: bool) -> None:
    assert is_empty(text) is empty


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("cd(folder='a')", True),
        ("mean(numbers=[1, -2])", True),
        ('cd(folder="a")', False),
        ("[cd(folder='a')]", False),
        ("cd('a')", True),
        ("cd('a', folder={'b': {}})", True),
        (" cd('a')", False),
        ("cd(['a' ])", False),
        ("cd(a=1, a=2)", False),
        ("open(file='a')", False),
        ("cd(folder=open(file='a'))", False),
        ("cd(folder='a'), ls()", False),
        ("", False),
    ],
)
def test_is_canonical(text: str, canonical: bool) -> None:
    assert is_canonical(text, OFFERED) is canonical


def test_gold_names_its_positional_arguments() -> None:
    parameters = {"sort": ["file_name"], "cd": ["folder"]}
    assert parse_gold("sort('a.txt')", parameters).text == "sort(file_name='a.txt')"
    for bad in ("sort('a', 'b')", "rm('a')", "sort(a=1+1)", "sort(", "[sort('a'), sort('b')]"):
        with pytest.raises(ValueError, match="outside the grammar"):
            parse_gold(bad, parameters)


def test_every_ground_truth_call_fits(bfcl_root: Path) -> None:
    docs = [doc for group in data.documents(bfcl_root).values() for doc in group]
    parameters = {doc["name"]: list(doc["parameters"]["properties"]) for doc in docs}
    count = 0
    for category in ("base", "miss_func", "miss_param", "long_context"):
        path = bfcl_root / f"bfcl_eval/data/possible_answer/BFCL_v3_multi_turn_{category}.json"
        for row in map(json.loads, path.read_text().splitlines()):
            for text in (text for turn in row["ground_truth"] for text in turn):
                call = parse_gold(text, parameters)
                assert parse_answer(f"[{call.text}]", parameters) == [call]
                assert is_canonical(call.text, parameters)
                count += 1
    assert count == 4701
