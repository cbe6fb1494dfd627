"""Models: the embedded tiny ones, and any causal LM of transformers from a folder or a hub."""

from __future__ import annotations

import difflib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shiq_bench.adapters import is_adapter
from shiq_bench.api import Algorithm, Codec, Episode, Task, TextCodec, TinyModel
from shiq_bench.batch import Batch, LossOutput, Stats
from shiq_bench.chat import TINY_TEMPLATE, ChatCodec
from shiq_bench.generation.rollout import replay
from shiq_bench.hardware import fast_precision
from shiq_bench.records import RunSpec, ToolCall, Trajectory, UserError, stable_hash
from shiq_bench.store import cached_folder, hash_files
from shiq_bench.training.data import Row
from shiq_bench.training.policy import Policy
from shiq_bench.training.stopping import StopFlag
from shiq_bench.training.trainer import train

#: Raise it when the recipe below changes, so that cached models of the old one are not used.
TINY_VERSION = 1
ROLES = ("system", "user", "assistant", "tool")
#: Beside the weights of a model that was judged.
REPORT = "report.json"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ModelSource:
    """A starting policy on disk, and what identifies it."""

    folder: Path
    weights_hash: str
    tiny: bool
    trust_remote_code: bool = False

    def tokenizer(self) -> Any:
        """The tokenizer of the folder."""
        try:
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.folder} holds no tokenizer: {_one_line(error)}") from error

    def codec(self) -> Codec:
        """Messages to ids and back; a model of fixed words has no chat to speak of."""
        tokenizer = self.tokenizer()
        return (
            WordCodec(tokenizer) if tokenizer.chat_template == WordCodec.MARK else ChatCodec(tokenizer, tiny=self.tiny)
        )

    def policy(self, folder: Path | None = None) -> Policy:
        """The causal LM of ``folder`` (by default the source's own) in float32, on the GPU where there is one."""
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder or self.folder,
                dtype=torch.float32,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{folder or self.folder} holds no causal language model: {_one_line(error)}") from error
        policy = Policy(model.to("cuda" if torch.cuda.is_available() else "cpu"), len(self.tokenizer()))
        policy.eval()
        return policy


class WordCodec(TextCodec):
    """One token a word, and no turns: the codec of models built from :attr:`TinyModel.words`."""

    MARK = "{# words #}"
    end_ids: tuple[int, ...] = ()
    tiny = True

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def prompt(
        self, messages: Sequence[Mapping[str, str]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        return [i for m in messages for i in self.answer(m["content"])]

    def reply(
        self, messages: Sequence[Mapping[str, str]], ended: bool, calls: Sequence[ToolCall] | None = None
    ) -> list[int]:
        return self.prompt(messages)

    def answer(self, text: str) -> list[int]:
        return list(self.tokenizer.convert_tokens_to_ids(text.split()))

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join(self.tokenizer.convert_ids_to_tokens(list(token_ids)))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def resolve_model(spec: RunSpec, task: Task, on_progress: Progress = lambda what, done, total: None) -> ModelSource:
    """Find, download or build the starting policy.

    Raises:
        UserError: the path does not exist, the hub cannot be reached, the weights are not
            safetensors, or the task has no embedded model.
    """
    if spec.model == "tiny":
        return _source(build_tiny(spec.task, task, on_progress), tiny=True, trust=False)
    path = locate(spec.model, spec.revision, spec.trust_remote_code)
    return _source(path, tiny=False, trust=spec.trust_remote_code)


def locate(name: str, revision: str = "main", trust_remote_code: bool = False) -> Path:
    """The folder of a model: ``name`` itself, or what a hub has under it.

    Raises:
        UserError: the path does not exist, or the hub cannot be reached.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*") if p.is_dir()], n=1)
        hint = f": did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(
            f"no model folder at {name}{hint} (expected a folder with config.json and *.safetensors, or a hub id)"
        )
    return _download(name, revision, trust_remote_code)


def _download(name: str, revision: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"] + (["*.py"] if trust_remote_code else [])
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no model {name!r} that you may read: check the name, or run `hf auth login`"
        ) from error
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model {name!r} is no folder here and the hub cannot be reached: name a folder, "
            f"or download it where there is a network (`hf download {name}`)"
        ) from error


def _source(folder: Path, tiny: bool, trust: bool) -> ModelSource:
    return ModelSource(folder, fingerprint(folder), tiny, trust)


def fingerprint(folder: Path) -> str:
    """Hash of weights, configuration, tokenizer and code of a model's folder.

    Raises:
        UserError: it holds no model.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if is_adapter(folder):
        raise UserError(
            f"{folder} holds adapters, and training begins from a whole model: merge them first "
            "(peft's `merge_and_unload`), or give the model that they were trained over"
        )
    if not weights or not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model: expected config.json and *.safetensors")
    # What is said of a model is no part of it.
    others = [
        p for kind in ("json", "jinja", "txt", "model", "py") for p in folder.glob(f"*.{kind}") if p.name != REPORT
    ]
    return hash_files([*weights, *others])


# --- the embedded models -------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightedLikelihood(Algorithm):
    """Maximum likelihood with a weight a token, carried in the place of rewards: fits starting policies."""

    needs = ()

    def loss(self, stats: Stats, batch: Batch) -> LossOutput:
        return LossOutput(-(stats.policy.logp * batch.rewards).sum())

    def count(self, batch: Batch) -> Tensor:
        return batch.rewards.sum()


class _Recorder(TextCodec):
    """A codec over bytes that remembers every text it was given: the corpus a tokenizer is trained on."""

    end_ids: tuple[int, ...] = (0,)
    tiny = True

    def __init__(self) -> None:
        self.texts: list[str] = []

    def prompt(
        self, messages: Sequence[Mapping[str, str]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        self.texts += [m["content"] for m in messages]
        return [b for m in messages for b in m["content"].encode()] or [0]

    def reply(
        self, messages: Sequence[Mapping[str, str]], ended: bool, calls: Sequence[ToolCall] | None = None
    ) -> list[int]:
        return self.prompt(messages)

    def answer(self, text: str) -> list[int]:
        self.texts.append(text)
        return [*text.encode(), 0]

    def text(self, token_ids: Sequence[int]) -> str:
        return bytes(b for b in token_ids if b).decode(errors="replace")


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
    recorder = _Recorder()
    if recipe.steps:
        _demonstrated(task, "start", recorder, max_length=1 << 20)
    key = {"version": TINY_VERSION, "task": name, "recipe": asdict(recipe), "corpus": stable_hash(recorder.texts)}
    if recipe.steps:
        key["precision"] = fast_precision()

    def build(folder: Path) -> None:
        torch.manual_seed(0)
        tokenizer = _word_tokenizer(recipe.words) if recipe.words else _train_tokenizer(recipe, recorder.texts)
        model = LlamaForCausalLM(_llama_config(recipe, len(tokenizer)))
        if recipe.steps:
            _fit(model, tokenizer, task, recipe, folder, on_progress)
        else:
            _scale_logits(model, recipe.logit_scale)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return cached_folder("tiny", key, build)


def _llama_config(recipe: TinyModel, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=16 * math.ceil(recipe.width * 8 / 3 / 16),
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=bool(recipe.steps),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


@torch.no_grad()
def _scale_logits(model: Any, scale: float) -> None:
    ids = torch.arange(model.config.vocab_size)[:, None]
    model.eval()
    model.lm_head.weight.mul_(scale / model(ids).logits.std())


def _word_tokenizer(words: Sequence[str]) -> Any:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = WordCodec.MARK
    return tokenizer


def _train_tokenizer(recipe: TinyModel, texts: Sequence[str]) -> Any:
    special = ["<|pad|>", "<|end|>", *(f"<|{role}|>" for role in ROLES)]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.add_tokens(list(recipe.phrases))
    tokenizer.chat_template = TINY_TEMPLATE
    return tokenizer


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
        train(
            policy,
            None,
            [[Row(t)] for t in weighted],
            WeightedLikelihood(),
            spec,
            Path(scratch),
            stop=StopFlag(),
            on_step=on_step,
        )
    model.to("cpu")
