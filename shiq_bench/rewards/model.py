"""A reward model: answers to dialogues, dialogues to ids by its own template, ids to scores, the cache of scores."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from shiq_bench.data.collation import LARGEST, Layout, Tree, grow, passes, tree_rows
from shiq_bench.models.chat import ChatCodec
from shiq_bench.models.source import Progress, fingerprint, first_line, locate
from shiq_bench.models.template import PLAIN_TEMPLATE
from shiq_bench.models.trees import states_at, takes_trees
from shiq_bench.records.cache import home
from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import stable_hash

#: Tokens of a batch, padding included.
TOKENS = 16384

#: Raise it when scores are computed otherwise, so that cached ones are not used.
CACHE_VERSION = 2


class Dialogues(ChatCodec):
    """Whole dialogues to ids, as a reward model reads them: by its own template, to the end of the last answer.

    A tokenizer without a template gets :data:`shiq_bench.models.template.PLAIN_TEMPLATE`, with CLS for BOS and
    SEP for EOS where an encoder has those instead.

    Attributes:
        limit: ids at most; what is longer loses the oldest.
    """

    def __init__(self, tokenizer: Any, limit: float) -> None:
        if tokenizer.chat_template is None:
            tokenizer.bos_token = tokenizer.bos_token or tokenizer.cls_token
            tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token
        super().__init__(tokenizer)
        # It may have been saved with the plain one.
        self.plain_template = tokenizer.chat_template == PLAIN_TEMPLATE
        self.limit = limit

    def whole(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], bool]:
        """Ids of a dialogue, one BOS at most, and whether it had to be cut from the left.

        A BOS survives the cut.

        Raises:
            UserError: it does not end with the assistant's answer, or the template refuses it.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise UserError("a dialogue to score must end with a message of the assistant")
        ids = self._encode(self._render(messages, generation=False))
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        if len(ids) <= self.limit:
            return ids, False
        head = ids[:1] if ids[0] == bos else []
        return head + ids[len(ids) - int(self.limit) + len(head) :], True


def load_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """Configuration of a model's folder, or UserError."""
    with _readable(folder, "configuration that can be read"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def load_dialogues(folder: Path, config: Any, limit: float = math.inf, trust_remote_code: bool = False) -> Dialogues:
    """Dialogues as the tokenizer of a model's folder reads them.

    Args:
        limit: ids at most, where the model's positions and its tokenizer allow more.

    Raises:
        UserError: it is missing or cannot be read.
    """
    with _readable(folder, "tokenizer that can be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    return Dialogues(tokenizer, min(limit, positions, tokenizer.model_max_length))


def load_classifier(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The sequence classifier of a folder, its head in float32; and what transformers says of its weights.

    Raises:
        UserError: it cannot be loaded.
    """
    with _readable(folder, "sequence classifier"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
    _widen_head(model)
    return model, info


@contextmanager
def _readable(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"{folder} holds no {what}: {first_line(error)}") from error


def _widen_head(model: Any) -> None:
    """Let a linear head compute in float32, whatever the body and autocast do: bfloat16 has 8 bits for a score."""
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear):
        narrow: Callable[[Tensor], Tensor] = head.float().forward

        def forward(hidden: Tensor) -> Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                return narrow(hidden.float())

        head.forward = forward  # type: ignore[assignment, method-assign]


def set_pad(model: Any, pad: int) -> None:
    """Tell a classifier its pad id: Llama-like ones read the score at the last id that is another."""
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = pad


def free_pad(sequences: Sequence[Sequence[int]], own: int | None, vocabulary: int) -> int:
    """An id to pad with that cannot move where a score is read: the model's own if it may, else the first that may.

    One that stands in no sequence; where every id does, one that ends none.
    """
    candidates = [i for i in (own, *range(vocabulary)) if i is not None and i < vocabulary]
    for taken in ({i for s in sequences for i in s}, {s[-1] for s in sequences}):
        for i in candidates:
            if i not in taken:
                return i
    raise ValueError(f"{len(sequences)} sequences end in every one of {vocabulary} ids")


def padded(sequences: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, ``[B, T]`` each, padded on the right."""
    rows = [torch.tensor(s) for s in sequences]
    lengths = torch.tensor([len(s) for s in sequences])
    ids = pad_sequence(rows, batch_first=True, padding_value=pad)
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def scores_of(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the model gives each row, in float32: its only label, or the ``score`` of its output. ``[B]``

    Raises:
        UserError: it has several labels and no ``score``.
    """
    out = model(**inputs)
    score = getattr(out, "score", None)
    if score is None:
        score = out.logits
        if score.shape[-1] != 1:
            raise UserError(f"the model gives {score.shape[-1]} labels and no score: expected one of them")
    return score.float().reshape(-1)


class RewardModel:
    """Scores of dialogues under a sequence classifier of transformers with one label.

    Higher is better, and the scale is the model's own. Weights are loaded when a score is asked for that is not in the
    cache.

    Args:
        name: a folder, or a hub id.
        precision: of the weights; a linear head computes in float32 even so.
        trust_remote_code: run the code that came with the model. Such a model may have several labels if its output
            has a ``score``.

    Attributes:
        fingerprint: hash of its weights, configuration, tokenizer and template.
        plain_template: it has no chat template, and reads :data:`shiq_bench.models.template.PLAIN_TEMPLATE`.
        encode: :meth:`Dialogues.whole`, as the model reads a dialogue.
        cut: dialogues scored so far that were longer than it can read.

    Raises:
        UserError: there is no such model, it is no reward model, or its weights are not safetensors.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str = "main",
        precision: Literal["fp32", "bf16"] = "fp32",
        trust_remote_code: bool = False,
    ) -> None:
        self.name = name
        self.folder = folder = locate(name, revision, trust_remote_code)
        self.precision = precision
        self.fingerprint = fingerprint(folder)
        self.cut = 0
        self._trust = trust_remote_code
        config = load_config(folder, trust_remote_code)
        own = trust_remote_code and "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
        if config.num_labels != 1 and not own:
            kind = ", ".join(config.architectures or ["model"])
            raise UserError(
                f"{name} is a {kind} with {config.num_labels} labels; expected a sequence classifier with one: "
                f"fit one with shiq-bench reward train --base {name}"
            )
        dialogues = load_dialogues(folder, config, trust_remote_code=trust_remote_code)
        self._tokenizer = dialogues.tokenizer
        self.plain_template = dialogues.plain_template
        self.encode = dialogues.whole

    def score(
        self, dialogues: Sequence[Sequence[Mapping[str, str]]], on_progress: Progress | None = None
    ) -> list[float]:
        """The score of each dialogue: messages that end with the assistant's answer.

        What was scored before is read from the cache under :func:`shiq_bench.records.cache.home`; new
        scores are put there batch by batch, so an interruption loses one batch.

        Raises:
            UserError: a dialogue cannot be rendered, the model cannot be loaded, a score is no
                finite number, or the cache cannot be used.
        """
        encoded = [self.encode(d) for d in dialogues]
        self.cut += sum(cut for _, cut in encoded)
        keys = [stable_hash(ids) for ids, _ in encoded]
        sequences = dict(zip(keys, (ids for ids, _ in encoded), strict=True))
        prompts = dict(zip(keys, (str([*map(dict, d[:-1])]) for d in dialogues), strict=True))
        with self._cache() as cache:
            known: dict[str, float] = {}
            for key in sequences:
                known |= cache.execute("SELECT key, score FROM scores WHERE key = ?", (key,))
            missing, done = sorted(sequences.keys() - known.keys()), 0
            for batch in self._batches([sequences[k] for k in missing], [prompts[k] for k in missing]):
                members = [missing[n] for tree in batch for n in tree.members]
                fresh = dict(zip(members, self._forward(batch, self._layout), strict=True))
                with cache:
                    cache.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", fresh.items())
                known |= fresh
                done += len(members)
                if on_progress is not None:
                    on_progress("scoring with the reward model", done, len(missing))
        return [known[key] for key in keys]

    def _batches(self, sequences: Sequence[Sequence[int]], prompts: Sequence[str]) -> Iterator[list[Tree]]:
        """What is run together: answers to a prompt share its tokens, where the model takes trees."""
        if sequences:  # else no weights are needed
            groups = range(len(sequences)) if self._layout == "padded" else prompts
            yield from passes(grow(sequences, groups, min(TOKENS, LARGEST)), TOKENS)

    @contextmanager
    def _cache(self) -> Iterator[sqlite3.Connection]:
        key = {
            "version": CACHE_VERSION,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "own code": self._trust,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        }
        path = home() / "rewards" / f"{stable_hash(key)[:24]}.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=60)) as connection:
                with connection:
                    connection.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL NOT NULL)")
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot use the cache of scores {path}: {error}; delete it, or set SHIQ_BENCH_HOME to another folder"
            ) from error

    @cached_property
    def _model(self) -> Any:
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model, info = load_classifier(self.folder, dtype=dtype, trust_remote_code=self._trust)
        if info["missing_keys"]:
            raise UserError(
                f"{self.folder} lacks weights of a reward model ({', '.join(sorted(info['missing_keys'])[:3])}): "
                f"fit one with shiq-bench reward train --base {self.name}"
            )
        model.config.use_cache = False
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _layout(self) -> Layout:
        """Trees where a probe's last tokens then get the scores that the model itself gives it."""

        def read(probes: Sequence[Sequence[int]], layout: Layout) -> Tensor:
            groups = range(len(probes)) if layout == "padded" else [0] * len(probes)
            return torch.tensor(self._forward(grow(probes, groups), layout))

        return "tree" if takes_trees(self._model, self._vocabulary, read) else "padded"

    @property
    def _vocabulary(self) -> int:
        size: int = self._model.get_input_embeddings().num_embeddings
        return size

    @torch.inference_mode()
    def _forward(self, trees: Sequence[Tree], layout: Layout) -> list[float]:
        """Scores of the trees' members, one behind the other."""
        model = self._model
        if layout == "padded":
            sequences = [tree.ids for tree in trees]
            pad = free_pad(sequences, self._tokenizer.pad_token_id, self._vocabulary)
            set_pad(model, pad)
            scores = scores_of(model, {k: v.to(model.device) for k, v in padded(sequences, pad).items()})
        else:
            inputs, nodes = tree_rows(trees, layout)
            inputs = {k: v.to(model.device) for k, v in inputs.items()}
            last = torch.tensor([nodes[n][-1] for tree in trees for n in tree.members], device=model.device)
            (states,) = states_at(last, inputs, model, self._body)
            scores = model.score(states).float().reshape(-1)
        if not torch.isfinite(scores).all():
            raise UserError(f"{self.name} gives a score that is no finite number")
        return scores.tolist()

    def _body(self, **inputs: Tensor) -> tuple[Tensor]:
        """Final hidden states, below the head. ``[B, L, D]``"""
        return (self._model.base_model(**inputs, use_cache=False).last_hidden_state,)


# --- answers to be scored, as lines of JSON ---

Dialogue = list[dict[str, str]]


def read_answers(
    lines: Iterable[str], check: Callable[[Dialogue], object]
) -> tuple[list[dict[str, Any]], list[Dialogue], list[str]]:
    """Each line's own fields and its dialogue, and what is wrong with the lines left out, by number.

    Args:
        lines: empty ones are passed over.
        check: raises a UserError for a dialogue that cannot be scored.
    """
    rows: list[dict[str, Any]] = []
    dialogues: list[Dialogue] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row, dialogue = _answer(line)
            check(dialogue)
        except UserError as error:
            problems.append(f"line {number}: {error}")
        else:
            rows.append(row)
            dialogues.append(dialogue)
    return rows, dialogues, problems


def _answer(line: str) -> tuple[dict[str, Any], Dialogue]:
    """A line's own fields, and the dialogue in them: ``messages``, or ``prompt`` and ``answer``."""
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError("holds text that is no Unicode") from error
    except (ValueError, RecursionError) as error:
        raise UserError("is no JSON") from error
    if not isinstance(row, dict):
        raise UserError("is no JSON object")
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise UserError('expected {"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "answer": ...}')
    return row, [{"role": m["role"], "content": m["content"]} for m in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))
