"""Model text to calls, by ``ast`` alone: nothing a model prints is ever evaluated.

The text is cleaned and read as the official prompting decoder reads it, so what lies inside the grammar
comes out as the same call strings. The grammar: a list of ``name(argument, ...)`` with a name among the functions
offered and arguments that are literals (str, int, float, bool, None, list, tuple, dict, minus a number). The
official decoder goes on to evaluate arithmetic and to run whatever the name reaches; here such a call is refused.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

#: No honest answer is longer, and Python's parser is known to survive any text of this length.
MAX_TEXT = 32_768

ERROR = "Error during execution: "


@dataclass(frozen=True, slots=True)
class Call:
    """A call inside the grammar.

    Attributes:
        name: one of the functions offered.
        arguments: keyword -> literal, in the order written.
        dropped: positional arguments left out, as the official decoder leaves them out.
    """

    name: str
    arguments: Mapping[str, object]
    dropped: int = 0

    @property
    def text(self) -> str:
        """The call rebuilt from the tree: the only form that is ever executed."""
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments.items())})"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that reads as a call and is not executed.

    Attributes:
        error: what the model is told, as this call's result.
        unknown: its only fault is a name that is not offered. The official executor answers that with
            an error string too, so it counts as a call that was made; other refusals count as none.
    """

    error: str
    unknown: bool = False


class _Undecodable(Exception):
    """The official decoder raises here, which ends the turn."""


class _Refused(Exception):
    """Outside the grammar."""


def is_empty(text: str) -> bool:
    """Whether an answer holds nothing at all, which is how a turn is closed."""
    return not _clean(text).strip()


def parse_answer(text: str, offered: Container[str]) -> list[Call | Refusal] | None:
    """Read an answer; never raises, whatever the text.

    Returns:
        The calls in order, one item a call; an empty list for an empty tuple; None when the text is not a list
        of calls, which ends the turn as in the official loop.
    """
    try:
        return [_call_or_refusal(node, offered) for node in _call_nodes(text)]
    except _Undecodable:
        return None


def parse_gold(text: str, parameters: Mapping[str, Sequence[str]]) -> Call:
    """Read one ground-truth call, its positional arguments named after ``parameters[name]``.

    Raises:
        ValueError: the call is outside the grammar.
    """
    try:
        node, *others = _call_nodes(text)
        if others or not isinstance(node.func, ast.Name):
            raise _Refused("not one call of a plain name")
        names = parameters[node.func.id]
        positional = {name: _value(argument) for name, argument in zip(names, node.args, strict=False)}
        if len(node.args) > len(names):
            raise _Refused("more positional arguments than parameters")
        return Call(node.func.id, positional | _keywords(node))
    except (KeyError, _Refused, _Undecodable) as error:
        raise ValueError(f"ground truth {text!r} is outside the grammar: {error}") from None


def is_canonical(text: str, offered: Container[str]) -> bool:
    """Whether ``text`` is exactly what :attr:`Call.text` writes for one call of an offered function."""
    match parse_answer(text, offered):
        case [Call() as call]:
            return call.text == text
    return False


def _clean(text: str) -> str:
    return text.strip("`\n ").strip("[]'")


def _call_nodes(text: str) -> list[ast.Call]:
    if len(text) > MAX_TEXT:
        raise _Undecodable("too long")
    try:
        with warnings.catch_warnings():
            # A model's "\d" must not print a warning, nor raise one where warnings are errors.
            warnings.simplefilter("ignore")
            body = ast.parse(_clean(text), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _Undecodable(type(error).__name__) from None
    if isinstance(body, ast.Call):
        return [body]
    items = body.elts if isinstance(body, ast.List | ast.Tuple | ast.Set) else [body]
    calls = [item for item in items if isinstance(item, ast.Call)]
    if len(calls) != len(items):
        raise _Undecodable("not a list of calls")
    return calls


def _call_or_refusal(node: ast.Call, offered: Container[str]) -> Call | Refusal:
    try:
        for argument in node.args:
            _value(argument)  # dropped all the same, but nothing odd passes in silence
        arguments = _keywords(node)
        if not isinstance(node.func, ast.Name):
            raise _Refused("call a function by its plain name")
    except _Refused as error:
        return Refusal(f"{ERROR}{error}")
    name = node.func.id
    if name not in offered:
        return Refusal(f"{ERROR}name '{name[:80]}' is not defined", unknown=True)
    return Call(name, arguments, dropped=len(node.args))


def _keywords(node: ast.Call) -> dict[str, object]:
    arguments: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise _Refused("** is not allowed in a call")
        arguments[keyword.arg] = _as_official(_value(keyword.value))  # repeated: the last one counts
    return arguments


def _value(node: ast.expr) -> object:
    """The literal a node stands for; the tree is at most 200 brackets deep, which Python's tokenizer sees to."""
    match node:
        case ast.Constant(value=value):
            return _constant(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)):
            if isinstance(value, int | float) and not isinstance(value, bool):
                return -_number(value)
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    raise _Refused(f"an argument must be a literal value, not {_kind(node)}")


def _constant(value: object) -> object:
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, int | float):
        return _number(value)
    raise _Refused(f"an argument must be a literal value, not {type(value).__name__}")


def _number(value: float) -> float:
    if isinstance(value, float) and not math.isfinite(value):
        raise _Refused("a number is too large")
    try:
        repr(value)
    except ValueError:  # thousands of digits, written in hexadecimal; the official decoder raises as well
        raise _Undecodable("a number is too long to print") from None
    return value


def _key(node: ast.expr | None) -> object:
    if not isinstance(node, ast.Constant):
        raise _Refused("a dictionary key must be a string or a number")
    return _constant(node.value)


def _as_official(value: object) -> object:
    """An argument as the official decoder rewrites it: keys of a dictionary become strings, and so on down."""
    if not isinstance(value, dict):
        return value
    if not value:
        raise _Undecodable("the official decoder cannot print an empty dictionary")
    if all(isinstance(item, dict) for item in value.values()):
        # The official decoder takes such a dictionary for a nested call.
        raise _Refused("a dictionary that holds dictionaries only is not allowed")
    if any(set("'\\\n\r") & set(str(key)) for key in value):
        # The official decoder prints keys unescaped: there a quote would end the string.
        raise _Refused("a dictionary key must not hold a quote, a backslash or a line break")
    return {str(key): _as_official(item) for key, item in value.items()}


def _kind(node: ast.AST) -> str:
    names = {"BinOp": "arithmetic", "Call": "another call", "Name": "a bare name", "JoinedStr": "an f-string"}
    return names.get(type(node).__name__, type(node).__name__.lower())
