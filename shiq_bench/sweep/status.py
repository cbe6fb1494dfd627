"""How a sweep stands: the state of every job, as a live table, as lines of a log, and from another terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shiq_bench.records import event_log, leases, run_store
from shiq_bench.records.errors import UserError
from shiq_bench.runs.progress import about, say
from shiq_bench.sweep.grid import Job, read_plan

State = Literal["waiting", "running", "done", "failed", "diverged", "interrupted"]

#: In the order in which they are shown: what happens first, what is over last.
ORDER: tuple[State, ...] = ("running", "failed", "diverged", "interrupted", "waiting", "done")
STYLES = {"running": "bold cyan", "failed": "bold red", "diverged": "yellow", "done": "green", "interrupted": "yellow"}


@dataclass(frozen=True)
class Line:
    """How one run stands.

    Attributes:
        note: why it failed, or how far it is.
        left: seconds that the stage under way still takes; None: not known.
        seconds: that its last execution took, or takes so far.
    """

    run_id: str
    name: str
    state: State
    note: str = ""
    left: float | None = None
    speed: str = ""
    metric: str = ""
    seconds: float = 0.0


def line(results: Path, run_id: str, name: str, events: Sequence[Mapping[str, Any]], before: State) -> Line:
    """How a run stands, by the log, its lease and its progress.

    Args:
        events: its lines of the log.
        before: how it stood before them.
    """
    if not events:
        return Line(run_id, name, before)
    last = events[-1]
    began = next((e["time"] for e in reversed(events) if e["event"] == "start"), None)
    if last["event"] not in ("start", "crashed"):
        return Line(run_id, name, last["event"], last["note"], seconds=0.0 if began is None else last["time"] - began)
    if leases.holder(event_log.lease_path(results, run_id)) is None:
        # Its record knows more than the log, where it was killed between the two.
        record = run_store.find(results, run_id)
        if record is None or record.status == "started":
            return Line(run_id, name, "interrupted", "its process is gone")
        return Line(run_id, name, record.status, record.error or "")
    found = event_log.progress(results, run_id)
    if found is None or began is None or found.at < began:
        return Line(run_id, name, "running", "starting", seconds=0.0 if began is None else time.time() - began)
    where = f"{found.stage} {found.done}/{found.total}" if found.total else found.stage
    numbers = dict(found.numbers)
    speed = numbers.pop("tokens/s", None)
    return Line(
        run_id, name, "running", where, found.left, "" if speed is None else f"{speed:,.0f}",
        ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()), time.time() - began,
    )  # fmt: skip


def table(lines: Sequence[Line], rows: int = 40) -> Table:
    """The runs under way first, then what went wrong, then the rest; at most ``rows`` of them, and the counts."""
    shown = sorted(lines, key=lambda entry: ORDER.index(entry.state))[:rows]
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", caption_justify="left")
    for title in ("run", "state", "step", "tokens/s", "left", "last"):
        out.add_column(title, justify="right" if title in ("tokens/s", "left") else "left", overflow="fold")
    for entry in shown:
        left = "" if entry.left is None else about(entry.left)
        out.add_row(
            Text(entry.name), Text(entry.state, style=STYLES.get(entry.state, "dim")), Text(entry.note[:200]),
            entry.speed, left, entry.metric,
        )  # fmt: skip
    more = f"{len(lines) - len(shown)} more not shown. " if len(lines) > len(shown) else ""
    out.caption = Text(more + summary(lines))
    return out


def summary(lines: Sequence[Line]) -> str:
    """``2 running, 3 waiting, 5 done``."""
    counts = Counter(entry.state for entry in lines)
    return ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state]) or "no runs"


class View:
    """What is seen of a sweep under way: a live table on a terminal, else a line for every run that ends."""

    def __init__(self, results: Path, jobs: Sequence[Job], since: int, before: Mapping[str, State], console: Console):
        self.results, self.jobs, self.since, self.before, self.console = results, jobs, since, before, console
        self.lines: list[Line] = []
        self._over: set[str] = set()
        self.live = Live(console=console, transient=True, auto_refresh=False)  # shows nothing but on a terminal

    def refresh(self, workers: int) -> bool:
        """Look again; True once every job is over."""
        log = event_log.events(self.results, self.since)
        self.lines = [
            line(self.results, job.run_id, job.name, log.get(job.run_id, []), self.before.get(job.run_id, "waiting"))
            for job in self.jobs
        ]
        if self.console.is_terminal:
            shown = table(self.lines, rows=max(5, self.console.height - 6))
            shown.caption = f"{shown.caption}; {workers} workers{self._left(workers)}"
            self.live.update(shown, refresh=True)
        for entry in self.lines:
            if over(entry.state) and entry.run_id not in self._over:
                self._over.add(entry.run_id)
                if entry.state != self.before.get(entry.run_id):
                    self._say(entry, workers)
        return all(over(entry.state) for entry in self.lines)

    def _say(self, entry: Line, workers: int) -> None:
        if not self.console.is_terminal or entry.state != "done":
            why = f": {entry.note}" if entry.note else ""
            text = f"[{len(self._over)}/{len(self.jobs)}] {entry.name}: {entry.state}{why}, {entry.seconds:.1f} s"
            say(self.console, text + self._left(workers))

    def _left(self, workers: int) -> str:
        took = [entry.seconds for entry in self.lines if entry.state == "done" and entry.seconds]
        todo = sum(not over(entry.state) for entry in self.lines)
        if not took or not todo:
            return ""
        return f"; about {about(sum(took) / len(took) * todo / max(1, workers))} left"


def over(state: State) -> bool:
    """Whether nothing more will happen to a run in this sweep."""
    return state in ("done", "failed", "diverged")


def status(results: Path) -> tuple[list[Line], list[str], bool]:
    """What records, the log and the sweeps under way say; what was planned and not begun is only of the last.

    Returns:
        How every run stands, a line a record that cannot be read, and whether a sweep or a run is under way.

    Raises:
        UserError: no such folder.
    """
    records, problems = run_store.load_all(results)
    names, planned = _planned(results)
    log = event_log.events(results)
    lines = {i: line(results, i, names.get(i, i), events, "waiting") for i, events in log.items()}
    there = {record.run_id for record in records}
    # A run that has ended and whose record is gone was deleted, to be done again.
    lines = {i: entry for i, entry in lines.items() if i in there or entry.state not in ("done", "diverged")}
    for record in records:
        if record.status != "started":
            name = names.get(record.run_id, record.run_id)
            lines.setdefault(record.run_id, Line(record.run_id, name, record.status, record.error or ""))
    for run_id in planned:
        lines.setdefault(run_id, Line(run_id, names[run_id], "waiting"))
    shown = sorted(lines.values(), key=lambda entry: (ORDER.index(entry.state), entry.name))
    return shown, problems, bool(planned) or any(entry.state == "running" for entry in shown)


def _planned(results: Path) -> tuple[dict[str, str], list[str]]:
    """Run id -> its name in a plan, and the ids that sweeps under way are still to run or have run."""
    names: dict[str, str] = {}
    planned: list[str] = []
    for path in sorted((results / event_log.FOLDER).glob("plan-*.jsonl")):
        try:
            jobs = read_plan(path).jobs
        except UserError:
            continue
        names |= {job.run_id: job.name for job in jobs}
        if leases.holder(path.with_suffix(".lease")) is not None:
            planned += [job.run_id for job in jobs]
    return names, planned


def print_status(results: Path, watch: bool, console: Console) -> None:
    """Print how everything stands, again and again if asked.

    Raises:
        UserError: no such folder, nothing was ever run there, or some records cannot be read.
    """
    lines, problems, under_way = status(results)
    if not lines and not problems:
        raise UserError(f"nothing was run in {results} yet: start with shiq-bench run or shiq-bench sweep")
    if watch:
        with suppress(KeyboardInterrupt), Live(table(lines), console=console, auto_refresh=False) as live:
            while under_way:
                time.sleep(2)
                lines, problems, under_way = status(results)
                live.update(table(lines, rows=max(5, console.height - 4)), refresh=True)
    else:
        console.print(table(lines, rows=len(lines)))
    for problem in problems:
        say(console, f"skipped: {problem}")
    if problems:
        raise UserError(f"{len(problems)} records cannot be read: delete their folders to run them again")
