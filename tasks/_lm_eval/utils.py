"""The documents of the tasks beside this file, as lm-eval's ``custom_dataset`` wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from datasets import Dataset, DatasetDict

from shiq_bench import UserError
from shiq_bench.api.registry import tasks
from shiq_bench.records.hashing import stable_hash
from shiq_bench.tasks.bfcl.data import entries, split_ids
from shiq_bench.tasks.bfcl.fetch import locate

#: BFCL's single-turn Python categories whose entries offer several functions and call for one.
CATEGORIES = ("multiple", "live_multiple")


def preferences(
    pairs: Sequence[Mapping[str, Any]] | None = None, data: str = "", task: str = "ultrafeedback", **_: Any
) -> DatasetDict:
    """Two answers a document; which comes first is drawn by hash, so that a tie is worth half.

    Pairs with an empty answer are left out: it has no likelihood.

    Args:
        pairs: fields of :class:`~shiq_bench.api.trajectory.Preference` each; without them ``data`` is read.
        data: file that the task takes as its option ``dataset``; its held-out pairs are used.
        task: the task that reads it.
        _: whatever else lm-eval hands to every loader.

    Raises:
        UserError: there are no pairs, or the task cannot read the file.
    """
    if pairs is None:
        if not data:
            raise UserError('shiq_preference has no pairs: give --metadata \'{"data": "FILE"}\'')
        kind: Any = tasks.get(task)
        try:
            pairs = [asdict(p) for p in kind(dataset=data).preferences("heldout")]
        except TypeError as error:
            raise UserError(f"task {task} takes no option 'dataset': name another in --metadata") from error
    documents = []
    for pair in pairs:
        answers = [pair["chosen"], pair["rejected"]]
        if all(answer.strip() for answer in answers):
            gold = int(stable_hash([pair["prompt_id"], *answers]), 16) % 2
            documents.append({"prompt": _as_text(pair["messages"]), "choices": answers[:: 1 - 2 * gold], "gold": gold})
    if not documents:
        raise UserError("shiq_preference needs pairs of answers, and there are no held-out ones: choose another task")
    return DatasetDict({"test": Dataset.from_list(documents)})


def _as_text(messages: Sequence[Mapping[str, str]]) -> str:
    """A lone question as it is, a dialogue with the speaker before each message."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def bfcl_functions(**_: Any) -> DatasetDict:
    """A question with the functions it offers, held-out entries alone; the ground truth calls one of them.

    Raises:
        UserError: the official package is neither cached nor can it be fetched.
    """
    found = entries(locate(), CATEGORIES)
    documents = []
    for entry_id in split_ids(found, "heldout"):
        entry = found[entry_id]
        names = [function["name"] for function in entry.functions]
        offered = "\n".join(f"- {function['name']}: {function['description']}" for function in entry.functions)
        prompt = f"{_as_text(entry.turns[0])}\n\nFunctions:\n{offered}\n\nThe function to call:"
        (gold,) = entry.possible[0]
        documents.append({"prompt": prompt, "choices": names, "gold": names.index(gold)})
    return DatasetDict({"test": Dataset.from_list(documents)})
