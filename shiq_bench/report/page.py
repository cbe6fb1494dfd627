"""Run records to one HTML page that needs no network: leaderboard, pictures, runs, completions, configurations.

The page holds its style, its scripts, its data and plotly's. The numbers are those of
:func:`shiq_bench.report.comparison.compare`; whatever a reader may or may not open (runs, episodes, curves, plotly) is
packed, gzip in base64, for the page to unpack. Data never become markup: they stand in elements that no browser
executes, and the scripts make text of them. The same records give the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from math import isfinite
from typing import Any

from shiq_bench.records.record import Evaluation, Metric, RunRecord
from shiq_bench.records.spec import RunSpec
from shiq_bench.report.blocks import Block, Column, Comparison, Key, Place
from shiq_bench.report.comparison import cell_of, compare, reference_of
from shiq_bench.report.format import digits, metric_label
from shiq_bench.report.plot import COLOURS
from shiq_bench.report.tables import place_title
from shiq_bench.report.tables import texts as texts_of
from shiq_bench.stats.intervals import Estimate, mean_ci_t

#: In the order in which they run.
SCRIPTS = ("report.js", "report_runs.js", "report_views.js", "report_pictures.js", "report_begin.js")

#: What a policy's numbers are measured with, shown in the leaderboard beside the task's headline metrics.
KL = ("kl", "kl_reference")

SETTINGS = tuple(f.name for f in fields(RunSpec))
#: Where a run was made: code, weights, judges, hardware and packages.
ENVIRONMENT = (
    "git_commit", "git_dirty", "source_hash", "code_hash", "weights_hash", "judges_hash", "schema_version",
    "hardware", "packages",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """How much of the records a page shows; what it leaves out it says.

    Attributes:
        prompts, samples: prompts of each split and mode, the first ones evaluated, and episodes of each of them.
        characters, items: longest text and list of an episode, the rest is cut.
        points: points of a learning curve, evenly spaced.
    """

    prompts: int = 20
    samples: int = 4
    characters: int = 4000
    items: int = 200
    points: int = 100


class Packs:
    """JSON values packed as text, one of each: runs that share a reference share its episodes."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._known: dict[bytes, int] = {}

    def add(self, data: Any) -> int:
        """The number under which the page finds ``data``."""
        text = json.dumps(data, allow_nan=False, separators=(",", ":")).encode()
        key = hashlib.sha256(text).digest()
        if key not in self._known:
            self._known[key] = len(self.texts)
            self.texts.append(pack(text))
        return self._known[key]


@dataclass(frozen=True)
class Payload:
    """What every reader sees at once, in plain JSON data, and the rest, packed; the core refers to packs by number."""

    core: Mapping[str, Any]
    packs: tuple[str, ...]


def pack(data: bytes) -> str:
    """Gzip in base64; above level 6 nothing is gained but time."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def payload(
    records: Iterable[RunRecord],
    metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]] = (),
    *,
    allow_mixed: bool = False,
    limits: Limits | None = None,
) -> Payload:
    """Everything a page shows; arguments and errors as of :func:`shiq_bench.report.comparison.compare`."""
    records = list(records)
    comparison = compare(records, metrics, allow_mixed=allow_mixed)
    made = _Maker(comparison, limits or Limits())
    for block in comparison.blocks:
        made.block(block)
    core = {
        "notes": list(comparison.captions),
        "sources": sorted({r.source_hash or "unknown" for r in records}),
        "limits": asdict(made.limits),
        "colours": list(COLOURS),
        "blocks": made.blocks,
        "rows": made.rows,
        "runs": made.runs,
    }
    return Payload(core, tuple(made.packs.texts))


class _Maker:
    """Blocks, rows and runs of a page, in the order of the comparison."""

    def __init__(self, comparison: Comparison, limits: Limits) -> None:
        self.every = comparison.blocks
        self.limits = limits
        self.packs = Packs()
        self.blocks: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        flat = [flattened(c.runs[0].spec, SETTINGS) for b in comparison.blocks for c in b.columns if c.runs]
        self._differ = {k for f in flat for k in f if any(f.get(k) != other.get(k) for other in flat)}

    def block(self, block: Block) -> None:
        first = len(self.rows)
        shown = [m.name for m in block.metrics if m.headline or m.name in KL]
        records = [r for c in block.columns for r in c.runs]
        # Who measured the reference of each place, for its episodes.
        measured = {p: reference_of(records, p)[0] for p in block.places}
        texts, changes = texts_of(block), texts_of(block, differences=True)
        every = []  # all numbers of each row, for the pictures
        for column in block.columns:
            every.append(_numbers(block, column.label, [m.name for m in block.metrics], texts))
            kept = len(self.runs)
            episodes = [self._run(record, len(self.rows), block.places) for record in column.runs]
            if not column.runs:
                episodes = [[None if e is None else self._episodes(e)["pack"] for e in measured.values()]]
            self.rows.append(
                {
                    "block": len(self.blocks),
                    "label": column.label,
                    "algo": column.runs[0].spec.algo if column.runs else "",
                    "settings": self._settings(column),
                    "state": column.state,
                    "counts": {s: column.count(s) for s in ("done", "failed", "diverged", "started")},
                    "seeds": len(column.done),
                    "consumed": column.consumed,
                    "cells": _numbers(block, column.label, shown, texts),
                    "differences": _numbers(block, column.label, shown, changes, differences=True),
                    "runs": list(range(kept, len(self.runs))),
                    "behind": list(range(kept, len(self.runs))),
                    "episodes": episodes,
                }
            )
        # The reference has no runs of its own, but those that measured it; its numbers are the first one's.
        number = {self.runs[n]["id"]: n for row in self.rows[first:] for n in row["runs"]}
        measuring = [r for r in records if any(e.policy == "reference" for e in r.evaluations)]
        measuring.sort(key=lambda r: (r.status != "done", r.run_id))
        self.rows[first]["behind"] = [number[r.run_id] for r in measuring]
        rows = enumerate(block.columns, first)
        lines = [line for row, c in rows for line in curves(c, row, block.metrics, self.limits.points)]
        self.blocks.append(
            {
                "title": block.title,
                "conditions": apart(block, self.every),
                "task": block.conditions["task"],
                "captions": list(block.captions),
                "places": [[*place, place_title(block, place)] for place in block.places],
                "metrics": [
                    {"name": m.name, "title": metric_label(m), "better": m.better, "percent": m.percent,
                     "headline": m.headline}
                    for m in block.metrics
                ],
                "rows": [first, len(self.rows)],
                "points": self.packs.add(every),
                "curves": self.packs.add(lines),
            }
        )  # fmt: skip

    def _settings(self, column: Column) -> str:
        """A row's settings as text to search in: the algorithm's, and all that is not the same in every row."""
        flat = flattened(column.runs[0].spec, SETTINGS) if column.runs else {}
        told = {k: v for k, v in flat.items() if k.startswith("algo_options.") or k in self._differ}
        return " ".join(
            f"{k.removeprefix('algo_options.')}={v}" for k, v in told.items() if k not in ("algo", "seed", "results")
        )

    def _run(self, record: RunRecord, row: int, places: Sequence[Place]) -> list[int | None]:
        """Keep one run; returns the packs of its own episodes at the end of training, one a place."""
        evaluations = [
            {"policy": e.policy, "split": e.split, "mode": e.mode, "step": e.step, "metrics": _clean(e.metrics)}
            | self._episodes(e)
            for e in record.evaluations
        ]
        plain = ("status", "error", "deviations", "timings", "consumed", "data", "gaps", "peak_memory_mb")
        about = {
            "spec": flattened(record.spec, SETTINGS),
            "environment": flattened(record, ENVIRONMENT),
            **{name: _clean(getattr(record, name)) for name in plain},
            "evaluations": evaluations,
        }
        last = {
            (e["split"], e["mode"]): e["pack"]
            for e in sorted(evaluations, key=lambda e: e["step"])
            if e["policy"] == "trained"
        }
        self.runs.append(
            {
                "id": record.run_id,
                "row": row,
                "seed": record.spec.seed,
                "status": record.status,
                "error": (record.error or "").partition("\n")[0][:300],
                "steps": max((e.step for e in record.evaluations if e.policy == "trained"), default=None),
                "seconds": sum(record.timings.values()) if record.timings else None,
                "commit": record.git_commit,
                "dirty": record.git_dirty,
                "source": record.source_hash,
                "deviations": len(record.deviations),
                "pack": self.packs.add(about),
            }
        )
        return [last.get(place) for place in places]

    def _episodes(self, evaluation: Evaluation) -> dict[str, Any]:
        """The first prompts' episodes, packed, and how many there were."""
        by_prompt: dict[str, list[Mapping[str, Any]]] = {}
        for example in evaluation.examples:
            by_prompt.setdefault(str(example["prompt_id"]), []).append(example)
        found = [
            {
                "prompt": prompt,
                "episodes": [
                    {
                        "numbers": _clean({k: v for k, v in e.items() if k not in ("prompt_id", "details")}),
                        "details": _clean(e.get("details") or {}, self.limits),
                    }
                    for e in by_prompt[prompt][: self.limits.samples]
                ],
            }
            for prompt in list(by_prompt)[: self.limits.prompts]
        ]
        episodes = len(evaluation.examples)
        left_out = episodes - sum(len(f["episodes"]) for f in found)
        about = {"prompts": len(by_prompt), "episodes": episodes, "left_out": left_out}
        return {**about, "pack": self.packs.add({**about, "found": found})}


def curves(column: Column, row: int, metrics: Sequence[Metric], points: int) -> Iterable[dict[str, Any]]:
    """The finished runs of a column, with 95% t intervals; at most ``points`` of what was logged."""
    found: dict[tuple[str, str], list[tuple[int, Estimate]]] = {}
    by_step: dict[tuple[int, str, str], list[Evaluation]] = {}
    for record in column.done:
        for e in record.curve:
            by_step.setdefault((e.step, e.split, e.mode), []).append(e)
    for step, split, mode in sorted(by_step):
        # Where some runs were not evaluated, a mean would be over others than beside it.
        if len(evaluations := by_step[step, split, mode]) == len(column.done):
            for metric in metrics:
                if cell := cell_of(evaluations, metric.name):
                    found.setdefault((f"{split}, {mode}", metric.name), []).append((step, cell.estimate))
    for (place, name), values in found.items():
        yield _curve(row, place, name, values)
    logged = [{int(line["step"]): line for line in r.training if "step" in line} for r in column.done]
    steps = evenly(sorted(set.intersection(*map(set, logged))) if logged else [], points)
    for name in sorted({k for s in steps for lines in logged for k in lines[s]} - {"step", "epoch"}):
        yield _curve(row, "training", name, [(s, mean_ci_t(_number(x[s].get(name)) for x in logged)) for s in steps])


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _curve(row: int, place: str, metric: str, values: Sequence[tuple[int, Estimate]]) -> dict[str, Any]:
    known = [(step, e) for step, e in values if e.mean is not None]
    return {
        "row": row,
        "place": place,
        "metric": metric,
        "step": [step for step, _ in known],
        **{name: [digits(getattr(e, name)) for _, e in known] for name in ("mean", "low", "high")},
        "units": max((e.units for _, e in known), default=0),
        "fewest": min((e.units for _, e in known), default=0),
    }


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, evenly spaced, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def apart(block: Block, blocks: Sequence[Block]) -> str:
    """What tells a block from the others of its task, in the words of its title; nothing where there are none."""
    alike = [b.title for b in blocks if b.conditions["task"] == block.conditions["task"]]
    common = set.intersection(*(set(title.split(" · ")) for title in alike))
    return " · ".join(part for part in block.title.split(" · ") if part not in common)


def flattened(of: RunSpec | RunRecord, names: Sequence[str]) -> dict[str, Any]:
    """Fields of those names, the entries of a mapping (an option of the algorithm or the task) behind a dot."""
    flat: dict[str, Any] = {}
    for name in names:
        value = getattr(of, name)
        if isinstance(value, Mapping):
            flat |= {f"{name}.{k}": _clean(v) for k, v in sorted(value.items())}
        else:
            flat[name] = value
    return flat


def _numbers(
    block: Block, label: str, names: Iterable[str], texts: Mapping[Key, str], differences: bool = False
) -> list[dict[str, Any]]:
    """A policy's cells, or its differences to the reference: for each place, metric -> number."""
    values, best = (block.differences, ()) if differences else (block.cells, block.best)
    return [
        {
            name: {
                **{of: digits(getattr(cell.estimate, of)) for of in ("mean", "low", "high", "stderr")},
                "n": list(cell.n), "over": cell.over, "text": texts[key], "best": key in best,
            }
            for name in names
            if (cell := values.get(key := (*place, label, name))) is not None
        }
        for place in block.places
    ]  # fmt: skip


def _clean(value: Any, limits: Limits | None = None) -> Any:
    """JSON data, where there are limits without what is too long to read; what is no finite number is None."""
    if isinstance(value, str) and limits and (over := len(value) - limits.characters) > 0:
        return f"{value[: limits.characters]} … [{over:,} more characters]"
    if isinstance(value, Mapping):
        return {str(k): _clean(v, limits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        over = len(value) - limits.items if limits else 0
        short = [_clean(v, limits) for v in (value[: limits.items] if limits else value)]
        return [*short, f"… [{over:,} more]"] if over > 0 else short
    return None if isinstance(value, float) and not isfinite(value) else value


def page(content: Payload) -> bytes:
    """The page, with everything it needs inside."""
    import jinja2
    from plotly.offline import get_plotlyjs

    folder = resources.files("shiq_bench.report")
    template, style, *scripts = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.html.j2", "report.css", *SCRIPTS)
    )
    plotly = get_plotlyjs()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    html = environment.from_string(template).render(
        policy=_policy([*scripts, plotly]),
        style=style,
        scripts=scripts,
        core=embedded(content.core),
        packs=content.packs,
        plotly=pack(plotly.encode()),
    )
    return html.encode()


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: no character in it means anything to HTML, or ends a line of a script.

    Raises:
        ValueError: NaN or infinity.
    """
    # ASCII alone: U+2028 and U+2029 are escaped with the rest.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """Content security policy: these scripts and no others, and nothing from anywhere."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
