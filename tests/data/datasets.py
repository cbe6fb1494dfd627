"""Datasets of the token tree, and dialogues made by hand with a tokenizer of bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data import schema
from shiq_bench.data.schema import DATA, MANIFEST
from shiq_bench.records.errors import UserError
from shiq_bench.records.record import RunRecord
from shiq_bench.runs.build_dataset import build_dataset
from shiq_bench.runs.execute import execute
from shiq_bench.runs.settings import resolve, resolve_data

SHARED: dict[str, Any] = {"model": "tiny", "engine": "hf", "contexts": 3, "max_tokens": 3}
DRAWN = {**SHARED, "samples": 2, "data_seed": 5}
LEARNED = {**SHARED, "steps": 4, "eval_samples": 3}


def build(out: Path, **settings: Any) -> dict[str, Any]:
    spec, task = resolve_data("tree", {**DRAWN, **settings}, schema.BUILD)
    return build_dataset(spec, task, out, lambda *_: None)


def run(results: Path, algo: str = "shiq", **settings: Any) -> RunRecord:
    resolved = resolve(algo, "tree", {**LEARNED, "results": str(results), **settings})
    return execute(resolved, resume=False, fresh=False, report=lambda *_: None)


def forge(folder: Path, table: pa.Table) -> None:
    """Other rows, with a manifest that vouches for them."""
    pq.write_table(table, folder / DATA)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["sha256"] = hashlib.sha256((folder / DATA).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def altered(folder: Path, name: str, values: list[Any], kind: Any = None) -> pa.Table:
    table = pq.read_table(folder / DATA)
    n = table.column_names.index(name)
    return table.set_column(n, name, pa.array(values, kind or table.column(n).type))


def bytes_tokenizer() -> Any:
    """One token a byte, so that every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


BYTES = bytes_tokenizer()
MADE: dict[str, Any] = {
    "task": "made", "task_options": {}, "split": "rl", "model": "made", "samples": 1, "gold": False, "data_seed": 0,
    "weights_hash": "w" * 64, "max_length": 4096, "max_tokens": 64, "command": "shiq-bench data build --out made",
}  # fmt: skip


def said(*parts: tuple[str, bool], rewards: dict[int, float] | None = None, **more: Any) -> Trajectory:
    """A dialogue of texts, each the policy's or not; rewards by position."""
    ids: list[int] = []
    mask: list[bool] = []
    for text, action in parts:
        found = BYTES(text)["input_ids"]
        ids += found
        mask += [action] * len(found)
    paid = tuple((rewards or {}).get(i, 0.0) for i in range(len(ids)))
    return Trajectory("p", tuple(ids), tuple(mask), paid, **more)


def refused(tmp_path: Path, message: str, algo: str = "shiq", **settings: Any) -> None:
    """A run with some settings is refused by one line that matches, before anything is written."""
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path / "results", algo, **settings)
    assert "\n" not in str(caught.value) and not (tmp_path / "results").exists()
