"""Offline data as a folder to keep and share: written by ``shiq-bench data build``, trained from by ``run``.

Trajectories are Parquet, a row a trajectory, read back exactly as it was. Nothing here imports torch or
transformers, so that looking at data is quick.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shiq_bench.api.task import Task
from shiq_bench.api.trajectory import Trajectory
from shiq_bench.data import schema
from shiq_bench.data.card import card
from shiq_bench.records.errors import UserError
from shiq_bench.records.files import write_atomic
from shiq_bench.records.hashing import stable_hash

#: Columns that are a trajectory's own.
FIELDS = tuple(f.name for f in fields(Trajectory))


def arrow_schema(names: Sequence[str] = tuple(schema.COLUMNS)) -> Any:
    """Arrow's types of some of :data:`~shiq_bench.data.schema.COLUMNS`."""
    import pyarrow as pa

    plain = {"string": pa.string(), "bool": pa.bool_(), "int32": pa.int32(), "double": pa.float64()}
    kinds = {**plain, **{f"list<{name}>": pa.list_(kind) for name, kind in plain.items()}}
    return pa.schema([(name, kinds[schema.COLUMNS[name][0]]) for name in names])


def to_parquet(trajectories: Sequence[Trajectory], more: Mapping[str, Sequence[Any]]) -> bytes:
    """The file: :data:`FIELDS`, and ``more`` columns for people to read. The same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = arrow_schema([name for name in schema.COLUMNS if name in FIELDS or name in more])
    columns = [pa.array(more.get(c.name) or [getattr(t, c.name) for t in trajectories], c.type) for c in kinds]
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=kinds), file, compression="zstd", row_group_size=1024)
    return file.getvalue()


def from_rows(columns: Mapping[str, Sequence[Any]], n: int) -> Trajectory:
    """Row ``n`` of some columns.

    Raises:
        ValueError: it is no trajectory.
    """
    values = {name: columns[name][n] for name in FIELDS}
    row: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Trajectory(**row)


def write_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write them whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomic(path, to_parquet(trajectories, {}))


def read_trajectories(path: Path) -> list[Trajectory]:
    """Inverse of :func:`write_trajectories`.

    Raises:
        UserError: the file is cut, or of another kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()
        columns = {name: table.column(name).to_pylist() for name in FIELDS}
        return [from_rows(columns, n) for n in range(len(table))]
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{path} is no trajectory file: {' '.join(str(error).split())}") from error


def check_free(out: Path) -> None:
    """Find out before anything is drawn whether a dataset can be put at ``out``.

    Raises:
        UserError: something is there already, the folder above cannot be written, or it can have no such name.
    """
    try:
        if out.is_symlink() or out.exists():
            if not out.is_dir() or out.is_symlink():
                raise UserError(f"{out} is no folder; expected one to be made: give another --out")
            if any(out.iterdir()):
                raise UserError(f"{out} is not empty, and nothing is overwritten: give another --out, or move it away")
        above = next(p for p in out.absolute().parents if p.exists())
    except OSError as error:
        raise UserError(f"cannot make {out}: {error.strerror or error}: give another --out") from error
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot make {out}: {above} cannot be written: give another --out")


def tokenizer_hash(tokenizer: Any) -> str:
    """What the ids and the turns of a dialogue mean: vocabulary, added tokens included, and chat template."""
    return stable_hash({"vocabulary": tokenizer.get_vocab(), "template": tokenizer.chat_template})


def write_dataset(
    out: Path, trajectories: Sequence[Trajectory], tokenizer: Any, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the folder whole or not at all; the same data give the same bytes.

    Args:
        out: absent or empty.
        trajectories: in the order that training groups them by.
        tokenizer: of transformers; its files come along.
        origin: where they are from: settings and versions, ``task``, ``licence``, ``notes`` and the ``command``.

    Returns:
        The manifest: ``origin`` with hashes and counts.

    Raises:
        UserError: ``out`` is taken, or cannot be written.
    """
    check_free(out)
    temporary = out.absolute().parent / f".shiq-bench.{os.getpid()}"  # shorter than a name that is just not too long
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        tokenizer.save_pretrained(temporary / schema.TOKENIZER)
        decoder = decoder_of(temporary)
        more: dict[str, list[Any]] = {
            "text": [decoder.decode(list(t.token_ids), skip_special_tokens=False) for t in trajectories],
            "total_reward": [t.total_reward for t in trajectories],
        }
        data = to_parquet(trajectories, more)
        manifest = {
            **origin,
            "kind": schema.KIND,
            "schema_version": schema.DATASET_VERSION,
            "sha256": hashlib.sha256(data).hexdigest(),
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "counts": schema.describe(trajectories),
            "packages": {**origin.get("packages", {}), "pyarrow": version("pyarrow")},
        }
        (temporary / schema.DATA).write_bytes(data)
        (temporary / schema.MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n")
        (temporary / schema.CARD).write_text(card(manifest, [(t.source, t.total_reward) for t in trajectories]))
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}: give another --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a dataset says of itself; the data are not looked at.

    Raises:
        UserError: there is no dataset, or one of a newer schema.
    """
    path = folder / schema.MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "holds no dataset" if folder.is_dir() else "is no folder"
        expected = f"expected one made by `shiq-bench data build --task TASK --out {folder}`"
        raise UserError(f"{folder} {what}: {expected}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != schema.KIND:
        raise UserError(f"{path} is no manifest of a dataset: expected the kind {schema.KIND!r}")
    version = manifest.get("schema_version")
    if not isinstance(version, int) or version > schema.DATASET_VERSION:
        raise UserError(f"{path}: schema {version} is newer than {schema.DATASET_VERSION}: upgrade shiq-bench")
    if wrong := [name for name, kind in schema.REQUIRED.items() if not isinstance(manifest.get(name), kind)]:
        raise UserError(f"{path} does not say {', '.join(wrong)}: build the dataset again")
    return {**dict.fromkeys(schema.ORIGIN), **manifest}


def check_dataset(folder: Path, task: Task) -> None:
    """What can be told before a model is there: a dataset that is whole, of nothing but the task's training prompts.

    Raises:
        UserError: it is damaged, or holds other prompts.
    """
    rows, allowed = rows_of(folder, read_manifest(folder)), set(task.prompts("rl"))
    for n, prompt_id in enumerate(rows.column("prompt_id").to_pylist()):
        _check_prompt(folder, n, prompt_id, allowed, task)


def _check_prompt(folder: Path, n: int, prompt_id: str, allowed: Container[str], task: Task) -> None:
    if prompt_id not in allowed:
        where = "held out for evaluation" if prompt_id in task.prompts("heldout") else "no prompt of this task"
        raise UserError(
            f"row {n} of {folder / schema.DATA}: prompt {prompt_id!r} is {where}; "
            "expected prompts of the split rl alone: build the dataset with this task's options"
        )


def rows_of(folder: Path, manifest: Mapping[str, Any]) -> Any:
    """The rows, undamaged and of the right columns and types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / schema.DATA
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}: build the dataset again") from error
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise UserError(f"{path} is damaged: it is not the file that {schema.MANIFEST} was written for; build it again")
    try:
        found = pq.ParquetFile(pa.BufferReader(data)).read()
    except pa.ArrowException as error:
        raise UserError(f"{path} is no parquet file: {' '.join(str(error).split())}") from error
    for field in arrow_schema():
        kind = schema.COLUMNS[field.name][0]
        if field.name not in found.column_names:
            raise UserError(f"{path} has no column {field.name!r}; expected one of type {kind}")
        column = found.column(field.name)
        if column.type != field.type:
            raise UserError(f"{path}: column {field.name!r} is of type {column.type}; expected {kind}")
        holes = column.null_count if field.name not in ("sampler_logp", "rank") else 0
        if pa.types.is_list(column.type):
            holes += sum(chunk.flatten().null_count for chunk in column.chunks)
        if holes:
            raise UserError(f"{path}: column {field.name!r} has {holes} nulls; expected none")
    if not len(found):
        raise UserError(f"{path} holds no trajectories: build the dataset again")
    return found


def trajectories_of(rows: Any, numbers: Sequence[int]) -> Iterator[Trajectory]:
    """Rows as trajectories; ``numbers`` are theirs in the file.

    Raises:
        UserError: one cannot be; its row is named.
    """
    columns = {name: rows.column(name).to_pylist() for name in (*FIELDS, "total_reward")}
    for n, number in enumerate(numbers):
        try:
            t = from_rows(columns, n)
            if not any(t.action_mask):
                raise ValueError(f"trajectory of {t.prompt_id}: it has no action")
            numbers_of = (*t.rewards, t.weight, *(t.sampler_logp or ()), t.preference_score)
            if not all(map(math.isfinite, numbers_of)) or t.weight <= 0:
                raise ValueError(f"trajectory of {t.prompt_id}: a number is not finite, or its weight not positive")
            if not math.isclose(t.total_reward, columns["total_reward"][n], rel_tol=1e-9, abs_tol=1e-9):
                raise ValueError(f"trajectory of {t.prompt_id}: total_reward is not the sum of rewards")
        except ValueError as error:
            raise UserError(f"row {number} of {schema.DATA}: {error}") from error
        yield t


def read_dataset(folder: Path, task: Task, tokenizer: Any, max_length: int, data_hash: str = "") -> list[Trajectory]:
    """Trajectories exactly as they were written, for a run that may learn from them.

    Args:
        task: whose training prompts they must answer.
        tokenizer: of the model to be trained; ids must mean to it what they meant to the sampler.
        max_length: of a dialogue, in tokens.
        data_hash: the dataset that is expected; empty is any.

    Raises:
        UserError: damaged, of another tokenizer, too long, invalid, or not of the split ``rl``.
    """
    manifest = read_manifest(folder)
    if data_hash and manifest["sha256"][: schema.HASH] != data_hash:
        raise UserError(f"{folder} has changed since this run was asked for: type the command again")
    if manifest["tokenizer_hash"] != tokenizer_hash(tokenizer):
        raise UserError(
            f"{folder} was made with the tokenizer of {manifest['model']}, and this model's is another, so ids would "
            f"mean other words: `shiq-bench data build --task {manifest['task']} --model MODEL --out FOLDER` "
            "with the model to be trained"
        )
    allowed, vocabulary = set(task.prompts("rl")), len(tokenizer)
    out = []
    rows = rows_of(folder, manifest)
    for n, t in enumerate(trajectories_of(rows, range(len(rows)))):
        _check_prompt(folder, n, t.prompt_id, allowed, task)
        if len(t.token_ids) > max_length:
            raise UserError(
                f"row {n} of {folder / schema.DATA} has {len(t.token_ids)} tokens, and max_length is {max_length}: "
                f"--set max_length={manifest['max_length'] or len(t.token_ids)}"
            )
        if not (min(t.token_ids) >= 0 and max(t.token_ids) < vocabulary):
            raise UserError(
                f"row {n} of {folder / schema.DATA} has ids outside the vocabulary of {vocabulary}: build it again"
            )
        out.append(t)
    return out


def decoder_of(folder: Path) -> schema.Decoder:
    """The tokenizer of a dataset, without importing transformers where its own file is enough."""
    path = folder / schema.TOKENIZER / "tokenizer.json"
    try:
        if path.is_file():
            from tokenizers import Tokenizer

            return Tokenizer.from_file(str(path))
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder / schema.TOKENIZER)
    except Exception as error:  # the library raises a bare Exception for a broken file
        raise UserError(f"{folder / schema.TOKENIZER} holds no tokenizer: {' '.join(str(error).split())}") from error
