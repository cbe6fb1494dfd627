"""Nothing a model prints is executed, breaks the run, or costs another dialogue anything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.tasks.bfcl import Bfcl, data
from shiq_bench.tasks.bfcl.decode import gold_text
from shiq_bench.tasks.bfcl.dialogue import Dialogue
from shiq_bench.tasks.bfcl.executor import BATCH, Executor
from shiq_bench.tasks.bfcl.score import judge
from tests.tasks.conftest import LONG, CharCodec, gold_script, observed, play, run_official

ERROR = "Error during execution: "

#: ``@M`` is a file that must not appear, ``@V`` one that must stay as it is.
HOSTILE = [
    "[inspect.os.system(command='touch @M')]",
    "[open(file='@M', mode='w')]",
    "[open(file='@V', mode='w')]",
    "[inspect.os.remove(path='@V')]",
    "[inspect.linecache.getlines(filename='@V')]",
    "[globals()]",
    "[inspect.sys.exit()]",
    "[exit()]",
    "[cd(folder=__import__('os').system('touch @M')+1)]",
    "[cd(__import__('os').system('touch @M'))]",
    "[cd(folder=(lambda: __import__('os').system('touch @M'))())]",
    "[cd(folder=[open(p, 'w') for p in ('@M',)])]",
    '[cd(folder=f\'{open("@M", "w")}\')]',
    "[cd(folder=open('@M', 'w'))]",
    "[cd(**{'folder': open('@M', 'w')})]",
    "[cd(*[open('@M', 'w')])]",
    "[cd(folder=x) for x in [open('@M', 'w')]]",
    "[cd(folder={'a\\': open(\"@M\", \"w\"), \\'b': 1})]",
    "[cd(folder='a').__class__.__init__.__globals__['os'].system('touch @M')]",
    '[eval(\'open("@M", "w")\')]',
    '[exec(source=\'open("@M", "w")\')]',
    "[importlib.sys.modules.update(m={'bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker': None})]",
    "[copy.deepcopy(x=1), json.dump(obj=1, fp=open('@M', 'w'))]",
    "[_load_scenario(scenario={'root': 1})]",
    "[__import__(name='os')]",
    "import os; os.system('touch @M')",
    "]; open('@M', 'w'); [",
    "print('\\x1b[2J') or open('@M', 'w')",
    "[cd(folder='" + "../" * 3000 + "etc')]",
    "[" * 5000,
    "cd(folder=" + "-" * 20_000 + "1)",
    "cd" + "(folder=1)" * 3000,
    "a." * 10_000 + "b()",
    "[cd(folder=" + "9" * 10_000 + ")]",
    "[cd(folder=0x" + "f" * 10_000 + ")]",
    "\0\0[ls()]",
    "[cd(folder='\ud800\\udfff')]",
    "[ls(a=1e999)]",
    "[cd(folder='a' 'b', folder=None), cd(folder=[[[[[]]]]])]",
]


#: What would leave a trace if it ran, and where in an answer it may stand.
PAYLOADS = [
    "__import__('os').system('touch @M')",
    "open('@M', 'w')",
    "open(file='@V', mode='w')",
    "__import__('os').remove('@V')",
    "__import__('pathlib').Path('@M').touch()",
    "eval('open(\\'@M\\', \\'w\\')')",
    "exec('import os; os.mkdir(\\'@M\\')')",
    "(lambda: open('@M', 'w'))()",
    "[open(p, 'w') for p in ('@M',)][0]",
    "inspect.os.system('touch @M')",
]
PLACES = [
    "[{}]",
    "[f({})]",
    "[f(a={})]",
    "[f(a={}+1)]",
    "[f(a=1*(2-{}))]",
    "[f(a=-{})]",
    "[f(a=[1, {{'b': {}}}])]",
    "[f(a=g({}))]",
    "[f(a=g(b={}))]",
    "[f(a=lambda: {})]",
    "[f(a=b[{}])]",
    "[f(**{{'a': {}}})]",
    "f(a=1) and {}",
]
HOSTILE_SOURCE = [
    "[f(a=System.exit(0))]",
    '[f(a=Runtime.getRuntime().exec("touch @M"))]',
    '[f(a=new ProcessBuilder("touch", "@M").start())]',
    "[f(a=require('fs').writeFileSync('@M', ''))]",
    "[f(a=(() => require('child_process').execSync('touch @M'))())]",
    "[f(a=`${process.exit()}`)]",
    "f(" * 8000,
    "f(a=" + "{" * 15_000,
    "f(a=" + "new A(" * 5000 + ")" * 5000 + ")",
    "f(a=" + "-" * 30_000 + "1)",
    "a." * 15_000 + "b(c=1)",
    "f(a=" + "[" * 10_000 + "]" * 10_000 + ")",
    '[f(a="' + "\\u0000" * 4000 + '")]',
    "[f(a='\ud800')]",
    "\u202e[f(a=1)]\0",
]


def _base_0(bfcl: Bfcl, count: int) -> list[Dialogue]:
    return [d for d in bfcl.episodes(["multi_turn_base_0"] * count, CharCodec(), LONG) if isinstance(d, Dialogue)]


def test_hostile_answers(bfcl: Bfcl, tmp_path: Path) -> None:
    marker, victim = tmp_path / "marker", tmp_path / "victim"
    victim.write_text("precious")
    texts = [text.replace("@M", str(marker)).replace("@V", str(victim)) for text in HOSTILE]
    assert len(texts) >= 20
    codec = CharCodec()
    dialogues = _base_0(bfcl, len(texts))
    starts = [len(d.transcript.token_ids) for d in dialogues]
    bfcl.step(dialogues, [codec.completion(text) for text in texts])

    assert not marker.exists()
    assert victim.read_text() == "precious"
    errors = ended = 0
    for text, dialogue, start in zip(texts, dialogues, starts, strict=True):
        seen = observed(dialogue, start)
        told = seen.startswith("<tool>") and (ERROR in seen or '"error": ' in seen or "No such directory" in seen)
        assert told or (dialogue.turn == 1 and seen.startswith("<user>")), (text[:80], seen[:200])
        assert "precious" not in seen
        errors += told
        ended += not told
    assert errors >= 20
    assert ended >= 5

    # Each dialogue goes on, in its initial state: `mkdir` is told nothing, `ls` shows what is there.
    starts = [len(d.transcript.token_ids) for d in dialogues]
    bfcl.step(dialogues, [codec.completion("[mkdir(dir_name='new'), ls()]")] * len(texts))
    for dialogue, start in zip(dialogues, starts, strict=True):
        seen = observed(dialogue, start)
        assert seen == '<tool>None\n{"current_directory_content": ["document", "archive", "new"]}\n'
    assert not marker.exists()
    for (_, score), dialogue in zip(bfcl.finish(dialogues, "test"), dialogues, strict=True):
        assert score.metrics["entry_accuracy"] == score.total == 0, dialogue.texts
        assert score.metrics["unscored"] == 0

    # The checkers are still the official ones: truth passes, nonsense does not.
    good, bad = play(bfcl, [("multi_turn_base_0", gold_script(bfcl, "multi_turn_base_0")), ("multi_turn_base_0", [])])
    assert good[1].metrics["entry_accuracy"] == 1
    assert bad[1].metrics["entry_accuracy"] == 0


def test_hostile_answers_to_every_decoder(bfcl_root: Path, tmp_path: Path) -> None:
    marker, victim = tmp_path / "marker", tmp_path / "victim"
    victim.write_text("precious")
    payloads = [place.format(payload) for place in PLACES for payload in PAYLOADS]
    every = dict.fromkeys([*HOSTILE, *payloads, *HOSTILE_SOURCE])
    texts = [text.replace("@M", str(marker)).replace("@V", str(victim)) for text in every]
    assert len(texts) >= 150

    # That a text of this kind does leave a trace when it is run, the official decoder shows.
    run_official(bfcl_root, texts=[f"[f(a=__import__('os').system('touch {marker}')+1)]"])
    assert marker.exists()
    marker.unlink()

    categories = ["simple", "parallel", "live_multiple", "irrelevance", "java", "javascript", "multi_turn_base"]
    entries = data.entries(bfcl_root, categories)
    first = {category: next(e for e in entries.values() if e.category == category) for category in categories}
    executor = Executor(bfcl_root, workers=1, timeout=20.0)
    try:
        single = [(first[category].request, {"text": text}) for category in categories[:-1] for text in texts]
        outcomes = executor.judge_single(single)
        assert not marker.exists() and victim.read_text() == "precious"
        played = [
            (first["multi_turn_base"], {"category": "multi_turn_base", kind: [[step]] * 4})
            for text in texts
            for kind, step in (("text", text), ("turns", [text]), ("turns", [text.strip("[]")]))
        ]
        dialogues = judge(played, executor)
        assert not marker.exists() and victim.read_text() == "precious"

        for (request, answer), outcome in zip(single, outcomes, strict=True):
            # An official parser of Java or JavaScript may give up in its own way; that costs this answer alone.
            if outcome.failure:
                assert request["category"] in ("java", "javascript"), answer["text"][:80]
            elif request["category"] == "irrelevance":
                assert outcome.value["valid"] or outcome.value["calls"], answer["text"][:80]
            else:
                assert not outcome.value["valid"], answer["text"][:80]
        assert sum(bool(outcome.failure) for outcome in outcomes) <= 10
        assert not any(dialogue["valid"] or dialogue["error_type"].startswith("unscored") for dialogue in dialogues)
        print(f"{len(texts)} strings, {len(single) + len(played)} answers, none executed")

        # The checkers are still the official ones.
        good = executor.judge_single(
            [(first[name].request, {"text": gold_text(first[name])}) for name in categories[:-1]]
        )
        assert all(outcome.value["valid"] for outcome in good)
    finally:
        executor.close()


def test_an_answer_that_hangs_or_ends_the_worker_costs_itself_alone(bfcl_root: Path) -> None:
    entries = data.entries(bfcl_root, ["simple"])
    good = [(e.request, {"text": gold_text(e)}) for e in list(entries.values())[: BATCH + 6]]
    java = data.entries(bfcl_root, ["java"])["java_1"]
    # The official converter of maps matches this with a pattern whose time grows with a power of the length.
    endless = {"object": "Customers", "useShortName": "true", "params": "new HashMap<>() {" + " " * 20_000}
    bad = java.request, {"calls": [{java.functions[0]["name"]: endless}]}
    executor = Executor(bfcl_root, workers=1, timeout=1.0)
    try:
        outcomes = executor.judge_single([*good[:3], bad, *good[3:], bad])
        failures = [outcome.failure for outcome in outcomes]
        assert failures.pop(3) == failures.pop() == "stopped after 1 seconds"
        assert not any(failures)
        assert all(outcome.value["valid"] for outcome in outcomes if not outcome.failure)
    finally:
        executor.close()


def test_counts(bfcl: Bfcl) -> None:
    script = [["[open(file='x'), ls()]", "[ls(a=1+1)]", "that is all"], ["[ls('x')]", ""], [], []]
    ((_, score),) = play(bfcl, [("multi_turn_base_0", script)])
    assert (score.metrics["refused"], score.metrics["refused/n"]) == (2, 4)
    assert (score.metrics["unparsable"], score.metrics["unparsable/n"]) == (1, 7)
    assert score.details["positional_dropped"] == 1
    assert score.details["texts"] == [script[0], script[1], [""], [""]]
    # One result a call, of each step that made any: the reader of a record sees what the model saw.
    results = score.details["results"]
    assert [[len(step) for step in turn] for turn in results] == [[2, 1], [1], [], []]
    assert results[0][0][0].startswith(ERROR) and "final_report.pdf" not in results[0][0][0]
    assert len(score.details["questions"]) == 4 and "final_report.pdf" in score.details["questions"][0]


def test_the_worker_looks_again(bfcl: Bfcl, tmp_path: Path) -> None:
    """Should the parent ever hand over something else, the worker refuses it, stepping or judging."""
    marker = tmp_path / "marker"
    evil = f"inspect.os.system(command='touch {marker}')"
    entry = bfcl.entries["multi_turn_base_0"].request
    session = bfcl.executor.open(entry)
    (outcome,) = bfcl.executor.run([(session, [evil])])
    (verdict,) = bfcl.executor.judge([(session, [[[evil]]])])
    assert "refused to execute" in outcome.failure
    assert "refused to execute" in verdict.failure
    assert not marker.exists()


@pytest.fixture
def hasty(bfcl_root: Path) -> Bfcl:
    """One worker, shared by all, and a second a step."""
    assert bfcl_root
    return Bfcl(workers=1, timeout=1.0)


@pytest.mark.parametrize(
    "burn",
    ["power(base=9, exponent=99999999999)", "square_root(number=2, precision=100000000)"],
)
def test_a_call_that_burns_is_stopped_and_costs_only_itself(hasty: Bfcl, burn: str) -> None:
    maths = next(i for i, e in hasty.entries.items() if "MathAPI" in e.classes)
    codec = CharCodec()
    slow, neighbour = hasty.episodes([maths, "multi_turn_base_0"], codec, LONG)
    assert isinstance(slow, Dialogue) and isinstance(neighbour, Dialogue)
    try:
        first = ("[mean(numbers=[1, 3])]", "[mkdir(dir_name='n')]")
        hasty.step([slow, neighbour], [codec.completion(text) for text in first])
        at, beside = len(slow.transcript.token_ids), len(neighbour.transcript.token_ids)
        began = time.monotonic()
        hasty.step([slow, neighbour], [codec.completion(f"[{burn}]"), codec.completion("[ls()]")])
        assert time.monotonic() - began < 6
        assert observed(slow, at) == f"<tool>{ERROR}stopped after 1 seconds\n"
        # The neighbour's worker was killed; its state was rebuilt before its next call ran.
        assert '["document", "archive", "n"]' in observed(neighbour, beside)
        at = len(slow.transcript.token_ids)
        hasty.step([slow], [codec.completion("[mean(numbers=[1, 3])]")])
        assert observed(slow, at) == '<tool>{"result": 2.0}\n'
        (_, score), _ = hasty.finish([slow, neighbour], "test")
        assert score.metrics["unscored"] == 0
        assert score.details["overruns"] == 1
    finally:
        hasty.close()


def test_scoring_that_fails_costs_one_entry(hasty: Bfcl) -> None:
    maths = next(e for e in hasty.entries.values() if "MathAPI" in e.classes)
    codec = CharCodec()
    bad, good = hasty.episodes([maths.id, "multi_turn_base_0"], codec, LONG)
    assert isinstance(bad, Dialogue) and isinstance(good, Dialogue)
    try:
        while not good.done:
            hasty.step([good], [codec.completion(hasty.demonstration(good))])
        # As though the step had been quick when it was played.
        bad.turns = [[["power(base=9, exponent=99999999999)"]]]
        (_, failed), (_, passed) = hasty.finish([bad, good], "test")
    finally:
        hasty.close()
    assert (failed.metrics["unscored"], failed.metrics["entry_accuracy"], failed.total) == (1, 0, 0)
    assert failed.metrics["turn_success/n"] == len(maths.turns)
    assert (passed.metrics["unscored"], passed.metrics["entry_accuracy"]) == (0, 1)


def test_one_step_that_hangs_when_judged_takes_the_time_of_one_step(hasty: Bfcl) -> None:
    """In a file of answers nobody has run the calls before; every step, not the sum of them, is held to the limit."""
    maths = next(e for e in hasty.entries.values() if "MathAPI" in e.classes)
    other = hasty.entries["multi_turn_base_0"]
    steps = [["mean(numbers=[1, 2])"]] * 40
    hang = [*steps[:20], ["power(base=7, exponent=99999999999)"], *steps[20:]]
    rows: list[tuple[data.Entry, dict[str, Any]]] = [
        (maths, {"turns": [hang, *([] for _ in maths.gold[1:])]}),
        (other, {"turns": [[list(turn)] for turn in other.gold]}),
        (maths, {"turns": [[*steps, *([call] for call in maths.gold[0])], *([list(t)] for t in maths.gold[1:])]}),
    ]
    executor = Executor(hasty.root, workers=1, timeout=0.5)
    try:
        executor.judge([(executor.open(other.request), [])])  # the worker is up
        began = time.monotonic()
        late, good, long = judge(rows, executor)
        took = time.monotonic() - began
    finally:
        executor.close()
    assert (late["valid"], late["error_type"]) == (False, "unscored: stopped after 0.5 seconds")
    assert good["valid"] and long["valid"]
    assert took < 15  # a new worker starts in between; 43 steps twice would be 43 seconds


def test_a_worker_ends_with_its_input(bfcl_root: Path, bfcl: Bfcl) -> None:
    executor = Executor(bfcl_root, workers=1)
    session = executor.open(bfcl.entries["multi_turn_base_0"].request)
    assert executor.run([(session, ["pwd()"])])[0].value
    worker = executor._workers[0]
    assert worker is not None
    worker._input.close()  # as when the parent is killed
    assert worker._process.wait(timeout=5) == 0
    executor.close()


def test_a_worker_that_died_at_rest_is_replaced_and_the_pool_can_be_closed(bfcl_root: Path, bfcl: Bfcl) -> None:
    executor = Executor(bfcl_root, workers=1)
    session = executor.open(bfcl.entries["multi_turn_base_0"].request)
    assert executor.run([(session, ["cd(folder='document')"])])[0].value
    first = executor._workers[0]
    assert first is not None
    first._process.kill()
    first._process.wait()
    (outcome,) = executor.run([(session, ["pwd()"])])
    assert outcome.value == ['{"current_working_directory": "/workspace/document"}']
    second = executor._workers[0]
    assert second is not None and second is not first
    executor.close()
    assert second._process.poll() is not None
