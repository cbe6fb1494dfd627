"""Model text to calls, by ``ast`` alone: nothing a model prints is ever evaluated.

The text is cleaned and read as the official prompting decoder reads it, so what lies inside the grammar
comes out as the same call strings. The grammar: a list of ``name(argument, ...)`` with a name among the functions
offered and arguments that are literals (str, int, float, bool, None, list, tuple, dict, minus a number). The
official decoder goes on to evaluate arithmetic and to run whatever the name reaches; here such a call is refused,
and counts as one call made in vain.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

#: Longest text that is read here, in the parent: no honest answer is longer, and Python's parser is known to survive
#: any text of this length. In a worker, where a crash costs one entry, single-turn answers may be longer
#: (``decode.LONGEST``).
MAX_TEXT = 32_768

#: How many times longer a call is at most when it is rebuilt, with its strings escaped; it is nested no deeper.
_LONGER = 12

ERROR = "Error during execution: "


@dataclass(frozen=True, slots=True)
class Call:
    """A call inside the grammar.

    Attributes:
        name: one of the functions offered.
        arguments: keyword -> literal, in the order written.
        dropped: positional arguments left out, as the official decoder leaves them out.
        positional: positional arguments kept, in a call that comes decoded (:func:`parse_call`).
    """

    name: str
    arguments: Mapping[str, object]
    dropped: int = 0
    positional: tuple[object, ...] = ()

    @property
    def text(self) -> str:
        """The call rebuilt from the tree: the only form that is ever executed."""
        values = [*map(repr, self.positional), *(f"{key}={value!r}" for key, value in self.arguments.items())]
        return f"{self.name}({', '.join(values)})"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that reads as a call and is not executed: for the verdict one call made in vain."""

    error: str  # what the model is told, as this call's result


class Undecodable(Exception):
    """The official decoder raises here, which ends the turn."""


class Refused(Exception):
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
        return [_call_or_refusal(node, offered) for node in call_nodes(text)]
    except Undecodable:
        return None


def parse_call(text: str, offered: Container[str], longest: int = MAX_TEXT) -> Call | Refusal:
    """Read one call string that comes decoded and that the official executor would evaluate as it stands.

    Unlike a model's text it keeps its positional arguments and the exact value of each literal; never raises.
    """
    try:
        node = _expression(text.lstrip(" \t"), longest)
        if not isinstance(node, ast.Call):
            raise Refused("not one call")
        # The official executor finds a function by the characters of its name, not by what Python makes of them.
        if isinstance(node.func, ast.Name) and not text.lstrip(" \t").startswith(node.func.id):
            raise Refused("call a function by its plain name")
        return _call(node, offered, lambda value: value, keep=True)
    except (Refused, Undecodable) as error:
        return Refusal(f"{ERROR}{error}")


def parse_gold(text: str, parameters: Mapping[str, Sequence[str]]) -> Call:
    """Read one ground-truth call, its positional arguments named after ``parameters[name]``.

    Raises:
        ValueError: the call is outside the grammar.
    """
    try:
        node, *others = call_nodes(text)
        if others or not isinstance(node.func, ast.Name):
            raise Refused("not one call of a plain name")
        names = parameters[node.func.id]
        positional = {name: _value(argument) for name, argument in zip(names, node.args, strict=False)}
        if len(node.args) > len(names):
            raise Refused("more positional arguments than parameters")
        return Call(node.func.id, positional | _keywords(node, _as_official))
    except (KeyError, Refused, Undecodable) as error:
        raise ValueError(f"ground truth {text!r} is outside the grammar: {error}") from None


def is_canonical(text: str, offered: Container[str]) -> bool:
    """Whether ``text`` is exactly what :attr:`Call.text` writes for one call of an offered function."""
    call = parse_call(text, offered, MAX_TEXT * _LONGER)
    return isinstance(call, Call) and call.text == text


def _clean(text: str) -> str:
    return text.strip("`\n ").strip("[]'")


def call_nodes(text: str, longest: int = MAX_TEXT) -> list[ast.Call]:
    """The calls of a cleaned answer as syntax trees.

    Args:
        longest: characters that the parser is given at most.

    Raises:
        Undecodable: the text is too long, no Python, or no list of calls.
    """
    body = _expression(_clean(text), longest)
    if isinstance(body, ast.Call):
        return [body]
    items = body.elts if isinstance(body, ast.List | ast.Tuple | ast.Set) else [body]
    calls = [item for item in items if isinstance(item, ast.Call)]
    if len(calls) != len(items):
        raise Undecodable("not a list of calls")
    return calls


def _expression(text: str, longest: int) -> ast.expr:
    if len(text) > longest:
        raise Undecodable("too long")
    try:
        with warnings.catch_warnings():
            # A model's "\d" must not print a warning, nor raise one where warnings are errors.
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Undecodable(type(error).__name__) from None


def _call_or_refusal(node: ast.Call, offered: Container[str]) -> Call | Refusal:
    try:
        return _call(node, offered, _as_official, keep=False)
    except Refused as error:
        return Refusal(f"{ERROR}{error}")


def _call(node: ast.Call, offered: Container[str], rewrite: Callable[[object], object], keep: bool) -> Call:
    positional = tuple(map(_value, node.args))  # where they are dropped, nothing odd passes in silence all the same
    arguments = _keywords(node, rewrite)
    if not isinstance(node.func, ast.Name):
        raise Refused("call a function by its plain name")
    if keep and len(arguments) < len(node.keywords):
        raise Refused("a keyword argument is repeated")
    name = node.func.id
    if name not in offered:
        raise Refused(f"name '{name[:80]}' is not defined")
    return Call(name, arguments, positional=positional) if keep else Call(name, arguments, dropped=len(positional))


def _keywords(node: ast.Call, rewrite: Callable[[object], object]) -> dict[str, object]:
    arguments: dict[str, object] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise Refused("** is not allowed in a call")
        arguments[keyword.arg] = rewrite(_value(keyword.value))  # repeated: the last one counts
    return arguments


def _value(node: ast.expr) -> object:
    """The literal a node stands for; the tree is at most 200 brackets deep, which Python's tokenizer sees to."""
    match node:
        case ast.Constant(value=bool() | str() | None as value):
            return value
        case ast.Constant(value=int() | float() as value):
            return _number(value)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            if not isinstance(value, bool):
                return -_number(value)
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    raise Refused(f"an argument must be a literal value, not {_kind(node)}")


def _number(value: float) -> float:
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused("a number is too large")
    try:
        repr(value)
    except ValueError:  # thousands of digits, written in hexadecimal; the official decoder raises as well
        raise Undecodable("a number is too long to print") from None
    return value


def _key(node: ast.expr | None) -> object:
    value = [] if node is None else _value(node)
    if not isinstance(value, bool | str | int | float | None):
        raise Refused("a dictionary key must be a string or a number")
    return value


def _as_official(value: object) -> object:
    """An argument as the official decoder rewrites it: keys of a dictionary become strings, and so on down."""
    if not isinstance(value, dict):
        return value
    if not value:
        raise Undecodable("the official decoder cannot print an empty dictionary")
    if all(isinstance(item, dict) for item in value.values()):
        # The official decoder takes such a dictionary for a nested call.
        raise Refused("a dictionary that holds dictionaries only is not allowed")
    if any(set("'\\\n\r") & set(str(key)) for key in value):
        # The official decoder prints keys unescaped: there a quote would end the string.
        raise Refused("a dictionary key must not hold a quote, a backslash or a line break")
    return {str(key): _as_official(item) for key, item in value.items()}


def _kind(node: ast.AST) -> str:
    names = {"BinOp": "arithmetic", "Call": "another call", "Name": "a bare name", "JoinedStr": "an f-string"}
    kind = type(node.value if isinstance(node, ast.Constant) else node).__name__
    return names.get(kind, kind.lower())
