"""The policy that a run starts from: found, downloaded, or trained on the spot."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.batch import Batch, LossOutput, Stats
from shiq_bench.api.task import Codec, Episode, Task, TinyModel
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data.groups import Row
from shiq_bench.generation.rollout import replay
from shiq_bench.models.chat import ChatCodec
from shiq_bench.models.hardware import fast_precision
from shiq_bench.models.source import ModelSource, Progress, fingerprint, locate
from shiq_bench.models.tiny import TINY_VERSION, Recorder, llama_config, scale_logits, train_tokenizer, word_tokenizer
from shiq_bench.records.cache import cached_folder
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash
from shiq_bench.records.spec import RunSpec
from shiq_bench.training.policy import Policy
from shiq_bench.training.trainer import train


def resolve_model(spec: RunSpec, task: Task, on_progress: Progress = lambda what, done, total: None) -> ModelSource:
    """Find, download or build the starting policy.

    Raises:
        UserError: the path does not exist, the hub cannot be reached, the weights are not
            safetensors, or the task has no embedded model.
    """
    tiny, trusted = spec.model == "tiny", spec.trust_remote_code
    found = build_tiny(spec.task, task, on_progress) if tiny else locate(spec.model, spec.revision, trusted)
    return ModelSource(found, fingerprint(found), tiny, trust_remote_code=trusted and not tiny)


@dataclass(frozen=True)
class WeightedLikelihood(Algorithm):
    """Maximum likelihood with a weight a token, carried in the place of rewards: fits starting policies."""

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        return LossOutput(-(stats.policy.logp * batch.rewards).sum())

    def count(self, batch: Batch) -> Tensor:
        return batch.rewards.sum()


def _demonstrated(task: Task, split: str, codec: Codec, max_length: int) -> list[Episode]:
    return replay(task, task.episodes(task.prompts(split), codec, max_length), codec, max_length)


def demonstrations(task: Task, split: str, codec: Codec, max_length: int) -> list[Trajectory]:
    """The task's ground truth, played through the task itself and scored like any other trajectory."""
    episodes = _demonstrated(task, split, codec, max_length)
    # A right answer that could not be scored must not be learned from as a wrong one.
    return [replace(trajectory, sampler_logp=None) for trajectory, s in task.finish(episodes, "gold") if s.scored]


def build_tiny(name: str, task: Task, on_progress: Progress) -> Path:
    """The task's embedded model, built once and cached by its recipe and the data it learns from."""
    recipe = task.tiny()
    if recipe is None:
        raise UserError(f"task {name!r} has no embedded model: give --model a folder or a hub id")
    recorder = Recorder()
    if recipe.steps:
        _demonstrated(task, "start", recorder, max_length=1 << 20)
    key = {"version": TINY_VERSION, "task": name, "recipe": asdict(recipe), "corpus": stable_hash(recorder.texts)}
    if recipe.steps:
        key["precision"] = fast_precision()

    def build(folder: Path) -> None:
        torch.manual_seed(0)
        tokenizer = word_tokenizer(recipe.words) if recipe.words else train_tokenizer(recipe, recorder.texts)
        model = LlamaForCausalLM(llama_config(recipe, len(tokenizer)))
        if recipe.steps:
            _fit(model, tokenizer, task, recipe, folder, on_progress)
        else:
            scale_logits(model, recipe.logit_scale)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return cached_folder("tiny", key, build)


def _fit(model: Any, tokenizer: Any, task: Task, recipe: TinyModel, folder: Path, on_progress: Progress) -> None:
    """Every token is learned, actions at full weight and the rest at ``context_weight``."""
    # Not scored: a task's judge may itself be made from this model.
    played = _demonstrated(task, "start", ChatCodec(tokenizer, tiny=True), recipe.max_length)
    gold = [e.transcript.trajectory(e.prompt_id, {}, "gold") for e in played if any(e.transcript.action_mask)]
    weighted = [
        Trajectory(
            prompt_id=str(n),
            token_ids=t.token_ids,
            action_mask=(False,) + (True,) * (len(t.token_ids) - 1),
            rewards=(0.0, *(1.0 if a else recipe.context_weight for a in t.action_mask[1:])),
        )
        for n, t in enumerate(gold)
    ]
    spec = RunSpec(
        "starting-policy", "", steps=recipe.steps, groups_per_step=recipe.batch, learning_rate=recipe.learning_rate,
        schedule="cosine", warmup=0.05, precision=fast_precision(), save_every=10**9,
    )  # fmt: skip
    done = 0

    def on_step(logs: Mapping[str, float]) -> None:
        nonlocal done
        if "loss" in logs:
            done += 1
            on_progress("training the tiny starting policy", done, recipe.steps)

    policy = Policy(model.to("cuda" if torch.cuda.is_available() else "cpu"), len(tokenizer))
    with tempfile.TemporaryDirectory() as scratch:
        train(policy, None, [[Row(t)] for t in weighted], WeightedLikelihood(), spec, Path(scratch), on_step=on_step)
    model.to("cpu")
