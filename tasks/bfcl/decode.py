"""Single-turn answers to calls as the official decoders read them, and ground truth written as such an answer.

Python is read by ``ast`` alone. The official decoder does nothing but copy literals, names and source text out of
the tree, except that it evaluates arithmetic: there the answer is refused, unless it fails there or elsewhere for
certain. Java and JavaScript go through the official parsers, which build syntax trees and evaluate nothing; they are
imported where needed, in a worker. An answer of more than :data:`LONGEST` characters goes to no parser: it is refused
and counts as one call.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shiq_bench.tasks.bfcl.data import Entry
from shiq_bench.tasks.bfcl.parse import call_nodes, is_empty

#: Characters that a parser is given at most: thousands of calls. It runs in a worker, so a text that brings it down
#: costs its own entry only.
LONGEST = 1_000_000

#: Of these every part is evaluated, whatever the others come to.
_WHOLE = (
    ast.BinOp, ast.UnaryOp, ast.Constant, ast.Name, ast.List, ast.Tuple, ast.Set, ast.Dict,
    ast.JoinedStr, ast.FormattedValue, ast.operator, ast.unaryop, ast.expr_context,
)  # fmt: skip

#: What takes an operand of any type, or any class.
_TOLERANT = (ast.BitOr, ast.Mod, ast.Not, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.FormattedValue)

_PARSERS = {
    "Java": ("java_parser", "parse_java_function_call"),
    "JavaScript": ("js_parser", "parse_javascript_function_call"),
}


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the official decoder makes of an answer.

    Attributes:
        output: its result; of any shape, since not all that it reads is calls.
        failed: it raises.
        empty: the answer holds no text.
        refused: number of calls of an answer that was refused for what it would have evaluated; 1 of one that is
            too long to be read.
    """

    output: Any
    failed: bool
    empty: bool
    refused: int = 0


def language(category: str) -> str:
    """The language of a category's functions, by its official name."""
    return {"java": "Java", "javascript": "JavaScript"}.get(category, "Python")


def chosen_by_name(category: str) -> bool:
    """Whether ground truth names the function; in the other categories it is the only one, and one name is wrong."""
    return "multiple" in category or "parallel" in category


def decode(text: str, category: str) -> Decoded:
    """Read an answer in the prompting format of a category; never raises, whatever the text."""
    empty = is_empty(text)
    if len(text) > LONGEST:
        return Decoded(None, failed=True, empty=empty, refused=int(not empty))
    try:
        if language(category) in _PARSERS:
            module, function = _PARSERS[language(category)]
            parser = getattr(importlib.import_module(f"bfcl_eval.model_handler.parser.{module}"), function)
            return Decoded(parser(text.strip("`\n ").removeprefix("[").removesuffix("]")), failed=False, empty=empty)
        nodes, evaluated = call_nodes(text, LONGEST), list[ast.BinOp]()
        calls = [_call(node, evaluated) for node in nodes]
        if evaluated:
            return Decoded(None, failed=True, empty=empty, refused=len(nodes))
        return Decoded(calls, failed=False, empty=empty)
    except ImportError:
        raise
    except Exception:  # the official runner takes whatever its decoder raises for an answer without calls
        return Decoded(None, failed=True, empty=empty)


def _call(node: ast.Call, evaluated: list[ast.BinOp]) -> dict[str, dict[str | None, Any]]:
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    # Positional arguments are not looked at; what stands behind ** has no name.
    return {".".join(reversed(parts)): {keyword.arg: _value(keyword.value, evaluated) for keyword in node.keywords}}


def _value(node: ast.expr | None, evaluated: list[ast.BinOp]) -> Any:
    """A value as the official decoder resolves it; raises wherever that raises.

    What it evaluates, and may succeed in, goes to ``evaluated``: a failure further on makes the answer a failure.
    """
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(operand=ast.Constant(value=value)):
            return -value  # type: ignore[operator]  # whatever the operator; a string raises, as it does officially
        case ast.List(elts=items):
            return [_value(item, evaluated) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, evaluated) for item in items)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_value(key, evaluated): _value(value, evaluated) for key, value in pairs}
        case ast.Name(id=name):
            return name
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            return _call(node, evaluated)
        case ast.Subscript(value=value, slice=index):
            return f"{ast.unparse(value)}[{ast.unparse(index)}]"
        case ast.BinOp() if not _fails(node):
            evaluated.append(node)
            return None
    raise ValueError(f"{type(node).__name__} is no value")


def _fails(node: ast.BinOp) -> bool:
    """Whether evaluation fails for certain: on a name that is not defined, or that stands for no number or string."""
    parts = list(ast.walk(node))
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    if not names or not all(isinstance(part, _WHOLE) for part in parts) or any(name.startswith("__") for name in names):
        return False
    # What is defined there: Python's own, which cannot be reckoned with, and an argument of the official decoder.
    undefined = any(name != "value" and not hasattr(builtins, name) for name in names)
    return undefined or not any(isinstance(part, _TOLERANT) for part in parts)


# --- ground truth as an answer -------------------------------------------------------------------


def gold_calls(entry: Entry) -> list[dict[str, dict[str, Any]]]:
    """Ground truth of a single-turn entry in decoded form: the first accepted value of every argument.

    An argument that may be left out, and whose first accepted value says so, is left out. Values of Java and
    JavaScript are source text. No call answers an irrelevant question. For ``live_relevance`` there is no ground
    truth: any call passes, so it is a call of the first function without arguments.
    """
    name = language(entry.category)
    return [
        {function: {key: _source(value, about, name) for key, (value, about) in arguments.items()}}
        for function, arguments in _gold(entry)
    ]


def gold_text(entry: Entry) -> str:
    """:func:`gold_calls` as an answer in the prompting format, in the language of the category."""
    name = language(entry.category)
    calls = [
        f"{function}({', '.join(f'{key}={_written(*value, name)}' for key, value in arguments.items())})"
        for function, arguments in _gold(entry)
    ]
    return f"[{', '.join(calls)}]" if calls else ""


def _gold(entry: Entry) -> list[tuple[str, dict[str, tuple[Any, Mapping[str, Any]]]]]:
    """Function and, for each argument, its value and its document."""
    if "irrelevance" in entry.category:
        return []
    if "relevance" in entry.category:
        return [(entry.functions[0]["name"], {})]
    documents = {document["name"]: document["parameters"] for document in entry.functions}
    calls = []
    for possible in entry.possible:
        ((name, accepted),) = possible.items()
        if not chosen_by_name(entry.category):
            name = entry.functions[0]["name"]
        required, about = documents[name]["required"], documents[name]["properties"]
        arguments = {}
        for key, values in accepted.items():
            value = _first(values, key in required)
            # One entry's ground truth knows an optional argument that its function does not have.
            if (value != "" or key in required) and (key in about or "" not in values):
                arguments[key] = _plain(value), about.get(key, {})
        calls.append((name, arguments))
    return calls


def _first(values: Sequence[Any], required: bool) -> Any:
    return next((value for value in values if value != "" or not required), "")


def _plain(value: Any) -> Any:
    """A value of the ground truth, where dictionaries hold accepted values, as the value itself."""
    if isinstance(value, Mapping):
        chosen = {key: _first(values, required=False) for key, values in value.items()}
        return {key: item for key, item in chosen.items() if item != ""}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) if isinstance(item, Mapping) else item for item in value]
    return value


def _source(value: Any, about: Mapping[str, Any], name: str) -> Any:
    """A value in the source form that the official converter of Java or JavaScript takes for it."""
    if name == "Python" or isinstance(value, str):
        return value
    kind, inner = about["type"], about.get("items", {}).get("type", "any")
    if name == "JavaScript":
        return json.dumps(value, ensure_ascii=False) + ("n" if kind == "Bigint" else "")
    match kind:
        case "float":
            return f"{float(value)}f"
        case "long":
            return f"{value}L"
        case "Array":  # whose strings the official converter wants without quotes
            items = [item if isinstance(item, str) else _source(item, {"type": inner}, name) for item in value]
            return f"new {inner}[]{{{', '.join(items)}}}"
        case "ArrayList":
            items = [_element(item, inner) for item in value]
            return f"new ArrayList<>(Arrays.asList({', '.join(items)}))" if value else "new ArrayList<>()"
        case "HashMap":
            puts = " ".join(f'put("{key}", {_element(item, "any")});' for key, item in value.items())
            return f"new HashMap<String, Object>() {{{{ {puts} }}}}" if value else "new HashMap<>()"
    return json.dumps(value)


def _element(value: Any, kind: str) -> str:
    """An element of a Java collection that is not an array."""
    if isinstance(value, str):
        return f"'{value}'" if kind == "char" else f'"{value}"'
    return str(_source(value, {"type": kind}, "Java"))


def _written(value: Any, about: Mapping[str, Any], name: str) -> str:
    """An argument as it stands in an answer."""
    if name == "Python":
        return repr(value)
    source = str(_source(value, about, name))
    # The official parser of Java drops the body of a map, and cannot read an array of unquoted strings: both pass as
    # a string, whose quotes every parser strips without reading what is inside.
    if isinstance(value, str) or (name == "Java" and about["type"] in ("HashMap", "Array")):
        quote = "'" if '"' in source else '"'
        return f"{quote}{source}{quote}"
    return source
