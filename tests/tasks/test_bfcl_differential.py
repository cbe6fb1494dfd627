"""Every verdict is that of the official runner, which is run beside ours on the same answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.tasks.bfcl import data
from shiq_bench.tasks.bfcl.decode import LONGEST, decode, gold_calls
from shiq_bench.tasks.bfcl.executor import Executor
from tests.tasks.official_runner import IMPOSSIBLE, Row, Verdict, gold_rows, official, ours, written
from tests.tasks.perturbations import ANY, perturbed


@pytest.fixture(scope="module")
def entries(bfcl_root: Path) -> dict[str, data.Entry]:
    return data.entries(bfcl_root, data.CATEGORIES)


@pytest.fixture(scope="module")
def executor(bfcl_root: Path) -> Iterator[Executor]:
    executor = Executor(bfcl_root, workers=1)
    yield executor
    executor.close()


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
