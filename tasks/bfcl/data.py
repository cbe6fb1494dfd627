"""The official data files, read at run time: scenarios, ground truth and function documents."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.bfcl.parse import Call, parse_gold

#: What can be run today; the other multi-turn categories have the same shape and share the split.
CATEGORIES = ("multi_turn_base",)

#: Shares of the starting policy, of training and of the held-out part, in percent.
SPLITS = {"start": 40, "rl": 40, "heldout": 20}

_TYPES = {"string": "str", "integer": "int", "boolean": "bool", "array": "list"}


@dataclass(frozen=True)
class Entry:
    """One scenario.

    Attributes:
        id: official id, ``<category>_<number>``.
        turns: messages that open each turn, as role and content.
        classes: the simulated services involved, in official order.
        config: their initial state.
        gold: ground-truth call strings of each turn, as the official checker takes them. One scenario has more
            of these than turns.
        functions: documents of every function offered, in official order.
    """

    id: str
    turns: tuple[tuple[Mapping[str, str], ...], ...]
    classes: tuple[str, ...]
    config: Mapping[str, Any]
    gold: tuple[tuple[str, ...], ...]
    functions: tuple[Mapping[str, Any], ...]

    @property
    def names(self) -> frozenset[str]:
        """Names of the functions offered."""
        return frozenset(function["name"] for function in self.functions)

    @property
    def request(self) -> dict[str, Any]:
        """What the official executor and checker read of an entry, as JSON data."""
        return {
            "id": self.id,
            "initial_config": self.config,
            "involved_classes": self.classes,
            "ground_truth": self.gold,
        }

    def gold_calls(self, turn: int) -> list[Call]:
        """Ground truth of a turn with every argument named; empty beyond the last one."""
        parameters = {f["name"]: list(f["parameters"]["properties"]) for f in self.functions}
        return [parse_gold(text, parameters) for text in self.gold[turn]] if turn < len(self.gold) else []


def constants(root: Path, name: str) -> ModuleType:
    """One file of ``bfcl_eval.constants``, loaded alone: importing the package's own way pulls in vendors' SDKs."""
    path = root / "bfcl_eval" / "constants" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"_bfcl_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Function documents by class, in file order."""
    files = constants(root, "category_mapping").MULTI_TURN_FUNC_DOC_FILE_MAPPING
    folder = root / "bfcl_eval" / "data" / "multi_turn_func_doc"
    return {name: _lines(folder / file) for name, file in files.items()}


def entries(root: Path, category: str) -> dict[str, Entry]:
    """Every scenario of a category by id, in official order."""
    mapping = constants(root, "category_mapping")
    folder, file = root / "bfcl_eval" / "data", mapping.TEST_FILE_MAPPING[category]
    docs = documents(root)
    gold = {row["id"]: row["ground_truth"] for row in _lines(folder / "possible_answer" / file)}
    return {
        row["id"]: Entry(
            id=row["id"],
            turns=tuple(tuple(turn) for turn in row["question"]),
            classes=tuple(row["involved_classes"]),
            config=row["initial_config"],
            gold=tuple(tuple(turn) for turn in gold[row["id"]]),
            functions=tuple(doc for name in row["involved_classes"] for doc in docs[name]),
        )
        for row in _lines(folder / file)
    }


def signature(document: Mapping[str, Any]) -> str:
    """``name(arg: type, opt: type=?)``: all that the compact style says of a function."""
    properties, required = document["parameters"]["properties"], document["parameters"].get("required", [])
    arguments = [
        f"{name}: {_TYPES.get(about['type'], about['type'])}{'' if name in required else '=?'}"
        for name, about in properties.items()
    ]
    return f"{document['name']}({', '.join(arguments)})"


def split_ids(ids: Sequence[str], split: str) -> list[str]:
    """Ids of one split, by number.

    Scenarios are ordered by a hash of their number alone, so that a scenario falls into the same part in every
    category that retells it, and the parts have exact sizes.

    Raises:
        KeyError: no such split.
    """
    ranked = sorted(ids, key=lambda i: hashlib.sha256(f"shiq-bench bfcl multi_turn {_number(i)}".encode()).hexdigest())
    names = list(SPLITS)
    before = sum(SPLITS[name] for name in names[: names.index(split)]) if split in SPLITS else 0
    first, last = (len(ids) * share // 100 for share in (before, before + SPLITS[split]))
    return sorted(ranked[first:last], key=_number)


def _number(entry_id: str) -> int:
    return int(entry_id.rsplit("_", 1)[1])


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
