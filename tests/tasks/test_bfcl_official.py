"""Verdicts are the official ones, splits are fixed, and the loop ends where the official loop ends."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shiq_bench.api.registry import tasks
from shiq_bench.api.trajectory import Completion
from shiq_bench.evaluation.evaluate import sample
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash
from shiq_bench.records.spec import RunSpec
from shiq_bench.tasks.bfcl import Bfcl, fetch
from shiq_bench.tasks.bfcl.data import Entry
from shiq_bench.tasks.bfcl.dialogue import Dialogue, credited
from shiq_bench.tasks.bfcl.parse import Call
from shiq_bench.tasks.bfcl.prompts import opening, tool_messages
from tests.tasks.conftest import END, LONG, CharCodec, gold_script, play, run_official

FIRST = "multi_turn_base_0"


def test_all_ground_truths(bfcl: Bfcl) -> None:
    codec = CharCodec()
    dialogues = bfcl.episodes(list(bfcl.entries), codec, LONG)
    while live := [d for d in dialogues if not d.done]:
        bfcl.step(live, [codec.completion(bfcl.demonstration(d)) for d in live])
    scored = bfcl.finish(dialogues, "gold")
    assert len(scored) == 200
    assert [t.prompt_id for t, s in scored if not s.metrics["entry_accuracy"]] == ["multi_turn_base_154"]
    for trajectory, score in scored:
        assert score.metrics["turn_success"] == score.metrics["turn_success/n"] == score.total
        assert score.total == trajectory.total_reward == sum(score.turns) > 0
        paid = [i for i, reward in enumerate(trajectory.rewards) if reward]
        assert [trajectory.token_ids[i] for i in paid] == [END] * int(score.total)
        # What closes a paid turn is followed by the next user turn, or by nothing.
        after = [codec.text(trajectory.token_ids[i + 1 : i + 7]) for i in paid]
        last_is_paid = score.turns[-1] == 1
        assert after == ["<user>"] * (len(paid) - last_is_paid) + [""] * last_is_paid
        assert score.metrics["forced_end"] == score.metrics["unparsable"] == score.metrics["refused"] == 0


def _perturbed(entry: Entry, rng: random.Random) -> list[list[str]]:
    """Answers by turn, from the ground truth with one to three things wrong (some of them harmlessly)."""
    turns: list[list[Call]] = [entry.gold_calls(turn) for turn in range(len(entry.turns))]
    texts = [[[call.text for call in turn]] for turn in turns]
    for _ in range(rng.randint(1, 3)):
        turn = rng.choice(texts)
        step = rng.choice(turn)
        at = rng.randrange(len(step)) if step else 0
        match rng.choice(["drop", "extra", "argument", "reorder", "split", "unknown", "positional", "chat", "empty"]):
            case "drop" if step:
                step.pop(at)
            case "extra":
                step.insert(at, rng.choice(rng.choice(turns)).text)
            case "argument" if step and "'" in step[at]:
                step[at] = step[at].replace("'", "'x", 1)
            case "reorder":
                rng.shuffle(step)
            case "split":
                turn[:] = [[text] for one in turn for text in one] or [[]]
            case "unknown":
                step.insert(at, "no_such_tool(a=1)")
            case "positional" if step and "='" in step[at]:
                head, _, rest = step[at].partition("(")
                step[at] = f"{head}({rest.partition('=')[2]}"
            case "chat":
                turn.insert(rng.randrange(len(turn) + 1), ["Done!"])
            case "empty":
                turn[:] = [[]]
    return [[f"[{', '.join(step)}]" for step in turn] for turn in texts]


def test_verdicts_equal_the_official_ones_on_perturbed_dialogues(bfcl: Bfcl) -> None:
    rng = random.Random(20250717)
    scripts = [(i, _perturbed(entry, rng)) for i, entry in bfcl.entries.items()]
    scored = play(bfcl, scripts)
    # The official side gets the texts that were really answered: an answer without calls closes its turn.
    dialogues = [(bfcl.entries[t.prompt_id].request, s.details["texts"]) for t, s in scored]
    official = run_official(bfcl.root, dialogues=dialogues)["verdicts"]
    ours = [s.metrics["entry_accuracy"] == 1 for _, s in scored]
    assert ours == official
    assert 40 <= sum(official) <= 160  # both kinds are there
    independent = 0
    for (trajectory, score), verdict in zip(scored, official, strict=True):
        turns = score.details["turns"]
        if trajectory.prompt_id != "multi_turn_base_154":  # whose answers are more than its turns
            assert (False not in turns) == verdict
        passed = turns[: turns.index(False)].count(True) if False in turns else turns.count(True)
        assert score.total == passed == trajectory.total_reward
        assert list(score.turns) == credited(score.details["turn_errors"], "prefix")
        independent += turns.count(True) > passed
    assert independent >= 10  # trajectories that pass some turn after one they fail


def test_credit() -> None:
    errors = ["", "wrong", "", None, ""]
    assert credited(errors, "prefix") == [1, 0, 0, 0, 0]
    assert credited(errors, "independent") == [1, 0, 1, 0, 1]
    assert credited(["", None, ""], "prefix") == [1, 0, 1]


def test_credit_reaches_the_trajectory(bfcl: Bfcl) -> None:
    script = gold_script(bfcl, "multi_turn_base_1")
    script[0] = ["[pwd()]"]  # the ground truth lists the folder: a wrong answer that changes nothing
    independent = Bfcl(credit="independent", workers=1)
    try:
        for task, turns in ((bfcl, (0.0, 0.0, 0.0, 0.0)), (independent, (0.0, 1.0, 1.0, 1.0))):
            ((trajectory, score),) = play(task, [("multi_turn_base_1", script)])
            assert score.turns == turns
            assert trajectory.total_reward == score.total == sum(turns)
            # A turn's reward stands at its last token, behind which the user speaks, or nobody.
            ids, user = trajectory.token_ids, tuple(map(ord, "<user>"))
            last = [i for i, a in enumerate(trajectory.action_mask) if a and ids[i + 1 : i + 7] in (user, ())]
            assert [trajectory.rewards[i] for i in last] == list(turns)
            assert (score.metrics["turn_success"], score.metrics["turn_success/n"]) == (3, 4)
            assert score.metrics["entry_accuracy"] == 0
    finally:
        independent.close()


def test_calls_in_an_empty_turn_are_forgiven_and_counted(bfcl: Bfcl) -> None:
    entry = bfcl.entries["multi_turn_base_167"]
    assert entry.gold[4] == ()
    silent = gold_script(bfcl, entry.id)
    busy = [*silent[:4], ["[no_such_tool()]"]]
    (_, quiet), (_, gamed) = play(bfcl, [(entry.id, silent), (entry.id, busy)])
    for score, count in ((quiet, 0), (gamed, 1)):
        assert (score.metrics["entry_accuracy"], score.metrics["gamed"]) == (1, count)
        assert (score.total, score.metrics["turn_success/n"], score.details["turns"][4]) == (4, 4, None)


def test_a_good_run_after_a_bad_one_starts_afresh(bfcl: Bfcl) -> None:
    ids = list(bfcl.entries)[:30]
    good = [(i, gold_script(bfcl, i)) for i in ids]
    bad = [(i, [[turn[0], turn[0]] for turn in script]) for i, script in good]
    spoiled = play(bfcl, bad)
    assert sum(s.metrics["entry_accuracy"] for _, s in spoiled) < 30
    assert all(s.metrics["entry_accuracy"] for _, s in play(bfcl, good))


def test_steps_are_limited_as_in_the_official_loop(bfcl: Bfcl) -> None:
    looping = [["[pwd()]"] * 30]
    gold = gold_script(bfcl, FIRST)
    last = [*gold[:-1], gold[-1] + ["[pwd()]"] * 30]
    long = [gold[0] + ["[pwd()]"] * 19, *gold[1:]]  # 20 steps, then an empty answer
    (_, early), (trajectory, late), (_, enough) = play(bfcl, [(FIRST, looping), (FIRST, last), (FIRST, long)])
    assert [len(turn) for turn in early.details["texts"]] == [21]
    assert early.metrics["forced_end"] == 1
    assert early.details["entry_error"] == "multi_turn:force_terminated"
    assert early.metrics["turn_success/n"] == 4
    # In the last turn the official loop is cut as well, and the official verdict does not mind.
    assert len(late.details["texts"][-1]) == 21
    assert (late.metrics["forced_end"], late.metrics["entry_accuracy"], late.total) == (1, 1, 4)
    assert trajectory.truncated and trajectory.action_mask[-1]
    assert len(enough.details["texts"][0]) == 21
    assert (enough.metrics["forced_end"], enough.metrics["entry_accuracy"]) == (0, 1)


def test_length_is_limited(bfcl: Bfcl) -> None:
    codec = CharCodec()
    (full,) = bfcl.episodes([FIRST], codec, LONG)
    prompt = len(full.transcript.token_ids)
    (tight,) = bfcl.episodes([FIRST], codec, prompt + 60)
    bfcl.step([tight], [codec.completion("[ls()]")])
    assert tight.done and len(tight.transcript.token_ids) <= prompt + 60
    ((trajectory, score),) = bfcl.finish([tight], "test")
    assert trajectory.truncated
    assert score.metrics["forced_end"] == 1
    assert score.details["entry_error"] == "multi_turn:force_terminated"
    (unfit,) = bfcl.episodes([FIRST], codec, prompt)
    assert unfit.done
    settings = RunSpec("", "bfcl", max_length=prompt)
    generator: Any = None  # never asked
    with pytest.raises(UserError, match=f"takes {prompt} tokens and max_length is {prompt}: raise max_length$"):
        sample(bfcl, codec, generator, [FIRST], settings, n=1, temperature=1.0, seed="0", source="test")


def test_an_answer_cut_by_its_limit_is_taken_as_it_is(bfcl: Bfcl) -> None:
    codec = CharCodec()
    (episode,) = bfcl.episodes([FIRST], codec, LONG)
    ids = tuple(map(ord, "[ls()], and th"))
    bfcl.step([episode], [Completion(ids, (0.0,) * len(ids), "length")])
    assert isinstance(episode, Dialogue)
    assert (episode.turn, episode.cut, episode.unparsable) == (1, 1, 1)
    forced = episode.transcript.token_ids.index(END)
    assert not episode.transcript.action_mask[forced]  # the end of the turn was not the policy's


def test_splits(bfcl: Bfcl) -> None:
    splits = {name: bfcl.prompts(name) for name in ("start", "rl", "heldout")}
    assert {name: len(ids) for name, ids in splits.items()} == {"start": 80, "rl": 80, "heldout": 40}
    assert set().union(*splits.values()) == set(bfcl.entries)
    # Golden: a changed split would make every published number incomparable.
    assert stable_hash(splits)[:16] == "267456e50ed0269b"
    numbers = {name: [int(i.rsplit("_", 1)[1]) for i in ids[:4]] for name, ids in splits.items()}
    assert numbers == {"start": [3, 4, 7, 9], "rl": [1, 2, 5, 8], "heldout": [0, 6, 10, 13]}
    with pytest.raises(UserError, match="did you mean 'heldout'"):
        bfcl.prompts("heldoit")


def test_official_prompt_is_the_package_own(bfcl: Bfcl) -> None:
    entry = bfcl.entries[FIRST]
    (system, user), _ = opening(bfcl.root, entry, "prompt")
    template = (bfcl.root / "bfcl_eval/constants/default_prompts.py").read_text()
    assert system["role"] == "system"
    assert system["content"][:60] in template
    assert f"{{'name': '{entry.functions[0]['name']}', 'description': " in system["content"]
    hint = "in Python 3 syntax."
    assert system["content"].count(hint) == len(entry.functions) == 32
    assert hint not in json.dumps(entry.functions)  # the preprocessing wrote into its own copy
    assert user == entry.turns[0][0]
    assert tool_messages(["ls()", "pwd()"], ["x" * 300, "\ud800"], "prompt", 200) == [
        {"role": "tool", "name": "ls()", "content": "x" * 300},
        {"role": "tool", "name": "pwd()", "content": "?"},
    ]


def test_compact_prompt_is_small(bfcl: Bfcl) -> None:
    (system, user), _ = opening(bfcl.root, bfcl.entries[FIRST], "compact")
    lines = system["content"].splitlines()
    assert "echo(content: str, file_name: str=?)" in lines
    tiny = bfcl.tiny()
    signatures = [line for block in tiny.phrases for line in block.splitlines()]
    assert len(tiny.phrases) == 8 and len(set(signatures)) == 129 and set(lines[1:]) <= set(signatures)
    assert any(block in system["content"] for block in tiny.phrases), "a class's signatures are one token as they stand"
    assert user == bfcl.entries[FIRST].turns[0][0]
    assert tool_messages(["ls()", "pwd()"], ["x" * 300, "y"], "compact", 200) == [
        {"role": "tool", "content": "x" * 200 + "\ny"}
    ]


def test_format_follows_the_codec(bfcl: Bfcl) -> None:
    class Plain(CharCodec):
        tiny = False

    sizes = [len(bfcl.episodes([FIRST], codec, LONG)[0].transcript.token_ids) for codec in (CharCodec(), Plain())]
    assert sizes[0] < 3000 < 20_000 < sizes[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": "multi_turn_bas"}, "did you mean 'multi_turn_base'"),
        ({"credit": "prefx"}, "did you mean 'prefix'"),
        ({"tool_format": "promt"}, "did you mean 'prompt'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"tool_chars": 0}, "tool_chars is 0"),
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tasks.get("bfcl")(**options)


def test_single_turn_checkers_import_without_vendor_packages(bfcl_root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shiq_bench.tasks.bfcl.official import Official; "
        f"Official(Path({str(bfcl_root)!r})); import bfcl_eval.eval_checker.ast_eval.ast_checker; "
        "assert not {'torch', 'openai', 'tree_sitter'} & set(sys.modules)"
    )
    project = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project)


def test_nothing_is_left_of_a_scored_dialogue(bfcl: Bfcl) -> None:
    """The official executor keeps every instance for good; a long run would fill the memory."""
    code = """
import json, sys
from pathlib import Path
from shiq_bench.tasks.bfcl.official import Official
from shiq_bench.tasks.bfcl.worker import Worker
official = Official(Path(sys.argv[1]))
state, entry = vars(official._executor), json.load(sys.stdin)
worker, before = Worker(official), set(state)
for name in ("s1", "s11"):
    worker.handle({"op": "step", "session": name, "entry": entry, "history": [], "calls": ["pwd()"]})
assert len(set(state) - before) == 4  # two services each
worker.handle({"op": "judge", "session": "s1", "entry": entry, "turns": [[["pwd()"]]] * 4})
assert {name.split("_")[0] for name in set(state) - before} == {"s11"}
assert set(worker._entries) == {"s11"}
"""
    command = [sys.executable, "-c", code, str(bfcl.root)]
    entry = json.dumps(bfcl.entries[FIRST].request)
    subprocess.run(command, check=True, input=entry, text=True, cwd=Path(__file__).parents[2])


# --- fetching ------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing cached, nothing installed, and pip cut off from every index."""
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(fetch, "_installed", lambda: None)
    return tmp_path / "home"


def _wheel(folder: Path, *names: str) -> Path:
    path = folder / f"bfcl_eval-{fetch.VERSION}-py3-none-any.whl"
    info = f"bfcl_eval-{fetch.VERSION}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: bfcl_eval\nVersion: {fetch.VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        for name in names:
            archive.writestr(name, "evil")
    return path


def test_offline_says_what_to_do(empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        fetch.locate()
    line = str(caught.value)
    assert "\n" not in line and "python -m shiq_bench.tasks.bfcl.fetch" in line
    assert str(empty_cache / "bfcl" / stable_hash(fetch.KEY)[:24]) in line
    assert [path.name for path in (empty_cache / "bfcl").iterdir()] == [".lock"]
    assert "fetching bfcl-eval" in capsys.readouterr().err


def test_another_file_is_refused(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = _wheel(tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="another hash"):
        fetch.locate()
    assert [path.name for path in (empty_cache / "bfcl").iterdir()] == [".lock"]
    with pytest.raises(UserError, match="nothing was unpacked"):
        fetch.unpack(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:evil"])
def test_paths_inside_are_checked(tmp_path: Path, name: str) -> None:
    import hashlib

    wheel = _wheel(tmp_path, name)
    with pytest.raises(UserError, match="refused, nothing was unpacked"):
        fetch.unpack(wheel, tmp_path / "out", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert not (tmp_path / "out").exists()


def test_what_is_cached_is_not_fetched_again(bfcl_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_subprocess(*args: object, **kwargs: object) -> None:
        raise AssertionError("went to the network")

    monkeypatch.setattr(subprocess, "run", no_subprocess)
    assert fetch.locate() == bfcl_root
    assert (bfcl_root / "bfcl_eval" / "data").is_dir()


def test_an_installed_copy_counts_only_at_the_exact_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bfcl_eval" / "data").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "bfcl_eval-1.dist-info"
    info.mkdir()
    for version, expected in ((fetch.VERSION, tmp_path), ("2025.8.25", None)):
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bfcl_eval\nVersion: {version}\n")
        assert fetch._installed() == expected
