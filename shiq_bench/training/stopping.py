"""How a training ends before its time, and where it can go on. Needs neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: The last file of a checkpoint to be written.
STATE = "trainer_state.json"


class Diverged(Exception):
    """The loss or the gradient is no longer a finite number."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.history: list[dict[str, float]] = []


class Interrupted(Exception):
    """Training stopped on request, after a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"interrupted at step {step}")


class StopFlag:
    """A signal handler: raises a flag that training reads between steps; elsewhere it stops at once."""

    def __init__(self) -> None:
        self.active = False
        self.raised = False

    def __call__(self, *_: Any) -> None:
        at_once = self.raised or not self.active  # asked twice: do not wait for the step to end
        self.raised = True
        if at_once:
            raise KeyboardInterrupt


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: ``trainer_state.json`` is the last file of one to be written."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        try:
            found.append((json.loads((path / STATE).read_text())["global_step"], path))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None
