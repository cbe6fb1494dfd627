"""What the model reads: the official messages, compact ones for small models, or tools for a chat template.

``prompt``: system prompt, function documents and their preprocessing come from the package at run time, each tool
result is a message of its own. ``compact``: one line of instruction and one signature a line; the results of a step
are joined by newlines in one message, each cut to ``tool_chars`` characters. Any other format is a template's own:
the documents go in as JSON-schema tools, and the template says the rest.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shiq_bench.tasks.bfcl.data import Entry, constants, signature

Message = Mapping[str, Any]

#: Formats that are text to the chat template; any other name is the template's own way to write calls.
TEXT = ("prompt", "compact")

#: The compact format's only instruction.
COMPACT = "Call functions as [name(arg=value), ...]. Answer nothing when the turn is done."

_PREPROCESSING = (
    "_get_language_specific_hint",
    "func_doc_language_specific_pre_processing",
    "system_prompt_pre_processing_chat_model",
    "_cast_to_openai_type",
)


def opening(root: Path, entry: Entry, tool_format: str) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The first messages of an entry, and the tools for its chat template where the format is the template's own."""
    first = copy.deepcopy(list(entry.turns[0]))
    if tool_format == "compact":
        lines = [COMPACT, *(signature(document) for document in entry.offered(0))]
        if first[0]["role"] == "system":
            lines.append(first.pop(0)["content"])
        return [{"role": "system", "content": "\n".join(lines)}, *first], None
    documents = _prepared(root, entry, 0)
    if tool_format == "prompt":
        return _official(root)[_PREPROCESSING[2]](first, documents, entry.category), None
    return first, [_tool(root, document) for document in documents] or None


def next_turn(root: Path, entry: Entry, turn: int, tool_format: str) -> list[Message]:
    """Messages that open a later turn; held-out functions are handed over in the words of the official loop.

    Officially a model with tools of its own sees held-out ones in its list from then on, which rewrites the
    beginning of the dialogue. A transcript is never rewritten here: they come in the message, as prompted models see
    them.
    """
    if turn not in entry.held_out:
        return list(entry.turns[turn])
    documents: Any = entry.offered(turn)
    if tool_format == "compact":
        return [{"role": "user", "content": "\n".join(signature(document) for document in documents)}]
    if tool_format not in TEXT:
        documents = json.dumps([_tool(root, document) for document in _prepared(root, entry, turn)])
    words = constants(root, "default_prompts").DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING
    return [{"role": "user", "content": words.format(functions=documents)}]


def tool_messages(names: Sequence[str], results: Sequence[str], tool_format: str, tool_chars: int) -> list[Message]:
    """Results of one step, one a call; only the compact format cuts them.

    Args:
        names: what each result is the result of: the call as it was executed, or the function's name where the
            template writes calls itself.
    """
    # A model can put half a surrogate pair into a file name; tokenizers and UTF-8 files cannot take it back.
    clean = [result.encode("utf-8", "replace").decode("utf-8") for result in results]
    if tool_format == "compact":
        return [{"role": "tool", "content": "\n".join(result[:tool_chars] for result in clean)}]
    return [{"role": "tool", "name": name, "content": result} for name, result in zip(names, clean, strict=True)]


def _prepared(root: Path, entry: Entry, turn: int) -> list[dict[str, Any]]:
    """Documents with the official hints on the language; the official function writes into what it is given."""
    return _official(root)[_PREPROCESSING[1]](copy.deepcopy(entry.offered(turn)), entry.category)


def _tool(root: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """A document as a JSON-schema tool, its types renamed by the official table."""
    names = _official(root)
    parameters = copy.deepcopy(document["parameters"])
    properties = names[_PREPROCESSING[3]](parameters["properties"], names["GORILLA_TO_OPENAPI"])
    parameters |= {"type": "object", "properties": properties}
    function = {"name": document["name"], "description": document["description"], "parameters": parameters}
    return {"type": "function", "function": function}


@functools.lru_cache(maxsize=4)
def _official(root: Path) -> dict[str, Any]:
    """The official preprocessing functions, taken out of a module whose imports are not to be had."""
    path = root / "bfcl_eval" / "model_handler" / "utils.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in _PREPROCESSING]
    names: dict[str, Any] = {
        "json": json,
        "DEFAULT_SYSTEM_PROMPT": constants(root, "default_prompts").DEFAULT_SYSTEM_PROMPT,
        "GORILLA_TO_OPENAPI": constants(root, "type_mappings").GORILLA_TO_OPENAPI,
    }
    exec(compile(tree, str(path), "exec"), names)  # the package's own source, checked by hash
    return names
