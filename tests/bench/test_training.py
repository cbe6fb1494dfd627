"""Measurements of training: the same work in every form, and the same loss."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shiq_bench.bench.process import fresh_process, matrix_rate
from shiq_bench.bench.training import FORMS, HELD, Work, measure
from shiq_bench.data.collation import TOKENS
from tests.command import shiq_bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=40_000, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(made := tmp_path_factory.mktemp("model"))
    return made


@pytest.mark.proof
def test_every_form_does_the_same_updates(folder: Path) -> None:
    """The same losses of DPO, by TRL and in both layouts, at a rate that moves them; a tree lays out less."""
    pytest.importorskip("trl")
    work = Work(str(folder), prompt=20, answer=6, prompts=2, updates=3, learning_rate=3e-3)
    found = {form: fresh_process(measure, form, **asdict(work)) for form in FORMS}
    trl, padded, tree = (found[form] for form in FORMS)
    assert not isinstance(trl, str) and not isinstance(padded, str) and not isinstance(tree, str), found
    assert trl["tokens"] == padded["tokens"] == tree["tokens"]
    assert tree["laid"] < padded["laid"] <= trl["laid"]
    assert abs(trl["loss"] - math.log(2)) > 3e-5
    for form in (padded, tree):
        assert form["loss"] == pytest.approx(trl["loss"], rel=5e-6)
        assert form["seconds"] > 0 and form["mib"] > 0


@pytest.mark.proof
def test_more_padded_rows_than_can_be_held(folder: Path) -> None:
    """Recomputed where the loss couples them, with the loss of the tree, which fits; else in passes of few tokens."""
    work = Work(str(folder), prompt=1200, answer=6, answers=8, prompts=1, updates=1, learning_rate=3e-3)
    asked = [(work, "tree"), (work, "padded"), (replace(work, algo="shiq"), "padded")]
    tree, padded, alone = (fresh_process(measure, form, **asdict(task)) for task, form in asked)
    assert not isinstance(tree, str) and not isinstance(padded, str) and not isinstance(alone, str)
    assert tree["most"] < HELD < padded["most"]
    assert padded["loss"] == pytest.approx(tree["loss"], rel=1e-5)
    assert alone["laid"] > HELD and alone["most"] < 1.25 * TOKENS  # padding included


def test_work_is_the_same_whoever_asks() -> None:
    work = Work(prompts=2, updates=1, answers=3)
    groups = work.groups()
    assert groups == work.groups() and len(groups) == 4 and all(len(group) == 3 for group in groups)
    for group in groups:
        assert len({t.token_ids[: t.action_mask.index(True)] for t in group}) == 1
        assert [t.total_reward for t in group] == [1.0, 0.0, 0.0]


def test_what_cannot_be_measured_is_said() -> None:
    assert "no form is called 'treee'" in shiq_bench("bench", "training", "--forms", "treee").err
    assert "add --model FOLDER" in str(fresh_process(measure, "tree", data="pairs.jsonl"))
    rate = fresh_process(matrix_rate, "fp32", 64, 0.01)
    assert not isinstance(rate, str) and rate["gflops"] > 0
