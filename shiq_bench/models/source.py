"""Starting policies on disk: a folder, or what a hub has under a name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from shiq_bench.api.task import Codec
from shiq_bench.models.chat import ChatCodec
from shiq_bench.models.lora import is_adapter
from shiq_bench.models.tiny import WordCodec
from shiq_bench.records.errors import UserError
from shiq_bench.records.provenance import hash_files

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
            raise UserError(f"{self.folder} holds no tokenizer: {first_line(error)}") from error

    def codec(self) -> Codec:
        """Messages to ids and back; a model of fixed words has no chat to speak of."""
        tokenizer = self.tokenizer()
        of_words = tokenizer.chat_template == WordCodec.MARK
        return WordCodec(tokenizer) if of_words else ChatCodec(tokenizer, tiny=self.tiny)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


def quiet() -> None:
    """Neither bars nor warnings of transformers between ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
