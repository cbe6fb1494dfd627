"""All seventeen categories through the task itself: what is shown, what is asked of the model, what is paid."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from shiq_bench.api.trajectory import Completion, Score, ToolCall, Trajectory
from shiq_bench.generation.rollout import replay
from shiq_bench.records.errors import UserError
from shiq_bench.stats.clustered import summarise
from shiq_bench.tasks.bfcl import Bfcl, data, oddities
from shiq_bench.tasks.bfcl.aggregate import SIZES
from shiq_bench.tasks.bfcl.dialogue import Dialogue
from shiq_bench.tasks.bfcl.executor import Outcome
from shiq_bench.tasks.bfcl.prompts import next_turn, opening
from shiq_bench.training.starting_policy import demonstrations
from tests.models.templates import codec_of
from tests.models.test_chat import ChatCodec, needs_templates, template, tokenizer
from tests.tasks.conftest import LONG, CharCodec, gold_script, play


@pytest.fixture(scope="module")
def whole() -> Iterator[Bfcl]:
    """Every category."""
    task = Bfcl(categories="all", workers=2)
    yield task
    task.close()


def test_all_is_there(whole: Bfcl) -> None:
    assert Counter(entry.category for entry in whole.entries.values()) == SIZES
    assert list(whole.entries) == whole.prompts("all") and len(whole.entries) == 4441


def test_groups_are_the_official_ones(whole: Bfcl) -> None:
    official = data.constants(whole.root, "category_mapping").TEST_COLLECTION_MAPPING
    assert {name: list(members) for name, members in data.GROUPS.items()} == {
        name: official[name] for name in data.GROUPS
    }
    assert data.expand("multi_turn, java") == ["java", *data.MULTI_TURN]
    with pytest.raises(UserError, match="did you mean 'multi_turn'"):
        data.expand("mult_turn")


def test_splits_of_every_category(whole: Bfcl) -> None:
    parts = {name: set(whole.prompts(name)) for name in data.SPLITS}
    assert set().union(*parts.values()) == set(whole.entries)
    assert sum(map(len, parts.values())) == len(whole.entries)
    for name, share in data.SPLITS.items():
        counts = Counter(whole.entries[i].category for i in parts[name])
        for category, size in SIZES.items():
            assert abs(counts[category] - size * share / 100) <= 1, (name, category)
        # A scenario is told four times: always in the same part.
        numbers = [{i.rsplit("_", 1)[1] for i in parts[name] if i.startswith(f"{c}_")} for c in data.MULTI_TURN]
        assert all(found == numbers[0] for found in numbers)


def played(task: Bfcl, codec: Any, prompt_ids: list[str]) -> list[tuple[Trajectory, Score]]:
    """The replay policy through the whole machinery, text and decoders included."""
    try:
        return task.finish(replay(task, task.episodes(prompt_ids, codec, LONG), codec), "gold")
    finally:
        task.close()


def few(task: Bfcl, each: int) -> list[str]:
    """Some entries of every category."""
    categories = dict.fromkeys(entry.category for entry in task.entries.values())
    return [i for c in categories for i in [i for i in task.entries if task.entries[i].category == c][:each]]


def test_ground_truth_passes_in_the_official_format(whole: Bfcl) -> None:
    task = Bfcl(categories="all", tool_format="prompt", workers=2)
    chosen = few(whole, 12)
    assert all(score.metrics["entry_accuracy"] for _, score in played(task, CharCodec(), chosen))


def test_ground_truth_passes_wherever_it_can(whole: Bfcl) -> None:
    task = Bfcl(categories="all", workers=2)
    scored = played(task, CharCodec(), task.prompts("all"))
    assert len(scored) == 4441
    failed = {t.prompt_id: s.details["entry_error"] for t, s in scored if not s.metrics["entry_accuracy"]}
    assert set(failed) == set(oddities.UNSATISFIABLE)
    examples = [{"prompt_id": t.prompt_id, **s.metrics} for t, s in scored]
    metrics = summarise(examples, [m.name for m in task.metrics])
    pooled = task.aggregate(metrics, examples)
    assert set(pooled) == set(data.SCORES)
    # Weighted by entries, this score is a plain mean, and its error nearly a plain one (that of a stratified sample).
    live = [e for e in examples if whole.entries[e["prompt_id"]].category in data.LIVE]
    assert pooled["live"] == pytest.approx(summarise(live, ["entry_accuracy"])["entry_accuracy"], rel=0.005)
    expected = (pooled["live"]["mean"], pooled["non_live"]["mean"], pooled["multi_turn"]["mean"])
    assert pooled["overall"]["mean"] == pytest.approx(sum(x or 0 for x in expected) / 3)
    assert metrics["gamed"]["mean"] == 0


def test_aggregate_shows_only_what_was_run() -> None:
    metrics = {name: {"mean": 0.5, "n": 10.0, "stderr": 0.1} for name in data.LIVE}
    pooled = Bfcl(categories="live,java").aggregate({**metrics, "java": {"mean": 1.0, "n": 3.0, "stderr": 0.0}}, [])
    assert set(pooled) == {"live"} and pooled["live"]["mean"] == pytest.approx(0.5)
    assert any("not run" in note for note in Bfcl(categories="live,java").notes())


def test_a_scenario_told_four_times_is_one() -> None:
    """Where all four categories agree, knowing them all says no more than knowing one."""
    examples: list[dict[str, Any]] = []
    for name in data.MULTI_TURN:
        examples += [{"prompt_id": f"{name}_{number}", name: float(number % 4 == 0)} for number in range(200)]
    metrics = summarise(examples, data.MULTI_TURN)
    (pooled,) = Bfcl(categories="multi_turn").aggregate(metrics, examples).values()
    assert pooled["stderr"] == pytest.approx(metrics["multi_turn_base"]["stderr"])
    # Independent, they would be worth four times as many.
    apart = [{**e, "prompt_id": f"{e['prompt_id']}{n}"} for n, e in enumerate(examples)]
    (pooled,) = Bfcl(categories="multi_turn").aggregate(metrics, apart).values()
    assert pooled["stderr"] == pytest.approx((metrics["multi_turn_base"]["stderr"] or 0) / 2, rel=0.01)


def test_held_out_functions_come_at_their_turn(whole: Bfcl) -> None:
    entry = whole.entries["multi_turn_miss_func_0"]
    assert entry.held_out == {3: ("sort",)} and entry.turns[3] == ()
    (system, _), _ = opening(whole.root, entry, "prompt")
    assert "'name': 'sort'" not in system["content"] and "'name': 'grep'" in system["content"]
    (message,) = next_turn(whole.root, entry, 3, "prompt")
    assert message["role"] == "user" and message["content"].startswith("[{'name': 'sort'")
    assert "updated some more functions" in message["content"]
    (compact,) = next_turn(whole.root, entry, 3, "compact")
    assert compact["content"] == "sort(file_name: str)"
    (native,) = next_turn(whole.root, entry, 3, "hermes")
    tools, _ = json.JSONDecoder().raw_decode(native["content"])
    assert [tool["function"]["name"] for tool in tools] == ["sort"]
    assert tools[0]["function"]["parameters"]["type"] == "object"


def test_a_call_in_an_empty_turn_passes_and_is_counted(whole: Bfcl) -> None:
    script = gold_script(whole, "multi_turn_miss_func_0")
    honest = [list(turn) for turn in script]
    honest[2] = ["The function to sort is missing."]
    script[2] = ["[pwd()]"]
    (_, gamed), (_, plain) = play(whole, [("multi_turn_miss_func_0", script), ("multi_turn_miss_func_0", honest)])
    assert (gamed.metrics["entry_accuracy"], gamed.metrics["gamed"]) == (1, 1)
    assert (plain.metrics["entry_accuracy"], plain.metrics["gamed"]) == (1, 0)


@pytest.mark.parametrize(
    ("prompt_id", "text", "error"),
    [
        ("simple_0", "[calculate_triangle_area(base=10, height=5)]", ""),
        ("simple_0", "[calculate_triangle_area(base=10, height=6)]", "value_error:others"),
        ("simple_0", "I would rather not.", "ast_decoder:decoder_failed"),
        ("irrelevance_0", "None of the functions can be used.", ""),
        ("irrelevance_0", "[determine_body_mass_index(weight=1.0, height=2.0)]", "irrelevance_error:decoder_success"),
        ("live_relevance_0-0-0", "No.", "relevance_error:decoder_failed"),
        ("java_0", "[GeometryPresentation.createPresentation(controller=mapController, parent=mapArea)]", ""),
        ("javascript_0", "[validateUserInput(inputField='userInputField', isComplete=true)]", ""),
    ],
)
def test_single_turn_answers(whole: Bfcl, prompt_id: str, text: str, error: str) -> None:
    codec = CharCodec()
    (episode,) = whole.episodes([prompt_id], codec, LONG)
    whole.step([episode], [codec.completion(text)])
    assert episode.done
    ((trajectory, score),) = whole.finish([episode], "test")
    assert score.details["entry_error"] == error
    assert score.total == trajectory.total_reward == score.metrics["entry_accuracy"] == (error == "")
    assert trajectory.rewards[-1] == score.total  # at the last action


def test_reasoning_is_not_judged(whole: Bfcl) -> None:
    codec = CharCodec()
    (episode,) = whole.episodes(["simple_0"], codec, LONG)
    whole.step([episode], [codec.completion("<think>[f(x=1)]</think>\n[calculate_triangle_area(base=10, height=5)]")])
    ((_, score),) = whole.finish([episode], "test")
    assert score.total == 1


def test_final_reward_is_the_same_sum_paid_at_the_end() -> None:
    turn, final = Bfcl(workers=1), Bfcl(reward="final", workers=1)
    try:
        script = gold_script(turn, "multi_turn_base_1")
        ((paid, a),) = play(turn, [("multi_turn_base_1", script)])
        ((owed, b),) = play(final, [("multi_turn_base_1", script)])
    finally:
        turn.close()
        final.close()
    assert paid.token_ids == owed.token_ids and a.turns == b.turns == (1, 1, 1, 1)
    assert [r for r in paid.rewards if r] == [1, 1, 1, 1]
    assert [r for r in owed.rewards if r] == [4] and owed.rewards[
        max(i for i, x in enumerate(owed.action_mask) if x)
    ] == 4


def test_partial_credit() -> None:
    task = Bfcl(categories="simple", partial=True, workers=1)
    codec = CharCodec()
    try:
        episodes = task.episodes(["simple_0"] * 3, codec, LONG)
        texts = (
            "[calculate_triangle_area(base=10, height=5)]",
            "[calculate_triangle_area(base=10, height=6)]",
            "[no(a=1)]",
        )
        task.step(episodes, [codec.completion(text) for text in texts])
        paid = [score.total for _, score in task.finish(episodes, "test")]
    finally:
        task.close()
    assert paid == [1, 0.75, 0]


def test_an_entry_that_does_not_fit_is_counted_with_its_length(whole: Bfcl) -> None:
    codec = CharCodec()
    small, large = whole.episodes(["irrelevance_0", "live_irrelevance_0-0-0"], codec, LONG)
    lengths = sorted((len(small.transcript.token_ids), len(large.transcript.token_ids)))
    assert lengths[0] < lengths[1]
    ids = [e.prompt_id for e in sorted((small, large), key=lambda e: len(e.transcript.token_ids))]
    first, second = whole.episodes(ids, codec, lengths[1])
    assert isinstance(second, Dialogue) and second.done and not first.done
    whole.step([first], [codec.completion("No.")])
    (_, fits), (trajectory, unfit) = whole.finish([first, second], "test")
    assert fits.metrics["entry_accuracy"] == 1
    assert unfit.metrics["entry_accuracy"] == 0  # though to say nothing would have been right
    assert unfit.metrics["unfit"] == 1 and unfit.details["prompt_tokens"] == lengths[1]
    assert not any(trajectory.action_mask)


def test_long_context_is_long(whole: Bfcl) -> None:
    codec = CharCodec()
    pair = whole.episodes(["multi_turn_base_0", "multi_turn_long_context_0"], codec, LONG)
    before = [len(e.transcript.token_ids) for e in pair]
    # The same calls in both, and a folder with many more files in the second.
    whole.step(pair, [codec.completion("[cd(folder='document'), ls()]")] * 2)
    shown = [
        "".join(chr(i) for i in e.transcript.token_ids[n:] if i < 0x110000) for e, n in zip(pair, before, strict=True)
    ]
    assert len(shown[0]) < 200 < len(shown[1])
    whole.finish(pair, "test")


# --- formats of chat templates -------------------------------------------------------------------

NATIVE = {"hermes": "qwen2_5", "llama3": "llama3_1", "mistral": "mistral-v13", "cohere": "cohere-new"}


@needs_templates
@pytest.mark.parametrize("tool_format", sorted(NATIVE))
def test_ground_truth_passes_in_native_formats(tool_format: str) -> None:
    names = "simple,java,javascript,parallel_multiple,irrelevance,live_simple,multi_turn_base,multi_turn_miss_func"
    task = Bfcl(categories=names, workers=2)
    codec = codec_of(NATIVE[tool_format])
    assert task.resolved_format(codec) == tool_format
    chosen = few(task, 6)
    scored = played(task, codec, chosen)
    assert [t.prompt_id for t, s in scored if not s.metrics["entry_accuracy"]] == []
    assert len(scored) == len(chosen)


@needs_templates
def test_a_format_the_template_does_not_write_is_refused() -> None:
    task = Bfcl(tool_format="llama3", workers=1)
    with pytest.raises(UserError, match="writes tool calls as hermes; expected llama3: --tool-format hermes"):
        task.resolved_format(ChatCodec(tokenizer(template("qwen2_5"))))
    with pytest.raises(UserError, match="no tool role"):
        task.resolved_format(ChatCodec(tokenizer(template("gemma"))))
    assert Bfcl().resolved_format(ChatCodec(tokenizer(template("gemma")))) == "prompt"
    assert Bfcl().resolved_format(CharCodec()) == "compact"


@needs_templates
def test_malformed_tool_calls_end_the_turn_and_unknown_ones_return_an_error() -> None:
    task = Bfcl(workers=1)
    codec = ChatCodec(tokenizer(template("qwen2_5")))
    try:
        (episode,) = task.episodes(["multi_turn_base_0"], codec, LONG)
        assert isinstance(episode, Dialogue)
        said = [
            '<tool_call>\n{"name": "no_such", "arguments": {}}\n</tool_call>',
            '<tool_call>\n{"name": \n</tool_call>',
        ]
        for text in said:
            ids = tuple(codec.answer(text))
            task.step([episode], [Completion(ids, (0.0,) * len(ids), "stop")])
        assert episode.refused == 1 and episode.turn == 1 and episode.unparsable == 1
        shown = codec.tokenizer.decode(episode.transcript.token_ids)
        assert "name 'no_such' is not defined" in shown
    finally:
        task.close()


@needs_templates
def test_a_name_that_python_folds_is_refused_and_spoils_no_neighbour() -> None:
    task = Bfcl(workers=1)
    codec = codec_of("qwen2_5")
    try:
        (episode,) = task.episodes(["multi_turn_base_0"], codec, LONG)
        assert isinstance(episode, Dialogue)
        calls = [ToolCall("ls", {}), ToolCall("cat", {"\ufb01le_name": "x"})]
        ids = tuple(codec.answer_calls(calls, "hermes"))
        task.step([episode], [Completion(ids, (0.0,) * len(ids), "stop")])
    finally:
        task.close()
    assert (episode.calls, episode.refused, episode.overruns) == (2, 1, 0)
    assert "current_directory_content" in codec.tokenizer.decode(episode.transcript.token_ids)


def test_a_demonstration_that_could_not_be_scored_is_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Bfcl(workers=1)
    monkeypatch.setattr(type(task), "prompts", lambda self, split: ["multi_turn_base_0", "multi_turn_base_1"])
    judge = task.executor.judge

    def half(dialogues: Any) -> Any:
        return [Outcome(failure="stopped"), *judge(dialogues)[1:]]

    monkeypatch.setattr(task.executor, "judge", half)
    try:
        shown = demonstrations(task, "rl", CharCodec(), LONG)
    finally:
        task.close()
    assert [(t.prompt_id, t.total_reward) for t in shown] == [("multi_turn_base_1", 4)]
