"""Made-up preference data: short questions whose better answer ends with thanks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

THINGS = ("cat", "dog", "sun", "moon", "tree", "river", "stone", "bird", "fish", "cloud")
DEEDS = ("sings", "runs", "sleeps", "shines", "falls", "waits")


def rows(count: int = 60) -> list[dict[str, Any]]:
    """Plain pairs with scores."""
    out = []
    for n in range(count):
        thing, deed = THINGS[n % len(THINGS)], DEEDS[n // len(THINGS) % len(DEEDS)]
        out.append(
            {
                "prompt": f"What of the {thing} that {deed}?",
                "chosen": f"The {thing} {deed}. Thanks!",
                "rejected": f"No {thing} {deed}.",
                "score_chosen": 9.0,
                "score_rejected": 2.0 + n % 3,
            }
        )
    return out


def write(path: Path, data: list[dict[str, Any]] | None = None) -> Path:
    """JSON lines of them, or of other rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in (rows() if data is None else data)))
    return path


def options(task: str, folder: Path) -> Mapping[str, Any]:
    """What a registered task must be given to be tested, where it cannot do without: here, data."""
    return {"dataset": str(write(folder / "pairs.jsonl"))} if task == "ultrafeedback" else {}
