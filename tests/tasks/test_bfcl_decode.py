"""Single answers: ground truth as an answer, what an answer is counted as, and decoders that never raise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.decode import LONGEST, decode, gold_calls, gold_text
from shiq_bench.tasks.bfcl.executor import Executor
from tests.tasks.official_runner import IMPOSSIBLE, official


@pytest.fixture(scope="module")
def entries(bfcl_root: Path) -> dict[str, data.Entry]:
    return data.entries(bfcl_root, data.GROUPS["single_turn"])


@pytest.fixture(scope="module")
def executor(bfcl_root: Path) -> Iterator[Executor]:
    executor = Executor(bfcl_root, workers=2, timeout=60.0)
    yield executor
    executor.close()


@pytest.mark.parametrize("form", ["text", "calls"])
def test_every_ground_truth_is_a_valid_answer(form: str, entries: dict[str, data.Entry], executor: Executor) -> None:
    said: dict[str, Any] = {i: gold_text(e) if form == "text" else gold_calls(e) for i, e in entries.items()}
    outcomes = executor.judge_single([({**entries[i].request, "partial": True}, {form: said[i]}) for i in entries])
    verdicts = dict(zip(entries, (outcome.value for outcome in outcomes), strict=True))
    assert len(verdicts) == 3641
    assert {i for i, verdict in verdicts.items() if not verdict["valid"]} == IMPOSSIBLE
    assert {i for i, verdict in verdicts.items() if verdict["partial"] < 1} == IMPOSSIBLE
    for i, verdict in verdicts.items():
        assert verdict["calls"] == len(gold_calls(entries[i]))
        assert not verdict["unparsable"] and not verdict["refused"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("simple_0", "[calculate_triangle_area(base=10, height=5, unit='units')]"),
        ("irrelevance_0", ""),
        ("live_relevance_0-0-0", "[search_engine.query()]"),
        ("java_18", "[SysRoleController.queryPageRoleCount(pageNo=3, pageSize=20)]"),
        (
            "java_22",
            "[PmsProductServiceImpl.updateNewStatus(ids=new ArrayList<>(Arrays.asList(101L, 202L, 303L)), "
            "newStatus=2)]",
        ),
        (
            "javascript_2",
            '[extractLastTransactionId(filepath="/var/log/db.log", status=["completed", "failed"], encoding="utf-8", '
            'processFunction="processFunction")]',
        ),
    ],
)
def test_ground_truth_reads_like_an_answer(entry: str, text: str, entries: dict[str, data.Entry]) -> None:
    assert gold_text(entries[entry]) == text


AREA = "calculate_triangle_area"
LONG = "x" * LONGEST


@pytest.mark.parametrize(
    ("entry", "answer", "error", "calls", "unparsable", "refused"),
    [
        ("simple_0", {"text": ""}, "ast_decoder:decoder_failed", 0, False, False),
        ("simple_0", {"text": "```[]```"}, "ast_decoder:decoder_failed", 0, False, False),
        ("simple_0", {"text": "()"}, "simple_function_checker:wrong_count", 0, False, False),
        ("simple_0", {"text": "It is 25."}, "ast_decoder:decoder_failed", 0, True, False),
        ("simple_0", {"text": f"[{AREA}(base=10*1), f()]"}, "ast_decoder:decoder_failed", 2, False, True),
        ("simple_0", {"text": f"[{AREA}(base=10*1), f(a=b.c)]"}, "ast_decoder:decoder_failed", 0, True, False),
        ("simple_0", {"text": f"[{AREA}(base=10*1), f(a=b*2)]"}, "ast_decoder:decoder_failed", 0, True, False),
        ("simple_0", {"text": f"[{AREA}(base=10)]"}, "simple_function_checker:missing_required", 1, False, False),
        ("simple_0", {"text": f"[{AREA}(base=10, height=5)]"}, "", 1, False, False),
        ("simple_0", {"calls": None}, "ast_decoder:decoder_failed", 0, True, False),
        ("simple_0", {"calls": ["f()"]}, "ast_decoder:decoder_wrong_output_format", 0, True, False),
        ("simple_0", {"calls": [{AREA: {"base": 10, "height": 5}}]}, "", 1, False, False),
        ("irrelevance_0", {"text": "No function fits."}, "", 0, True, False),
        ("irrelevance_0", {"text": "[f()]"}, "irrelevance_error:decoder_success", 1, False, False),
        ("irrelevance_0", {"text": "[f(a=1+1)]"}, "irrelevance_error:decoder_success", 1, False, True),
        ("irrelevance_0", {"text": f"f(a='{LONG}')"}, "irrelevance_error:decoder_success", 1, False, True),
        ("irrelevance_0", {"text": f"[{'f(), ' * 6000}]"}, "irrelevance_error:decoder_success", 6000, False, False),
        ("irrelevance_0", {"text": " " * 2 * LONGEST}, "", 0, False, False),
        ("java_18", {"text": f"f(a='{LONG}')"}, "ast_decoder:decoder_failed", 1, False, True),
        ("live_relevance_0-0-0", {"text": "[f(a=radius*2)]"}, "relevance_error:decoder_failed", 0, True, False),
        ("live_relevance_0-0-0", {"text": "[]"}, "relevance_error:decoder_failed", 0, False, False),
        ("live_relevance_0-0-0", {"calls": [{"f": {}}]}, "", 1, False, False),
        ("java_18", {"text": "[f(]"}, "ast_decoder:decoder_failed", 0, True, False),
        ("java_18", {"text": "int x = 5;"}, "ast_decoder:decoder_wrong_output_format", 0, True, False),
        ("javascript_0", {"text": "5"}, "ast_decoder:decoder_wrong_output_format", 0, True, False),
    ],
)
def test_what_an_answer_counts_as(
    entry: str,
    answer: dict[str, Any],
    error: str,
    calls: int,
    unparsable: bool,
    refused: bool,
    entries: dict[str, data.Entry],
    executor: Executor,
) -> None:
    (outcome,) = executor.judge_single([(entries[entry].request, answer)])
    assert outcome.value == {
        "valid": not error,
        "error_type": error,
        "calls": calls,
        "unparsable": unparsable,
        "refused": refused,
    }


def test_answers_without_any_batch(executor: Executor) -> None:
    assert executor.judge_single([]) == []


#: Arithmetic that fails whatever it is about; the official decoder is run on it beside ours.
FAILING = [
    "f(a=radius*2)", "f(a=2**-x)", "f(a=(1+1)*(2-x))", "f(a=sum/2)", "f(a=value*2)", "f(a=[x]*2)", "f(a='%s' % x)",
    "f(a=f'{x}' + '!')", "f(a=max-min)", "f(a=-len + 1)",
]  # fmt: skip

#: Arithmetic that the official decoder gets through.
EVALUATED = [
    "f(a=1+1)", "f(a='a'*3)", "f(a=int | None)", "f(a='%s' % id)", "f(a=[int]*2)", "f(a=(not len)+1)",
    "f(a=(1 or x)+1)", "f(a=(1 if 1 else x)+1)", "f(a=(x:=1)+x)", "f(a=__name__*2)",
    "f(a=len('ab')+1)", "f(a=f'{int}'+'!')", "f(a='a'.upper()+'b')", "f(a=[1][0]+1)", "f(a=[b for b in 'ab']+[1])",
    "f(a=1+1, b=[2*3]), g(c={'d': 2-1})",
]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "f(a=-'x')",
        "f(a={[]: 1})",
        "f(a=-" + "9" * 5000 + ")",
        "f(a=" + "b[0]" * 8000 + ")",
        "\0",
        *FAILING,
        "f(a=1+1), g(b=x.y)",
        "f(a=[1+1, {'b': (x.y,)}])",
        "f(a={1+1: -(1+1)})",
        "f(a=g(b=1+1, c=x*2))",
    ],
)
def test_what_the_official_decoder_raises_is_a_failure(text: str) -> None:
    decoded = decode(text, "simple")
    assert (decoded.failed, decoded.refused, decoded.output) == (True, 0, None)


@pytest.mark.parametrize("text", EVALUATED)
def test_what_may_be_evaluated_is_refused(text: str) -> None:
    decoded = decode(text, "simple")
    assert (decoded.failed, decoded.refused, decoded.output) == (True, text.count("f(") + text.count("g("), None)


def test_only_a_certain_failure_is_one(bfcl_root: Path) -> None:
    theirs = [value for value, _ in official(bfcl_root, [*FAILING, *EVALUATED])]
    assert [value == "failed" for value in theirs] == [True] * len(FAILING) + [False] * len(EVALUATED)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("f(), " * 50_000, 50_000),
        (f"f(a=[{'[1, 2], ' * 30_000}'{'x' * 700_000}'])", 1),
        (f"f(a={'1+' * 400_000}1)", 0),
        (f"{'a.' * 400_000}b()", 0),
        (f"f(a={'-' * 900_000}1)", 0),
        ("f(" * 450_000, 0),
    ],
)
def test_long_answers_are_read(text: str, calls: int, entries: dict[str, data.Entry], executor: Executor) -> None:
    (outcome,) = executor.judge_single([(entries["irrelevance_0"].request, {"text": text})])
    assert outcome.value == {
        "valid": not calls,
        "error_type": "irrelevance_error:decoder_success" if calls else "",
        "calls": calls,
        "unparsable": not calls,
        "refused": False,
    }
