"""lm-eval through the engine: the numbers of lm-eval's own model, in records, tables and runs."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from shiq_bench.api.registry import task, tasks
from shiq_bench.api.task import Codec, Episode, Task
from shiq_bench.api.trajectory import Preference, Score, Trajectory, Transcript
from shiq_bench.evaluation.lm_eval_model import EngineLM
from shiq_bench.evaluation.lm_eval_tasks import check_tasks, run_lm_eval, shipped, task_names
from shiq_bench.generation.generator import Generator
from shiq_bench.generation.opening import make_generator
from shiq_bench.models.source import ModelSource
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import Evaluation, Metric
from shiq_bench.report.comparison import compare
from shiq_bench.report.tables import text as in_format
from shiq_bench.runs.execute import execute
from shiq_bench.runs.settings import resolve
from shiq_bench.runs.validation import check_demands
from shiq_bench.training.policy import load_policy
from tests.evaluation.conftest import LONGEST, WORDS

KINDS = ["llama", "qwen", "gpt2"]
PAIRS = [
    {
        "prompt_id": f"p{n}",
        "messages": [{"role": "user", "content": f"the cat sat {w}"}] * (1 + n % 3),
        "chosen": f"it was {w}",
        "rejected": f"seven dogs ran {v} home",
    }
    for n, (w, v) in enumerate(zip(WORDS, reversed(WORDS), strict=True))
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine_lm(folder: Path, max_length: int = LONGEST) -> EngineLM:
    source = ModelSource(folder, "", tiny=False)
    policy, tokenizer = load_policy(source), source.tokenizer()

    def generator() -> Generator:
        return make_generator("hf", folder, tokenizer_vocab=len(tokenizer), max_length=max_length)

    return EngineLM(policy, policy.model, tokenizer, generator)


def theirs(folder: Path, batch: int) -> HFLM:
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=batch)


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, a, 0, metadata=("asked", n, 1)) for n, a in enumerate(arguments)]


LONG = " ".join(WORDS * 4)
TEXTS = ["a", "the cat ", "<s>the cat", "<|end|>sat", "é ü 中文", LONG, *(LONG[:n] for n in range(60, 200, 7))]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_lm_evals_own_model(kind: str, batch: int, folders: dict[str, Path]) -> None:
    """No context, spaces on either side of the seam, a BOS spelt out, texts longer than the model."""
    ours, other = engine_lm(folders[kind]), theirs(folders[kind], batch)
    pairs = [(context, end) for context in ("", *TEXTS) for end in (" mat", "mat and home", LONG[:70])]
    found = ours.loglikelihood(asked("loglikelihood", *pairs))
    expected = other.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    np.testing.assert_allclose([f[0] for f in found], [e[0] for e in expected], atol=1e-5, rtol=1e-5)
    assert [f[1] for f in found] == [e[1] for e in expected]

    texts = [(text,) for text in TEXTS]
    rolling = other.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
    np.testing.assert_allclose(ours.loglikelihood_rolling(asked("loglikelihood_rolling", *texts)), rolling, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_continuations_are_known_for_such(kind: str, folders: dict[str, Path]) -> None:
    lm = engine_lm(folders[kind])
    likeliest = greedy_ids(lm, "the cat sat", 4)
    encoded = [(None, lm.tok_encode("the cat sat"), likeliest), (None, lm.tok_encode("the cat sat"), [7, *likeliest])]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(encoded)] == [True, False]


def greedy_ids(lm: EngineLM, text: str, count: int) -> list[int]:
    ids = lm.tok_encode(text)
    for _ in range(count):
        ids.append(int(lm.policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_lm_evals_own_model(kind: str, batch: int, folders: dict[str, Path]) -> None:
    """Stop strings in the middle of a token, none at all, other names for the limit, prompts cut on their left."""
    settings: list[dict[str, Any]] = [
        {"until": ["e", "<|user|>"], "max_gen_toks": 12},
        {"until": [], "max_new_tokens": 5, "do_sample": False, "temperature": 0.0, "top_p": 0.95},
    ]
    # Where the first text of a batch spells its BOS out, their model leaves out that of all the others.
    texts = TEXTS if batch == 1 else [text for text in TEXTS if not text.startswith("<")]
    arguments = [(text, s) for s in settings for text in texts]
    found = engine_lm(folders[kind]).generate_until(asked("generate_until", *arguments))
    expected = theirs(folders[kind], batch).generate_until(asked("generate_until", *arguments), disable_tqdm=True)
    assert found == expected and len(set(found)) > 8


@pytest.mark.parametrize("kind", KINDS)
def test_chat_templates_are_those_of_lm_evals_own_model(kind: str, folders: dict[str, Path]) -> None:
    ours, other = engine_lm(folders[kind]), theirs(folders[kind], 1)
    said = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    answered = [*said, {"role": "assistant", "content": "because"}]
    for messages, generation in ((said, True), (said[1:], True), (answered, False)):
        assert ours.apply_chat_template(messages, generation) == other.apply_chat_template(messages, generation)
    assert ours.tokenizer_name == other.tokenizer_name
    assert ours.chat_template(True) == other.chat_template(True)


def test_a_temperature_of_1_is_sampled_and_repeatable(folders: dict[str, Path]) -> None:
    lm = engine_lm(folders["llama"])
    requests = asked(
        "generate_until", ("the cat", {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 8})
    )
    drawn = lm.generate_until(requests * 4)
    assert len(set(drawn)) > 1, "repeats of a document are draws of their own"
    assert drawn == lm.generate_until(requests * 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "task asked samples with temperature=0.7"),
        ({"do_sample": True, "temperature": 1.0, "top_k": 5}, "top_k=5"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"max_gen_toks": LONGEST}, f"asks for {LONGEST} tokens"),
        ({"max_gen_toks": 20}, "--set max_length="),
    ],
)
def test_what_the_sampler_does_not_do_is_refused(settings: Any, message: str, folders: dict[str, Path]) -> None:
    lm = engine_lm(folders["llama"], max_length=LONGEST - 10)
    with pytest.raises(UserError, match=message):
        lm.generate_until(asked("generate_until", (LONG, {"until": [], **settings})))


def test_what_cannot_be_scored_is_refused(folders: dict[str, Path]) -> None:
    lm = engine_lm(folders["qwen"])
    for pair in (("the", LONG), ("\n", "the"), ("the", "")):
        with pytest.raises(UserError, match="leave that task out"):
            lm.loglikelihood(asked("loglikelihood", pair))
    lm.tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither"):
        EngineLM(lm.policy, lm.policy.model, lm.tokenizer, lm._generator)


# --- tasks

ADHOC = ["adhoc_choice", "adhoc_rolling", "adhoc_last", "adhoc_answer"]


def by_lm_eval(
    folder: Path, names: list[str], include: list[Path], metadata: Any, batch: int, limit: int | None
) -> Any:
    """Their model, their way in; a report of the machine's packages, which takes a minute, left out."""
    manager = TaskManager(include_path=include, include_defaults=False, metadata=metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.evaluator, "add_env_info", lambda storage: None)
        return lm_eval.evaluator.simple_evaluate(
            theirs(folder, batch), tasks=names, task_manager=manager, bootstrap_iters=0, limit=limit
        )


@pytest.mark.parametrize(("kind", "batch"), [("llama", 1), ("qwen", 3), ("gpt2", 4)])
def test_tasks_measure_what_lm_evals_own_model_measures(
    kind: str, batch: int, folders: dict[str, Path], adhoc: Path
) -> None:
    names = [*ADHOC, "shiq_preference"]
    include = [shipped(), adhoc]
    metadata = {"pairs": PAIRS}
    found = run_lm_eval(names, engine_lm(folders[kind]), policy="reference", step=0, include=[adhoc], metadata=metadata)
    expected = by_lm_eval(folders[kind], names, include, metadata, batch, None)["results"]
    assert [e.split for e in found] == names and {e.mode for e in found} == {"lm-eval"}
    compared = 0
    for evaluation in found:
        totals = expected[evaluation.split]
        for name, values in evaluation.metrics.items():
            assert values["mean"] == pytest.approx(totals[name if "," in name else f"{name},none"], rel=1e-5), name
            compared += 1
    assert compared == 3 + 2 + 2 + 4 + 2


def test_functions_of_bfcl_measure_what_lm_evals_own_model_measures(tmp_path: Path) -> None:
    from tests.evaluation import conftest

    longest, conftest.LONGEST = conftest.LONGEST, 2048
    try:
        folder = conftest.build(tmp_path / "model", "llama")
    finally:
        conftest.LONGEST = longest
    names = ["shiq_bfcl_function"]
    (found,) = run_lm_eval(names, engine_lm(folder), policy="reference", step=0, limit=6)
    expected = by_lm_eval(folder, names, [shipped()], {}, 2, 6)["results"]["shiq_bfcl_function"]
    for name, values in found.metrics.items():
        assert values["mean"] == pytest.approx(expected[f"{name},none"]) and values["n"] == 6
    documents = TaskManager(include_path=[shipped()], include_defaults=False).load(names)["tasks"][names[0]].eval_docs
    assert len(documents) == 251
    assert all(len(d["choices"]) > 1 and 0 <= d["gold"] < len(d["choices"]) for d in documents)
    assert all(choice in d["prompt"] for d in documents for choice in d["choices"])


def test_examples_are_documents_and_errors_are_over_them(folders: dict[str, Path], adhoc: Path) -> None:
    choice, rolling, last, answer = run_lm_eval(
        ADHOC, engine_lm(folders["llama"]), policy="trained", step=7, limit=5, include=[adhoc]
    )
    assert (choice.policy, choice.split, choice.step) == ("trained", "adhoc_choice", 7)
    assert [e["prompt_id"] for e in choice.examples] == ["0", "1", "2", "3", "4"]
    assert choice.metrics["acc"]["mean"] == pytest.approx(np.mean([e["acc"] for e in choice.examples]))
    assert choice.metrics["acc_norm"]["stderr"] is not None and choice.metrics["acc_norm"]["n"] == 5
    for evaluation, corpus in ((choice, "mcc"), (rolling, "word_perplexity"), (last, "perplexity")):
        assert evaluation.metrics[corpus]["stderr"] is None and evaluation.metrics[corpus]["n"] == 5
        assert not any(corpus in e for e in evaluation.examples), "no document has a share in it"
    assert "acc" in last.examples[0]
    assert set(answer.metrics) == {f"{m},{f}" for m in ("exact_match", "length") for f in ("whole", "first")}
    json.dumps([e.__dict__ for e in (choice, rolling, last, answer)], allow_nan=False)


def test_a_tie_is_worth_half_and_empty_answers_are_left_out() -> None:
    pairs = [{**PAIRS[0], "prompt_id": str(n)} for n in range(200)] + [{**PAIRS[0], "chosen": " "}]
    manager = TaskManager(include_path=[shipped()], include_defaults=False, metadata={"pairs": pairs})
    documents = manager.load(["shiq_preference"])["tasks"]["shiq_preference"].eval_docs
    assert len(documents) == 200 and 70 < sum(documents["gold"]) < 130
    assert all(d["choices"][d["gold"]] == PAIRS[0]["chosen"] for d in documents)


def test_the_rest_of_the_process_is_left_as_it_was(folders: dict[str, Path], adhoc: Path, capfd: Any) -> None:
    lm = engine_lm(folders["llama"])
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    capfd.readouterr()
    run_lm_eval(ADHOC[:2], lm, policy="reference", step=0, limit=2, include=[adhoc])
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == before
    assert capfd.readouterr() == ("", "")


def test_ten_evaluations_in_a_row_leave_nothing_behind(folders: dict[str, Path], adhoc: Path) -> None:
    """Models die with their evaluation, and as many tensors are alive after the tenth as after the second."""
    alive: list[int] = []
    models: list[weakref.ref[Any]] = []
    for _ in range(10):
        lm = engine_lm(folders["llama"])
        models += [weakref.ref(lm), weakref.ref(lm.policy)]
        run_lm_eval(["adhoc_choice", "adhoc_answer"], lm, policy="reference", step=0, limit=3, include=[adhoc])
        del lm
        gc.collect()
        alive.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    print(f"tensors alive {alive}, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB")
    assert not [m for m in models if m() is not None]
    assert alive[-1] == alive[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shiq_preferences", "did you mean 'shiq_preference'"),
        ("adhoc_nucleus", "task adhoc_nucleus samples with temperature=0.7, top_p=0.9"),
        ("shiq_preference", "needs pairs"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused_in_one_line(
    name: str, message: str, folders: dict[str, Path], adhoc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = TaskManager(include_defaults=False)
    monkeypatch.setattr("shiq_bench.evaluation.lm_eval_tasks._official", lambda: nothing)
    with pytest.raises(UserError, match=message) as refused:
        run_lm_eval(
            [name], engine_lm(folders["llama"]), policy="reference", step=0, limit=2, include=[adhoc],
            metadata={"pairs": []},
        )  # fmt: skip
    assert "\n" not in str(refused.value)


def test_data_that_cannot_be_fetched_are_said_to_be(adhoc: Path, folders: dict[str, Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"adhoc_hub cannot be loaded.*hub"):
        run_lm_eval(["adhoc_hub"], engine_lm(folders["llama"]), policy="reference", step=0, include=[adhoc])
    check_tasks(["adhoc_hub"], [adhoc])


@pytest.mark.proof  # a minute goes into their index of tasks and their report of the machine
def test_the_tasks_run_under_the_plain_command(folders: dict[str, Path], tmp_path: Path) -> None:
    """``lm_eval`` itself, its own model, our folder and a file of preferences; the engine finds the same."""
    file, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    rows = [{"prompt": f"the cat {n} ?", "chosen": f"it sat {n}", "rejected": f"dogs ran {n}"} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        str(Path(sys.executable).parent / "lm_eval"), "--model", "hf",
        "--model_args", f"pretrained={folders['qwen']},dtype=float32", "--device", "cpu",
        "--include_path", str(shipped()), "--tasks", "shiq_preference", "--metadata", json.dumps({"data": str(file)}),
        "--output_path", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "SHIQ_BENCH_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.rglob("results*.json")
    printed = json.loads(path.read_text())["results"]["shiq_preference"]

    pairs = [p for p in tasks.get("ultrafeedback")(dataset=str(file)).preferences("heldout")]  # type: ignore[call-arg]
    (found,) = run_lm_eval(
        ["shiq_preference"], engine_lm(folders["qwen"]), policy="reference", step=0,
        metadata={"data": str(file)},
    )  # fmt: skip
    assert found.metrics["acc"]["n"] == len(pairs) > 5
    for name in ("acc", "acc_norm"):
        assert found.metrics[name]["mean"] == pytest.approx(printed[f"{name},none"])


# --- runs


@task("told")
@dataclass(frozen=True)
class Told(Task):
    """Says back a word; has pairs."""

    metrics = (Metric("reward", "higher", "mean reward", headline=True),)

    def prompts(self, split: str) -> list[str]:
        return [str(n) for n in range(4)]

    def episodes(self, prompt_ids: Any, codec: Codec, max_length: int) -> list[Episode]:
        self.__dict__["codec"] = codec
        return [
            Episode(p, Transcript(codec.prompt([{"role": "user", "content": WORDS[int(p)]}])), max_new_tokens=8)
            for p in prompt_ids
        ]

    def step(self, episodes: Any, completions: Any) -> None:
        for episode, completion in zip(episodes, completions, strict=True):
            episode.transcript.act(completion)
            episode.done = True

    def finish(self, episodes: Any, source: str) -> list[tuple[Trajectory, Score]]:
        return [
            (
                e.transcript.trajectory(e.prompt_id, {e.transcript.last_action: 1.0}, source),
                Score(1.0, (1.0,), {"reward": 1.0}),
            )
            for e in episodes
        ]

    def demonstration(self, episode: Episode) -> str:
        return WORDS[int(episode.prompt_id) + 1]

    def preferences(self, split: str) -> list[Preference]:
        return [
            Preference(p["prompt_id"], tuple(p["messages"]), p["chosen"], p["rejected"])
            for p in (PAIRS if split == "heldout" else [])
        ]


def settle(folder: Path, results: Path, **settings: Any) -> Any:
    common = {
        "model": str(folder), "engine": "hf", "samples": 0, "steps": 3, "groups_per_step": 2, "eval_samples": 0,
        "eval_splits": "heldout", "max_tokens": 8, "max_length": 40, "lm_eval": "shiq_preference",
        "learning_rate": 1e-2, "results": str(results),
    }  # fmt: skip
    return resolve("sft", "told", {**common, **settings})


def play(resolved: Any) -> Any:
    return execute(resolved, resume=False, fresh=False, report=lambda what, done, total: None)


def found_in(record: Any) -> dict[str, Evaluation]:
    return {e.policy: e for e in record.evaluations if e.mode == "lm-eval"}


def test_a_run_measures_before_and_after_and_the_reference_once(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shiq_bench.evaluation import lm_eval_tasks

    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / "home"))
    asked_for: list[str] = []

    def counted(*arguments: Any, policy: str, **options: Any) -> Any:
        asked_for.append(policy)
        return run_lm_eval(*arguments, policy=policy, **options)

    monkeypatch.setattr(lm_eval_tasks, "run_lm_eval", counted)
    record = play(settle(folders["qwen"], tmp_path / "a"))
    found = found_in(record)
    assert asked_for == ["reference", "trained"]
    assert found["reference"].step == 0 and found["trained"].step == 3
    assert found["reference"].metrics["acc"]["n"] == len(PAIRS)
    trained, metadata = tmp_path / "a" / record.run_id / "policy", {"pairs": PAIRS}
    (again,) = run_lm_eval(["shiq_preference"], engine_lm(trained), policy="trained", step=3, metadata=metadata)
    assert again == found["trained"], "the weights measured are the ones that were kept"

    idle = play(settle(folders["qwen"], tmp_path / "b", steps=0, seed=1))
    assert asked_for == ["reference", "trained"], "the reference's numbers are cached"
    assert found_in(idle) == {"reference": found["reference"]}
    play(settle(folders["qwen"], tmp_path / "c", steps=0, lm_eval_limit=3))
    assert asked_for[2:] == ["reference"]

    text = in_format(compare([record], Told.metrics), "rich")
    panel = text.split("\nshiq_preference, lm-eval\n")[1]
    assert "acc (%) ↑" in panel and "acc norm (%) ↑" in panel and "minus reference" in panel


def test_names_are_checked_before_a_model_is_loaded(folders: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    nothing = TaskManager(include_defaults=False)
    monkeypatch.setattr("shiq_bench.evaluation.lm_eval_tasks._official", lambda: nothing)
    with pytest.raises(UserError, match="did you mean 'shiq_preference'"):
        check_demands(settle(folders["qwen"], tmp_path / "results", lm_eval="shiq_preferense"))
    check_demands(settle(folders["qwen"], tmp_path / "results"))
    assert task_names(" a, b,,a") == ["a", "b"]


def shifted(record: Any, right: Mapping[str, float], n: int) -> Any:
    """The record with made-up accuracies over n documents: the first are right."""

    def made(policy: str) -> Evaluation:
        from shiq_bench.stats.clustered import summarise

        examples = [{"prompt_id": str(i), "acc": float(i < right[policy] * n)} for i in range(n)]
        metrics = {**summarise(examples, ["acc"]), "word_perplexity": {"mean": 12.0, "n": n, "stderr": None}}
        return Evaluation(policy, "gsm", "lm-eval", 200, metrics, examples)

    return replace(record, evaluations=[*record.evaluations, *(made(p) for p in right)])


@pytest.mark.parametrize(("trained", "n", "dropped"), [(0.4, 40, True), (0.58, 40, False), (0.9, 40, False)])
def test_a_drop_beyond_doubt_is_flagged(trained: float, n: int, dropped: bool) -> None:
    from tests.report.synthetic import METRICS, record

    comparison = compare([shifted(record(), {"reference": 0.6, "trained": trained}, n)], METRICS)
    (block,) = comparison.blocks
    assert bool(block.drops) == dropped
    text = in_format(comparison, "rich")
    assert ("▼" in text) == dropped and ("▼" in in_format(comparison, "md")) == dropped
    captions = [c for c in block.captions if c.startswith("Drop")]
    if dropped:
        low, high = (
            100 * v
            for v in (
                block.differences[("gsm", "lm-eval", "shiq", "acc")].estimate.low or 0,
                block.differences[("gsm", "lm-eval", "shiq", "acc")].estimate.high or 0,
            )
        )
        assert captions == [
            f"Drop ▼, shiq, gsm, acc: -20.0 points to the reference, 95% interval {low:+.1f} to {high:+.1f}."
        ]
    else:
        assert not captions
    assert "word perplexity ↓" in text and "acc (%) ↑" in text
