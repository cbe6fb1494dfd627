"""What a person sees while a run is under way."""

from __future__ import annotations

import time

from rich import progress
from rich.console import Console

#: Seconds between two lines of progress where the output is no terminal.
EVERY = 30.0


def about(seconds: float) -> str:
    """``40 s``, ``3 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def say(console: Console, text: str) -> None:
    """Print a line as it is: names and paths are no markup, and are broken nowhere."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveReport:
    """``report(what, done, total)``: a bar with an estimate for each stage in turn.

    Where the output is no terminal, a line a stage instead, and one now and then in a long stage.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._what = ""
        self._began = self._said = time.monotonic()
        self._bar: progress.TaskID | None = None
        self._progress = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> LiveReport:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what = what
            self._began = self._said = time.monotonic()
            if not self.console.is_terminal:
                self.console.print(f"{what} ...", highlight=False)
            else:
                if self._bar is not None:
                    self._progress.remove_task(self._bar)
                self._bar = self._progress.add_task(what, total=total or None)
        if self.console.is_terminal and self._bar is not None:
            self._progress.update(self._bar, completed=done, total=total or None)
        elif 0 < done < total and time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            left = (self._said - self._began) * (total - done) / done
            self.console.print(
                f"  {what}: {done} of {total}, about {max(1, round(left / 60))} min left", highlight=False
            )
