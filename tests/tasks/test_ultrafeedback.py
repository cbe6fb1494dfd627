"""UltraFeedback: four schemas, boundaries of stored answers, rewards on one scale, the whole job for every method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shiq_bench.api.registry import algorithms
from shiq_bench.api.trajectory import Completion
from shiq_bench.models.chat import ChatCodec
from shiq_bench.models.tiny import Recorder
from shiq_bench.records.errors import UserError
from shiq_bench.runs.execute import execute
from shiq_bench.runs.resolved import Resolved
from shiq_bench.runs.settings import data_setting, resolve
from shiq_bench.runs.validation import check_demands
from shiq_bench.tasks.ultrafeedback import UltraFeedback, data, files
from shiq_bench.tasks.ultrafeedback.data import ROOM, Answering
from tests.preferences import rows, write
from tests.rewards.conftest import llama, llama_tokenizer, qwen_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "data" / "ultrafeedback_1k.jsonl"


def said(row: dict[str, Any], key: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[key]}]


def h4(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "prompt_id": "x", "chosen": said(row, "chosen"), "rejected": said(row, "rejected")}


def trl(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in h4(row).items() if k not in ("prompt", "prompt_id")}


def nested(row: dict[str, Any]) -> dict[str, Any]:
    plain = {k: row[k] for k in ("prompt", "chosen", "rejected")}
    return {**plain, "metadata": {k: row[k] for k in ("score_chosen", "score_rejected")}}


def openbmb(row: dict[str, Any]) -> dict[str, Any]:
    answers = [(row["rejected"], row["score_rejected"]), (row["chosen"], row["score_chosen"])]
    # The critique's score has lost its decimal point: what counts is the mean over aspects.
    found = [{"response": text, "fine-grained_score": s / 2, "overall_score": 10.0} for text, s in answers]
    return {"source": "made up", "instruction": row["prompt"], "completions": found}


SCHEMAS: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "plain": ("plain pairs", dict),
    "metadata": ("plain pairs", nested),
    "h4": ("HuggingFaceH4/ultrafeedback_binarized", h4),
    "trl": ("trl-lib/ultrafeedback_binarized", trl),
    "openbmb": ("openbmb/UltraFeedback", openbmb),
}


def told(corpus: data.Corpus) -> Any:
    return {i: (q.messages, [(a.text, a.score) for a in q.answers]) for i, q in corpus.questions.items()}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "folder"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_and_every_file_hold_the_same_questions(name: str, kind: str, tmp_path: Path) -> None:
    import datasets

    schema, make = SCHEMAS[name]
    made = [make(row) for row in rows(12)]
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        write(path, made)
    elif kind == "parquet":
        datasets.Dataset.from_list(made).to_parquet(path)
    elif kind == "saved":
        splits = {"other": datasets.Dataset.from_list(made[:2]), "train": datasets.Dataset.from_list(made)}
        datasets.DatasetDict(splits).save_to_disk(path)
    else:
        path.mkdir()
        write(path / "a.jsonl", made[:5])
        write(path / "b.jsonl", made[5:])
    found, plain = data.read(str(path)), data.parse(rows(12), "plain")
    assert found.schema == schema and told(found) == told(plain) and found.scored
    assert all(q.answers[0].rank > q.answers[1].rank for q in found.questions.values())
    best = {q.messages[0]["content"]: q.answers[0].text for q in found.questions.values()}
    assert best == {row["prompt"]: row["chosen"] for row in rows(12)}
    assert files.fingerprint(str(path), "") == files.fingerprint(str(path), "")


def test_what_teaches_nothing_is_dropped_and_counted(tmp_path: Path) -> None:
    one, two, three, four, five = rows(5)
    two["chosen"] = two["rejected"]
    three["rejected"] = "  "
    four["prompt"] = ""
    corpus = data.read(str(write(tmp_path / "x.jsonl", [one, two, three, four, five, one])))
    assert len(corpus.questions) == 2 and corpus.rows == 6
    assert corpus.dropped == {
        "equal answers": 1, "an empty answer": 1, "an empty prompt": 1, "a question asked before": 1,
    }  # fmt: skip
    high = {**rows(7)[6], "score_chosen": "high"}
    odd = [{**one, "score_chosen": 85}, {**two, "rejected": "\ud83d"}, {**five, "rejected": None}, three]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [odd[2], *odd[:2], high, rows(6)[5]]))
    assert data.read(str(tmp_path / "odd.jsonl")).dropped == {
        "an empty answer": 1, "a score that is no number from 0 to 10": 2, "text with half a character": 1,
    }  # fmt: skip
    differ = trl(one) | {"rejected": said(two, "rejected")}
    with pytest.raises(UserError, match="1 with no prompt, or prompts that differ"):
        data.parse([differ], "x")


def test_four_completions_give_pairs_by_their_scores(tmp_path: Path) -> None:
    judged = (("c", 2.5), ("a", 5.0), ("b", 2.5), ("d", 1.0), ("e", None))
    row = {"instruction": "q", "completions": [{"response": text, "fine-grained_score": s} for text, s in judged]}
    task = UltraFeedback(dataset=str(write(tmp_path / "x.jsonl", [row])))
    (question,) = task.corpus.questions.values()
    assert [(a.text, a.score) for a in question.answers] == [("a", 1.0), ("c", 0.5), ("b", 0.5), ("d", 0.2)]
    pairs = {(p.chosen, p.rejected) for p in task.preferences("all")}
    assert pairs == {("a", "c"), ("a", "b"), ("a", "d"), ("c", "d"), ("b", "d")}, "a tie is no pair"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"question": "q", "answer": "a"}\n', "columns are question, answer; expected one of instruction"),
        ('{"prompt": "q"\n', "line 1 is no JSON"),
        ("[1]\n", "line 1 is no JSON object"),
        ("", "it has no rows"),
        ("[" * 100_000, "line 1 is no JSON"),
    ],
)
def test_a_dataset_that_is_none_is_refused_in_a_line(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        UltraFeedback(dataset=str(tmp_path / "x.jsonl")).prompts("rl")
    assert "\n" not in str(caught.value)


def test_of_a_folder_of_splits_one_is_read(tmp_path: Path) -> None:
    for name, some in (
        ("test_prefs-0.jsonl", rows(9)[6:]),
        ("train_prefs-0.jsonl", rows(6)),
        ("train_sft-0.jsonl", []),
    ):
        write(tmp_path / name, some)
    assert data.read(str(tmp_path)).rows == 6


def test_no_data_and_no_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset at"):
        UltraFeedback(dataset="~nobody-of-that-name/x/y.jsonl")
    with pytest.raises(UserError, match="give --data FILE"):
        UltraFeedback().prompts("rl")
    with pytest.raises(UserError, match="no dataset at"):
        UltraFeedback(dataset=str(tmp_path / "x.jsonl"))
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(UserError, match="no parquet file"):
        UltraFeedback(dataset=str(tmp_path / "x.parquet")).prompts("rl")


@pytest.mark.parametrize("name", ["trl-lib/ultrafeedback_binarized", "HuggingFaceH4/ultrafeedback_binarised"])
def test_a_hub_out_of_reach_is_one_line(name: str) -> None:
    attempt = f"try:\n data.read({name!r})\nexcept Exception as e: print(type(e), e)"
    script = f"from shiq_bench.tasks.ultrafeedback import data\n{attempt}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert "UserError" in done.stdout and done.stdout.count("\n") == 1
    assert "hub" in done.stdout and name in done.stdout


def test_identity_is_the_content_and_not_the_path(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl"), write(tmp_path / "two.jsonl")
    runs = [resolve("dpo", "ultrafeedback", {"dataset": str(p)}).spec.run_id for p in (one, two)]
    assert runs[0] == runs[1]
    write(two, rows(59))
    assert resolve("dpo", "ultrafeedback", {"dataset": str(two)}).spec.run_id != runs[0]
    with pytest.raises(UserError, match="leave dataset_hash out"):
        resolve("dpo", "ultrafeedback", {"dataset": str(two), "dataset_hash": "0123"})


def test_splits_depend_on_the_question_alone(tmp_path: Path) -> None:
    all_, some = (UltraFeedback(dataset=str(write(tmp_path / f"{n}.jsonl", rows(n)))) for n in (60, 40))
    for split in data.SPLITS:
        assert set(some.prompts(split)) == set(all_.prompts(split)) & set(some.prompts("all"))
    assert sorted(i for split in data.SPLITS for i in all_.prompts(split)) == sorted(all_.prompts("all"))


# --- boundaries


@pytest.mark.parametrize("tokenizer", [llama_tokenizer, qwen_tokenizer])
def test_stored_answers_end_as_sampled_ones_do(tokenizer: Callable[[], Any], tmp_path: Path) -> None:
    """The end of turn is the last action; an answer that is cut has none; what begins an answer is no action."""
    codec = ChatCodec(tokenizer())
    task = UltraFeedback(dataset=str(write(tmp_path / "x.jsonl")), rewards="dataset")
    shortest = min(len(codec.answer(a.text)) for q in task.corpus.questions.values() for a in q.answers)
    whole = resolve("dpo", "ultrafeedback", {"max_tokens": 500, "max_length": 1000}).spec
    cut = resolve("dpo", "ultrafeedback", {"max_tokens": shortest - 1, "max_length": 1000}).spec
    for spec in (whole, cut):
        found = task.trajectories("rl", codec, spec)
        assert found
        for t in found:
            question = task.corpus.questions[t.prompt_id]
            actions = [i for i, a in zip(t.token_ids, t.action_mask, strict=True) if a]
            answer = codec.answer(next(a.text for a in question.answers if a.rank == t.rank))
            prompt = codec.prompt(question.messages)
            assert list(t.token_ids[: len(prompt)]) == prompt and t.action_mask == (False,) * len(prompt) + (
                True,
            ) * len(actions)
            assert actions == answer[: spec.max_tokens]
            assert t.truncated is (spec is cut) and (actions[-1] in codec.end_ids) is (spec is whole)
            assert sum(i in codec.end_ids for i in actions) == (spec is whole)
            assert t.rewards[-1] == t.total_reward > 0


def test_a_prompt_that_fills_the_budget_is_dropped_and_counted(tmp_path: Path) -> None:
    long = {**rows(1)[0], "prompt": "word " * 200}
    task = UltraFeedback(dataset=str(write(tmp_path / "x.jsonl", [*rows(), long])), rewards="dataset")
    codec = Recorder()
    (unfit,) = [i for i in task.prompts("all") if len(codec.prompt(task.corpus.questions[i].messages)) > 900]
    spec = resolve("dpo", "ultrafeedback", {"max_tokens": 80, "max_length": 1000 + ROOM - 1}).spec
    stored = {t.prompt_id for split in data.SPLITS for t in task.trajectories(split, codec, spec)}
    assert stored == set(task.prompts("all")) - {unfit}
    (episode,) = task.episodes([unfit], codec, spec.max_length)
    assert episode.done and isinstance(episode, Answering) and episode.unfit == 1000


# --- rewards


def vetted(tmp_path: Path, algo: str = "dpo", **settings: Any) -> list[str]:
    path = write(tmp_path / "x.jsonl", settings.pop("data", None))
    resolved = resolve(algo, "ultrafeedback", {"dataset": str(path), **settings})
    return list(resolved.task.validate_run(resolved.spec, resolved.algorithm, resolved.fresh))


def test_two_scales_are_never_mixed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two scales"):
        vetted(tmp_path, samples=2)
    assert vetted(tmp_path, "shiq", samples=2, rewards="model")
    bare = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows()]
    with pytest.raises(UserError, match="not every answer"):
        vetted(tmp_path, rewards="dataset", data=bare)
    assert "reward model tiny. It is also the judge." in vetted(tmp_path, "shiq", data=bare)[0]


def test_who_pays_and_who_judges_is_said(tmp_path: Path) -> None:
    assert vetted(tmp_path) == ["preferences: the dataset's; rewards are not seen"]
    assert vetted(tmp_path, "copg") == ["rewards: the dataset's own scores, in [0, 1] (plain pairs)"]
    assert vetted(tmp_path, "copg", rewards="model") == ["rewards: reward model tiny. It is also the judge."]
    assert vetted(tmp_path, "rloo", judge="other") == ["rewards: reward model tiny."]
    judged = ["preferences: reward model tiny. It is also the judge."]
    assert vetted(tmp_path, samples=2, rewards="model") == vetted(tmp_path, collect="fresh", samples=2) == judged


def test_beside_samples_stored_answers_are_ranked_by_whoever_judged_those(home: Any, tmp_path: Path) -> None:
    resolved = settle("dpo", tmp_path, rewards="model", samples=2)
    stored = resolved.task.trajectories("rl", Recorder(), resolved.spec)
    assert all(t.rank is None and t.preference_score == t.total_reward != 0 and t.sampler_logp is None for t in stored)


def test_other_weights_at_the_same_path_are_another_judge(tmp_path: Path) -> None:
    path = str(write(tmp_path / "x.jsonl"))

    def judged() -> str:
        return UltraFeedback(dataset=path, reward_model=str(tmp_path / "rm")).fingerprint()

    llama(tmp_path / "rm", llama_tokenizer())
    before = judged()
    assert judged() == before
    llama(tmp_path / "rm", llama_tokenizer(), num_hidden_layers=1)
    assert judged() != before


def test_win_rates_by_hand() -> None:
    def example(prompt: str, reward: float, characters: int) -> dict[str, Any]:
        details = {"characters": characters, "chosen_characters": 10}
        return {"prompt_id": prompt, "reward": reward, "win_chosen": 0.5, "details": details}

    mine = [example("a", 1.0, 5), example("a", 0.0, 5), example("b", 2.0, 12), {"prompt_id": "c", "unfit": 1.0}]
    theirs = [example("a", 0.0, 5), example("a", -1.0, 4), example("b", 3.0, 7), {"prompt_id": "c", "unfit": 1.0}]
    made = UltraFeedback().aggregate({}, mine, theirs)
    assert made["win_reference"]["mean"] == pytest.approx((1 + 1 + 0.5 + 1 + 0) / 5)
    assert made["longer_reference"]["mean"] == pytest.approx((0.5 + 1 + 0.5 + 1 + 1) / 5)
    assert made["win_chosen_lc"]["mean"] == pytest.approx(0.5)
    # Those that win are longer: at equal length they would win less often.
    many = [example(str(n), float(n % 3 > 0), 5 + 9 * (n % 3 > 0) + n % 4) for n in range(60)]
    others = [example(str(n), 0.5, 8) for n in range(60)]
    beaten = UltraFeedback().aggregate({}, many, others)
    assert (beaten["win_reference_lc"]["mean"] or 1) < (beaten["win_reference"]["mean"] or 0) - 0.1
    assert set(UltraFeedback().aggregate({}, mine)) == {"win_chosen_lc"} and not UltraFeedback().aggregate(
        {}, [mine[3]]
    )


# --- the whole job


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIQ_BENCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def settle(algo: str, tmp_path: Path, **settings: Any) -> Resolved:
    path = write(tmp_path / "pairs.jsonl")
    quick = {"steps": 2, "engine": "hf", "max_tokens": 24, "results": str(tmp_path / "results")}
    return resolve(algo, "ultrafeedback", {**quick, data_setting("ultrafeedback", str(path)): str(path), **settings})


@pytest.mark.proof
@pytest.mark.parametrize("algo", algorithms.names())
def test_every_method_runs_or_says_why_not(algo: str, home: Any, tmp_path: Path) -> None:
    resolved = settle(algo, tmp_path, center_rewards=False)
    try:
        record = execute(resolved, resume=False, fresh=False, report=lambda *_: None)
    except UserError as error:
        assert "\n" not in str(error) and " failed: " not in str(error), "refused, and not broken"
        return
    assert record.status == "done" and any("rewards" in d or "preferences" in d for d in record.deviations)
    assert record.data["settled"]["schema"] == "plain pairs"
    assert {(e.policy, e.mode) for e in record.evaluations} == {
        ("reference", "greedy"), ("reference", "sampled"), ("trained", "greedy"), ("trained", "sampled"),
        ("trained", "stored"),
    }  # fmt: skip
    by_mode = {e.mode: e for e in record.evaluations if e.policy == "trained"}
    names = {m.name for m in resolved.task.metrics}
    assert set(by_mode["sampled"].metrics) >= names
    assert 0 <= (by_mode["stored"].metrics["preference_accuracy"]["mean"] or 0) <= 1


@pytest.mark.proof
def test_a_prompt_without_an_answer_is_in_no_mean(home: Any, tmp_path: Path) -> None:
    long = [{**row, "prompt": row["prompt"] + " why?" * 200} for row in rows()[:20]]
    path = str(write(tmp_path / "long.jsonl", [*rows(), *long]))
    resolved = settle("dpo", tmp_path, steps=1, **{"task.dataset": path})
    record = execute(resolved, resume=False, fresh=False, report=lambda *_: None)
    heldout = next(e for e in record.evaluations if (e.policy, e.mode) == ("trained", "sampled"))
    count, unfit = heldout.metrics["unfit"]["n"] or 0, heldout.metrics["unfit"]["mean"] or 0
    assert 0 < unfit < 1
    for name in ("reward", "truncated", "kl", "kl_k1"):
        assert heldout.metrics[name]["n"] == round(count * (1 - unfit))


def test_preferences_are_learned_and_held_out_pairs_ordered(home: Any, tmp_path: Path) -> None:
    """Sixty questions with one rule: DPO learns it, and its implicit reward orders pairs it has not seen."""
    resolved = settle("dpo", tmp_path, steps=30, learning_rate=3e-4)
    record = execute(resolved, resume=False, fresh=False, report=lambda *_: None)
    stored = next(e for e in record.evaluations if e.mode == "stored")
    assert (stored.metrics["preference_accuracy"]["mean"] or 0) > 0.9
    assert (stored.metrics["preference_margin"]["mean"] or 0) > 0


def test_a_reward_model_pays_fresh_answers_and_orders_stored_ones(home: Any, tmp_path: Path) -> None:
    resolved = settle("shiq", tmp_path, rewards="model")
    task = resolved.task
    assert isinstance(task, UltraFeedback)
    codec = Recorder()
    found = task.trajectories("heldout", codec, resolved.spec)
    better = np.array([t.total_reward for t in found if t.rank == 1.0])
    worse = np.array([t.total_reward for t in found if t.rank == 0.0])
    assert (better > worse).mean() > 0.9, "it was fitted to the rule that these follow"
    (episode,) = task.episodes(task.prompts("heldout")[:1], codec, 1000)
    task.step([episode], [Completion(tuple(b"No cat."), (0.0,) * 7, "length")])
    ((trajectory, score),) = task.finish([episode], "x")
    assert trajectory.truncated and trajectory.rewards[-1] == score.total == score.metrics["reward"]


def test_demands_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --data FILE"):
        resolved = resolve("dpo", "ultrafeedback", {})
        check_demands(resolved)


@pytest.mark.skipif(not SHARED.is_file(), reason="the real pairs are not here")
def test_the_real_pairs() -> None:
    corpus = data.read(str(SHARED))
    assert corpus.schema == "plain pairs" and corpus.rows == 1000 and corpus.scored
    assert corpus.dropped == {"equal answers": 4, "an empty answer": 2} and len(corpus.questions) == 994
