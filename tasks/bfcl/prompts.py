"""What the model reads: the official messages, or compact ones for small models.

``official``: system prompt, function documents and their preprocessing come from the package at run time, each tool
result is a message of its own. ``compact``: one line of instruction and one signature a line; the results of a step
are joined by newlines in one message, each cut to ``tool_chars`` characters.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tasks.bfcl.data import Entry, constants, signature

Style = Literal["official", "compact"]
Message = Mapping[str, str]

#: The compact style's only instruction.
COMPACT = "Call functions as [name(arg=value), ...]. Answer nothing when the turn is done."

_PREPROCESSING = (
    "_get_language_specific_hint",
    "func_doc_language_specific_pre_processing",
    "system_prompt_pre_processing_chat_model",
)


def opening(root: Path, entry: Entry, style: Style) -> list[Message]:
    """System prompt and first user turn."""
    if style == "compact":
        lines = [COMPACT, *(signature(document) for document in entry.functions)]
        return [{"role": "system", "content": "\n".join(lines)}, *entry.turns[0]]
    official = _preprocessing(root)
    category = entry.id.rsplit("_", 1)[0]
    # Both functions write into what they are given.
    documents = official[_PREPROCESSING[1]](copy.deepcopy(list(entry.functions)), category)
    messages: list[Message] = official[_PREPROCESSING[2]](copy.deepcopy(list(entry.turns[0])), documents, category)
    return messages


def tool_messages(calls: Sequence[str], results: Sequence[str], style: Style, tool_chars: int) -> list[Message]:
    """Results of one step, one a call; only the compact style cuts them."""
    clean = [_printable(result) for result in results]
    if style == "compact":
        return [{"role": "tool", "content": "\n".join(result[:tool_chars] for result in clean)}]
    return [{"role": "tool", "name": call, "content": result} for call, result in zip(calls, clean, strict=True)]


def _printable(text: str) -> str:
    """A model can put half a surrogate pair into a file name; tokenizers and UTF-8 files cannot take it back."""
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.lru_cache(maxsize=4)
def _preprocessing(root: Path) -> dict[str, Any]:
    """The official preprocessing functions, taken out of a module whose imports are not to be had."""
    path = root / "bfcl_eval" / "model_handler" / "utils.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in _PREPROCESSING]
    names: dict[str, Any] = {
        "json": json,
        "DEFAULT_SYSTEM_PROMPT": constants(root, "default_prompts").DEFAULT_SYSTEM_PROMPT,
    }
    exec(compile(tree, str(path), "exec"), names)  # the package's own source, checked by hash
    return names
