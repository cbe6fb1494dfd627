"""Where preference data are: a file, a folder, or a name on the hub; and their rows, whatever they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shiq_bench import UserError
from shiq_bench.records.hashing import stable_hash

#: Datasets of the hub by name: the split that is read, and the revision it is pinned to.
HUB: Mapping[str, tuple[str, str]] = {
    "HuggingFaceH4/ultrafeedback_binarized": ("train_prefs", "3949bf5f8c17c394422ccfab0c31ea9c20bdeb85"),
    "openbmb/UltraFeedback": ("train", "40b436560ca83a8dba36114c22ab3c66e43f6d5e"),
    # No revision of it is known here: it is read as it stands, and what was read is part of a run's judges_hash.
    "trl-lib/ultrafeedback_binarized": ("train", "main"),
}

#: Splits of pairs to train on, the first there is.
_SPLITS = ("train_prefs", "train")

#: Files of a dataset folder that describe it, and are none of its data.
_ABOUT = ("dataset_info.json", "state.json", "dataset_dict.json", "manifest.json")


def is_hub(name: str) -> bool:
    """Whether a dataset is meant by its name on the hub: ``owner/name``, and nothing of that name is here."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def fingerprint(name: str, revision: str) -> str:
    """What identifies a dataset, without reading it as one: a hash of its files, or its pinned name on the hub.

    Raises:
        UserError: there is no such file or folder.
    """
    if is_hub(name):
        return stable_hash(["hub", name, revision or pinned(name)])[:16]
    digest = hashlib.sha256()
    for path in _files(_path(name)):
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:16]


def pinned(name: str) -> str:
    """The revision a hub dataset is read at, unless another is asked for."""
    return HUB.get(name, ("", "main"))[1]


def _files(path: Path) -> list[Path]:
    """The data files of a dataset: itself, or all in a folder, in a fixed order.

    Raises:
        UserError: there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no dataset at {path}: expected a .jsonl or .parquet file, a dataset folder, or a hub name")
    found = [p for kind in ("jsonl", "json", "parquet", "arrow") for p in path.rglob(f"*.{kind}")]
    found = sorted(p for p in found if p.name not in _ABOUT)
    if not found:
        raise UserError(f"{path} holds no .jsonl, .parquet or .arrow file: expected a dataset folder")
    for split in _SPLITS:  # a folder of the hub, of which one split is read by name as well
        if chosen := [p for p in found if p.stem.startswith(split)]:
            return chosen
    return found


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~somebody who is not there
        raise UserError(f"no dataset at {name}: {error}") from error


def _local(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.is_dir() and any((path / n).is_file() for n in ("dataset_info.json", "dataset_dict.json")):
        yield from _saved(path)
        return
    for file in _files(path):
        yield from _parquet(file) if file.suffix == ".parquet" else _lines(file)


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path}: line {number} is no JSON ({error}): expected one object a line"
                    ) from error
                if not isinstance(row, dict):
                    raise UserError(f"{path}: line {number} is no JSON object: expected one object a line")
                yield row
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text: expected JSON lines, Parquet or a dataset folder") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no parquet file: {' '.join(str(error).split())}") from error


def _saved(path: Path) -> Iterator[Mapping[str, Any]]:
    """A folder of ``Dataset.save_to_disk``; of a dictionary of splits, the one with pairs to train on."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow, json and datasets each raise their own
        raise UserError(f"{path} is no dataset folder that datasets can read: {_first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        found = found[next((n for n in _SPLITS if n in found), next(iter(found)))]
    yield from found


def _hub(name: str, revision: str) -> Iterator[Mapping[str, Any]]:
    import datasets
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    split = HUB.get(name, ("train", ""))[0]
    try:
        yield from datasets.load_dataset(name, split=split, revision=revision or pinned(name))
    except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
        if isinstance(error.__cause__ or error.__context__, ConnectionError | OSError):
            raise _unreachable(name) from error
        raise UserError(
            f"the hub has no dataset {name!r} that you may read, at revision {revision or pinned(name)}: "
            f"known by name here are {', '.join(HUB)}"
        ) from error
    except (ConnectionError, OSError, RuntimeError) as error:
        raise _unreachable(name) from error
    except ValueError as error:  # no such split
        raise UserError(f"dataset {name!r} cannot be read: {_first_line(error)}") from error


def _unreachable(name: str) -> UserError:
    return UserError(
        f"dataset {name!r} is no file here and the hub cannot be reached: give --data a file, "
        f"or download it where there is a network (`hf download --repo-type dataset {name}`)"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
