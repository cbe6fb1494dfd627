"""Answers to be scored, as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shiq_bench.records.errors import UserError

Dialogue = list[dict[str, str]]


def read_answers(
    lines: Iterable[str], check: Callable[[Dialogue], object]
) -> tuple[list[dict[str, Any]], list[Dialogue], list[str]]:
    """Each line's own fields and its dialogue, and what is wrong with the lines left out, by number.

    Args:
        lines: empty ones are passed over.
        check: raises a UserError for a dialogue that cannot be scored.
    """
    rows: list[dict[str, Any]] = []
    dialogues: list[Dialogue] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row, dialogue = read_answer(line)
            check(dialogue)
        except UserError as error:
            problems.append(f"line {number}: {error}")
        else:
            rows.append(row)
            dialogues.append(dialogue)
    return rows, dialogues, problems


def read_answer(line: str) -> tuple[dict[str, Any], Dialogue]:
    """A line's own fields, and the dialogue in them: ``messages``, or ``prompt`` and ``answer``.

    Raises:
        UserError: it has none.
    """
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError("holds text that is no Unicode") from error
    except (ValueError, RecursionError) as error:
        raise UserError("is no JSON") from error
    if not isinstance(row, dict):
        raise UserError("is no JSON object")
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise UserError('expected {"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "answer": ...}')
    return row, [{"role": m["role"], "content": m["content"]} for m in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))
