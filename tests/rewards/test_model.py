"""Scores: the template's own rendering, read at its last token, whatever the batch, and kept on disk."""

from __future__ import annotations

import json
import multiprocessing
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForSequenceClassification,
)

from shiq_bench.data.collation import grow, tree_rows
from shiq_bench.models.template import PLAIN_TEMPLATE
from shiq_bench.records.errors import UserError
from shiq_bench.rewards import model as rewards
from shiq_bench.rewards.model import RewardModel, free_pad
from tests.models.test_chat import tokenizer
from tests.rewards.conftest import DIALOGUES, SHAPE, llama, llama_tokenizer, qwen, save, says


def by_itself(model: RewardModel, dialogue: list[dict[str, str]]) -> float:
    """The score of a dialogue that nothing is padded for and that shares no row."""
    return model._forward(grow([model.encode(dialogue)[0]], [0]), "padded")[0]


def by_hand(folder: Path, dialogue: list[dict[str, str]]) -> float:
    """The model's score as its authors would compute it: one dialogue, their template, the last token."""
    text = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = text.apply_chat_template(dialogue, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0, -1]
        return float(model.score(hidden))


@pytest.mark.parametrize("family", ["llama", "llama, pad ends the turn", "qwen"])
def test_scores_are_those_of_the_last_token_in_any_batch(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "qwen":
        folder = qwen(tmp_path / "model")
    else:
        text = llama_tokenizer(eos_token="<|eot|>")
        if "pad" in family:
            text.pad_token = "<|eot|>"
        folder = llama(tmp_path / "model", text, pad_token_id=text.pad_token_id)
    expected = [by_hand(folder, d) for d in DIALOGUES]
    assert max(expected) - min(expected) > 0.1  # they can be told apart
    assert RewardModel(str(folder)).score(DIALOGUES) == pytest.approx(expected, abs=1e-4)
    for tokens in (1, 60):  # one by one; a few together
        monkeypatch.setattr(rewards, "TOKENS", tokens)
        monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / str(tokens)))
        assert RewardModel(str(folder)).score(DIALOGUES) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_answers_that_share_a_prompt_score_as_they_do_alone(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random trees to 1e-5 in float32; and dialogues, in passes of few tokens, each prompt once a pass."""
    folder = qwen(tmp_path / "m") if family == "qwen" else llama(tmp_path / "m", llama_tokenizer())
    model, rng = RewardModel(str(folder)), random.Random(family)
    assert model._layout == "tree"
    for _ in range(20):
        sequences = [[rng.randrange(30) for _ in range(rng.randint(1, 12))]]
        for _ in range(rng.randint(1, 9)):
            before = rng.choice(sequences)
            sequences.append(
                [*before[: rng.randint(1, len(before))], *(rng.randrange(3) for _ in range(rng.randint(1, 9)))]
            )
        prompts = [rng.randrange(3) for _ in sequences]
        trees = grow(sequences, prompts)
        members = [n for tree in trees for n in tree.members]
        rows = model._forward(grow([sequences[n] for n in members], range(len(members))), "padded")
        assert model._forward(trees, "tree") == pytest.approx(rows, abs=1e-5)
    answers = ["one two", "four said the user", "four", "one to the assistant", "four said three"]
    asked = [says(prompt, answer) for prompt in ("said the user to the assistant one two", "x") for answer in answers]
    laid: list[int] = []

    def spied(trees: Any, layout: Any) -> Any:
        inputs, nodes = tree_rows(trees, layout)
        laid.append(inputs["input_ids"].numel())
        return inputs, nodes

    monkeypatch.setattr(rewards, "tree_rows", spied)
    scores = RewardModel(str(folder)).score(asked)
    assert scores == pytest.approx([by_hand(folder, d) for d in asked], abs=1e-4)
    assert max(scores) - min(scores) > 0.1
    encoded = [model.encode(d)[0] for d in asked]
    whole = max(map(len, encoded))
    assert sum(laid[1:]) < sum(map(len, encoded)) / 1.5  # the first is the probe
    monkeypatch.setattr(rewards, "TOKENS", whole)
    monkeypatch.setenv("SHIQ_BENCH_HOME", str(tmp_path / "few"))
    laid.clear()
    assert RewardModel(str(folder)).score(asked) == pytest.approx(scores, abs=1e-5)
    assert len(laid) > 3 and max(laid[1:]) <= whole


def test_padding_with_the_end_of_a_turn_would_move_the_score(tmp_path: Path) -> None:
    """Why a pad id is chosen: with the model's own, the score is read one token early."""
    text = llama_tokenizer(eos_token="<|eot|>")
    text.pad_token = "<|eot|>"
    folder = llama(tmp_path / "model", text, pad_token_id=text.pad_token_id)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = text.apply_chat_template(DIALOGUES[0], tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert abs(float(model(ids).logits) - by_hand(folder, DIALOGUES[0])) > 1e-2


def test_a_pad_id_stands_in_no_sequence() -> None:
    assert free_pad([[0, 1], [2]], 5, 8) == 5
    assert free_pad([[0, 1], [5]], 5, 8) == 2  # the model's own is spelt out in a text
    assert free_pad([[0, 1], [2]], None, 8) == free_pad([[0, 1], [2]], 9, 8) == 3  # none, or one without a weight
    assert free_pad([[0, 1, 2], [3, 0]], 2, 4) == 1  # all occur: one that ends no sequence


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_bfloat16_is_near(family: str, tmp_path: Path, record_property: Any) -> None:
    folder = llama(tmp_path / "m", llama_tokenizer()) if family == "llama" else qwen(tmp_path / "m")
    wide = torch.tensor(RewardModel(str(folder)).score(DIALOGUES))
    narrow = torch.tensor(RewardModel(str(folder), precision="bf16").score(DIALOGUES))
    assert wide.tolist() != narrow.tolist()  # another cache, and another model
    deviation = float((wide - narrow).abs().max() / wide.std())
    record_property("largest deviation of bfloat16, in standard deviations of the score", deviation)
    assert deviation < 0.5
    # The head is in float32: not all scores are numbers of 8 bits.
    assert narrow.tolist() != narrow.bfloat16().float().tolist()


@pytest.mark.parametrize("doubled", [False, True])
def test_one_bos(doubled: bool, tmp_path: Path) -> None:
    text = llama_tokenizer()
    if doubled:
        text.chat_template = "{{ bos_token }}" + text.chat_template
    assert text("a")["input_ids"][0] == text.bos_token_id  # it would add one to what the template writes
    ids, cut = RewardModel(str(llama(tmp_path / "m", text))).encode(says("one", "two"))
    assert ids[0] == text.bos_token_id and ids.count(text.bos_token_id) == 1 and not cut
    assert text.decode(ids) == "<bos><|start|>user\none<|eot|><|start|>assistant\ntwo<|eot|>"


def test_what_is_too_long_loses_its_beginning(tmp_path: Path) -> None:
    text = llama_tokenizer()
    model = RewardModel(str(llama(tmp_path / "m", text, max_position_embeddings=24)))
    short, long = says("one", "two"), says("one two three four " * 9, "two")
    whole = text.apply_chat_template(long, tokenize=True, return_dict=True)["input_ids"]
    assert model.encode(long) == ([text.bos_token_id, *whole[-23:]], True)
    assert model.encode(short)[1] is False
    model.score([short, long, long])
    assert model.cut == 2


def test_a_tokenizer_without_a_template_reads_plain_text(tmp_path: Path) -> None:
    text = tokenizer(None, [])
    folder = llama(tmp_path / "m", text)
    model = RewardModel(str(folder))
    assert model.plain_template
    ids, _ = model.encode(says("one", "two"))
    assert text.decode(ids) == "<bos>### user\none\n\n### assistant\ntwo<eos>\n\n"
    text.chat_template = PLAIN_TEMPLATE
    text.save_pretrained(folder)
    again = RewardModel(str(folder))
    assert again.plain_template and again.encode(says("one", "two"))[0] == ids
    assert not RewardModel(str(qwen(tmp_path / "q"))).plain_template


def test_an_encoder_scores_at_its_first_token(tmp_path: Path) -> None:
    text = tokenizer(None, ["[CLS]", "[SEP]", "[PAD]"], bos_token=None, eos_token=None)
    text.cls_token, text.sep_token, text.pad_token = "[CLS]", "[SEP]", "[PAD]"
    pair = [("[CLS]", text.cls_token_id), ("[SEP]", text.sep_token_id)]
    text.backend_tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=pair)
    config = BertConfig(
        vocab_size=len(text), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, num_labels=1, pad_token_id=text.pad_token_id,
    )  # fmt: skip
    model = RewardModel(str(save(tmp_path / "m", BertForSequenceClassification(config), text)))
    ids, _ = model.encode(says("one", "two"))
    assert text.decode(ids).startswith("[CLS]### user") and "two[SEP]" in text.decode(ids)
    assert model._layout == "padded"
    together, alone = model.score(DIALOGUES), [by_itself(model, d) for d in DIALOGUES]
    assert together == pytest.approx(alone, abs=1e-4)


def test_several_labels_and_no_reward_model(tmp_path: Path) -> None:
    text = llama_tokenizer()
    llama(tmp_path / "three", text, labels=3)
    save(tmp_path / "lm", LlamaForCausalLM(LlamaConfig(vocab_size=len(text), **SHAPE)), text)
    save(tmp_path / "headless", LlamaForCausalLM(LlamaConfig(vocab_size=len(text), num_labels=1, **SHAPE)), text)
    (llama(tmp_path / "pickled", text) / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    for name, message in {
        "three": "is a LlamaForSequenceClassification with 3 labels; expected a sequence classifier with one",
        "lm": "is a LlamaForCausalLM with 2 labels; expected a sequence classifier with one",
        "pickled": r"holds no model: expected config.json and \*.safetensors",
        "thre": "no model folder at .*did you mean .*three",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            RewardModel(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"lacks weights of a reward model \(score.weight\)"):
        RewardModel(str(tmp_path / "headless")).score(DIALOGUES)


CODE = """
from dataclasses import dataclass
import torch
from transformers import LlamaForSequenceClassification
from transformers.utils import ModelOutput

@dataclass
class Output(ModelOutput):
    logits: torch.Tensor = None
    score: torch.Tensor = None

class Gated(LlamaForSequenceClassification):
    def forward(self, input_ids=None, attention_mask=None, **rest):
        logits = super().forward(input_ids, attention_mask=attention_mask, **rest).logits
        return Output(logits=logits, score=logits.sum(-1))
"""


def test_several_labels_with_a_score_of_their_own(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", llama_tokenizer(), labels=3)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "gated.Gated"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "gated.py").write_text(CODE)
    with pytest.raises(UserError, match="3 labels"):
        RewardModel(str(folder))
    model = RewardModel(str(folder), trust_remote_code=True)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False).eval()
    with torch.no_grad():
        expected = [float(plain(torch.tensor([model.encode(d)[0]])).logits.sum()) for d in DIALOGUES]
    assert model.score(DIALOGUES) == pytest.approx(expected, abs=1e-4)
    assert model._layout == "padded"  # it is no sum of labels that a head gives
    (folder / "gated.py").write_text(CODE.replace("score=logits.sum(-1)", ""))
    with pytest.raises(UserError, match="gives 3 labels and no score"):
        RewardModel(str(folder), trust_remote_code=True).score(DIALOGUES)


def test_models_that_take_no_trees_or_read_the_score_otherwise_are_padded(tmp_path: Path) -> None:
    text = llama_tokenizer()
    config = MistralConfig(vocab_size=len(text), num_labels=1, sliding_window=8, **SHAPE)
    windowed = save(tmp_path / "window", MistralForSequenceClassification(config), text)
    twice = llama(tmp_path / "twice", text)
    given = json.loads((twice / "config.json").read_text())
    given["auto_map"] = {"AutoModelForSequenceClassification": "gated.Gated"}
    (twice / "config.json").write_text(json.dumps(given))
    (twice / "gated.py").write_text(CODE.replace("logits.sum(-1)", "2 * logits.sum(-1)"))
    plain = RewardModel(str(twice)).score(DIALOGUES)
    model = RewardModel(str(twice), trust_remote_code=True)
    assert model._layout == RewardModel(str(windowed))._layout == "padded"
    assert model.score(DIALOGUES) == pytest.approx([2 * score for score in plain], abs=1e-4)


def test_dialogues_that_cannot_be_scored(tmp_path: Path) -> None:
    model = RewardModel(str(qwen(tmp_path / "m")))
    for dialogue in ([], says("one"), says("one", "two", "three")):
        with pytest.raises(UserError, match="must end with a message of the assistant"):
            model.score([dialogue])
    assert model.score([]) == []


def test_scores_are_kept_and_need_no_weights(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = qwen(tmp_path / "m")
    first = RewardModel(str(folder)).score([*DIALOGUES, DIALOGUES[0]])
    assert first[0] == first[-1]
    seen: list[tuple[int, int]] = []

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were loaded")

    with monkeypatch.context() as patch:
        patch.setattr(rewards, "load_classifier", never)
        again = RewardModel(str(folder))
        assert again.score([DIALOGUES[0], *DIALOGUES]) == [first[0], *first[:-1]]
        again.score(DIALOGUES, lambda what, done, total: seen.append((done, total)))
        assert not seen
        with pytest.raises(AssertionError):
            again.score([says("new", "answer")])
    RewardModel(str(folder)).score([says("new", "answer")], lambda what, *counts: seen.append(counts))
    assert seen == [(1, 1)]
    assert len(list(cache.glob("*.sqlite"))) == 1
    # Another template is another model.
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<|im_end|>\n", "<|im_end|>"))
    assert RewardModel(str(folder)).score(DIALOGUES) != first[:-1]
    assert len(list(cache.glob("*.sqlite"))) == 2


def test_an_interruption_keeps_the_batches_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(qwen(tmp_path / "m"))
    monkeypatch.setattr(rewards, "TOKENS", 1)

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RewardModel(folder).score(DIALOGUES, stop)
    seen: list[int] = []
    RewardModel(folder).score(DIALOGUES, lambda what, done, total: seen.append(total))
    assert seen == [len(DIALOGUES) - 3] * (len(DIALOGUES) - 3)


def test_two_processes_write_one_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = qwen(tmp_path / "m")
    monkeypatch.setattr(rewards, "TOKENS", 1)
    forked = multiprocessing.get_context("fork")
    running = []
    for name in ("a", "b"):
        dialogues = [says("x", f"{n} {which}") for which in (name, "both") for n in range(40)]
        running.append(forked.Process(target=RewardModel(str(folder)).score, args=(dialogues,)))
        running[-1].start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    (path,) = cache.glob("*.sqlite")
    assert sqlite3.connect(path).execute("SELECT count(*), count(DISTINCT key) FROM scores").fetchone() == (120, 120)


def test_a_spoilt_cache_is_named(tmp_path: Path, cache: Path) -> None:
    model = RewardModel(str(qwen(tmp_path / "m")))
    model.score(DIALOGUES[:1])
    (path,) = cache.glob("*.sqlite")
    path.write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(UserError, match=f"cannot use the cache of scores {path}: .*; delete it"):
        model.score(DIALOGUES[:1])


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = qwen(tmp_path / "m")
    spoilt = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        spoilt.score.weight.fill_(float("nan"))
    spoilt.save_pretrained(folder)
    with pytest.raises(UserError, match="gives a score that is no finite number"):
        RewardModel(str(folder)).score(DIALOGUES)


def test_a_report_beside_the_weights_changes_nothing(tmp_path: Path) -> None:
    folder = qwen(tmp_path / "m")
    before = RewardModel(str(folder))
    (folder / "report.json").write_text("{}")
    assert RewardModel(str(folder)).fingerprint == before.fingerprint
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert RewardModel(str(folder)).fingerprint != before.fingerprint
