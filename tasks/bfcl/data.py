"""The official data files, read at run time: entries, ground truth and function documents."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from shiq_bench import UserError, suggest
from shiq_bench.tasks.bfcl.parse import Call, parse_gold

NON_LIVE = ("simple", "irrelevance", "parallel", "multiple", "parallel_multiple", "java", "javascript")
LIVE = (
    "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance",
)  # fmt: skip
MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
OTHER_LANGUAGES = ("java", "javascript")

#: Every category, in official order.
CATEGORIES = (*NON_LIVE, *LIVE, *MULTI_TURN)

#: Official scores over several categories.
SCORES = ("non_live", "live", "multi_turn", "overall")

#: Official names for several categories at once.
GROUPS = {
    "all": CATEGORIES,
    "non_live": NON_LIVE,
    "live": LIVE,
    "multi_turn": MULTI_TURN,
    "single_turn": (*NON_LIVE, *LIVE),
    "python": tuple(name for name in (*NON_LIVE, *LIVE) if name not in OTHER_LANGUAGES),
    "non_python": OTHER_LANGUAGES,
}

#: Shares of the starting policy, of training and of the held-out part, in percent.
SPLITS = {"start": 40, "rl": 40, "heldout": 20}

_TYPES = {"string": "str", "integer": "int", "boolean": "bool", "array": "list"}


@dataclass(frozen=True)
class Entry:
    """One entry of the benchmark.

    Attributes:
        id: official id, ``<category>_<number>``.
        turns: messages that open each turn, as role and content; none in a turn that offers held-out functions.
        functions: documents of every function of the entry, in official order, held-out ones included.
        possible: single-turn: for each call of the ground truth, function -> argument -> accepted values.
        gold: multi-turn: ground-truth call strings of each turn, as the official checker takes them. One entry has
            more of these than turns.
        classes: multi-turn: the simulated services involved, in official order.
        config: multi-turn: their initial state.
        held_out: multi-turn: turn -> functions that are offered from then on only.
    """

    id: str
    category: str
    turns: tuple[tuple[Mapping[str, str], ...], ...]
    functions: tuple[Mapping[str, Any], ...]
    possible: tuple[Mapping[str, Mapping[str, Sequence[Any]]], ...] = ()
    gold: tuple[tuple[str, ...], ...] = ()
    classes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    held_out: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def multi_turn(self) -> bool:
        """Whether it is played against simulated services."""
        return self.category.startswith("multi_turn")

    @property
    def names(self) -> frozenset[str]:
        """Names of the functions; the official executor runs a held-out one at any time."""
        return frozenset(function["name"] for function in self.functions)

    @property
    def request(self) -> dict[str, Any]:
        """What official code reads of an entry, as JSON data."""
        about = {"id": self.id, "category": self.category}
        if not self.multi_turn:
            return about | {"function": self.functions, "ground_truth": self.possible}
        return about | {"initial_config": self.config, "involved_classes": self.classes, "ground_truth": self.gold}

    def offered(self, turn: int) -> list[Mapping[str, Any]]:
        """Documents shown when a turn opens: at the first all but held-out ones, later those held out until then."""
        if turn:
            return [f for f in self.functions if f["name"] in self.held_out.get(turn, ())]
        later = {name for names in self.held_out.values() for name in names}
        return [f for f in self.functions if f["name"] not in later]

    def gold_calls(self, turn: int) -> list[Call]:
        """Multi-turn ground truth of a turn with every argument named; empty beyond the last one."""
        parameters = {f["name"]: list(f["parameters"]["properties"]) for f in self.functions}
        return [parse_gold(text, parameters) for text in self.gold[turn]] if turn < len(self.gold) else []


@functools.lru_cache(maxsize=16)
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


def expand(names: str) -> list[str]:
    """Categories meant by names and groups joined by commas, in official order.

    Raises:
        UserError: an unknown name; the nearest is suggested.
    """
    wanted: set[str] = set()
    for name in (part.strip() for part in names.split(",")):
        if name not in GROUPS and name not in CATEGORIES:
            raise UserError(f"bfcl has no category {name!r}{suggest(name, [*GROUPS, *CATEGORIES])}")
        wanted |= set(GROUPS.get(name, (name,)))
    return [name for name in CATEGORIES if name in wanted]


def entries(root: Path, names: Sequence[str]) -> dict[str, Entry]:
    """Every entry of some categories by id, in official order."""
    files = constants(root, "category_mapping").TEST_FILE_MAPPING
    docs = documents(root)
    return {entry.id: entry for name in names for entry in _category(root, name, files[name], docs)}


def _category(root: Path, category: str, file: str, docs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Entry]:
    folder = root / "bfcl_eval" / "data"
    answers = folder / "possible_answer" / file  # relevance has none
    gold = {row["id"]: row["ground_truth"] for row in _lines(answers)} if answers.exists() else {}
    out = []
    for row in _lines(folder / file):
        about = row["id"], category, tuple(map(tuple, row["question"]))
        if "involved_classes" not in row:
            out.append(Entry(*about, tuple(row["function"]), possible=tuple(gold.get(row["id"], ()))))
            continue
        entry = Entry(
            *about,
            tuple(doc for name in row["involved_classes"] for doc in docs[name]),
            gold=tuple(map(tuple, gold[row["id"]])),
            classes=tuple(row["involved_classes"]),
            config=row["initial_config"],
            held_out={int(turn): tuple(held) for turn, held in row.get("missed_function", {}).items()},
        )
        out.append(entry)
    return out


def signature(document: Mapping[str, Any]) -> str:
    """``name(arg: type, opt: type=?)``: all that the compact style says of a function."""
    properties, required = document["parameters"]["properties"], document["parameters"].get("required", [])
    arguments = [
        f"{name}: {_TYPES.get(about['type'], about['type'])}{'' if name in required else '=?'}"
        for name, about in properties.items()
    ]
    return f"{document['name']}({', '.join(arguments)})"


def split_ids(entries: Mapping[str, Entry], split: str) -> list[str]:
    """Ids of one split, in official order; ``all`` is everything.

    Within a category entries are ordered by a hash, multi-turn ones by a hash of their number alone, so that a
    scenario falls into the same part in every category that retells it. The parts have exact sizes.

    Raises:
        UserError: no such split.
    """
    if split == "all":
        return list(entries)
    if split not in SPLITS:
        raise UserError(f"bfcl has no split {split!r}{suggest(split, [*SPLITS, 'all'])}")
    names = list(SPLITS)
    before = sum(SPLITS[name] for name in names[: names.index(split)])
    kept: set[str] = set()
    for category in dict.fromkeys(entry.category for entry in entries.values()):
        ranked = sorted((entry for entry in entries.values() if entry.category == category), key=_rank)
        first, last = (len(ranked) * share // 100 for share in (before, before + SPLITS[split]))
        kept |= {entry.id for entry in ranked[first:last]}
    return [entry_id for entry_id in entries if entry_id in kept]


def _rank(entry: Entry) -> str:
    scenario = f"multi_turn {entry.id.rsplit('_', 1)[1]}" if entry.multi_turn else entry.id
    return hashlib.sha256(f"shiq-bench bfcl {scenario}".encode()).hexdigest()


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
