"""Run records to tables: the reference beside every trained policy, with intervals and n.

:func:`compare` does the arithmetic once; :func:`terminal`, :func:`markdown` and :func:`csv` only
lay it out. The same records give the same bytes: nothing here reads a clock or a folder.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import floor, log10
from typing import TYPE_CHECKING, Any, Literal, get_args

from shiq_bench.api import Metric, suggest
from shiq_bench.records import Evaluation, RunRecord, RunSpec, Status, UserError, canonical_json, stable_hash
from shiq_bench.reporting.statistics import (
    Estimate,
    binomial_stderr,
    detectable_difference,
    mean_ci_t,
    paired_examples,
    t_interval,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, RenderableType

#: What a comparison can be printed as.
FORMATS = ("rich", "md", "csv")

#: Columns of a table that is not printed to a terminal.
WIDTH = 120

#: Below this many seeds no winner is marked.
BOLD_SEEDS = 6

#: Metrics every task's evaluation may hold; a task's own Metric of the same name comes first.
ENGINE_METRICS = (
    Metric("reward", "higher", "mean reward", headline=True),
    Metric("kl", "neither", "KL to reference (nats)"),
    Metric("kl_k1", "neither", "KL, k1 estimate (nats)"),
    Metric("kl_token", "neither", "KL a token (nats)"),
    Metric("length", "neither", "length (tokens)"),
    Metric("truncated", "lower", "truncated", percent=True),
    Metric("preference_accuracy", "higher", "preferences ordered right", percent=True),
    Metric("preference_margin", "higher", "margin, better minus worse (nats)"),
    Metric("logratio_data", "neither", "log-ratio to reference (nats)"),
)

#: Mode of evaluations on tasks of lm-eval, each a split of its own.
LM_EVAL = "lm-eval"

#: Marks a difference to the reference on an lm-eval task that lies below 0 with its whole interval.
DROP = " ▼"

# What the reference's numbers depend on. Runs that agree on these share one reference and one
# block of the table; everything else about a spec is what the block compares.
_CONDITIONS = (
    "task", "task_options", "model", "revision", "trust_remote_code", "precision", "engine",
    "max_tokens", "max_length", "eval_samples", "eval_seed", "eval_limit",
)  # fmt: skip

Place = tuple[str, str]  # split, mode


@dataclass(frozen=True)
class Column:
    """One policy: the reference, or the runs of one algorithm that differ in nothing but the seed.

    Attributes:
        label: ``reference``, or the algorithm with whatever tells it from another column of it.
        runs: every record behind the column, whatever its status, by seed.
        done: those that finished; means are over these.
    """

    label: str
    runs: tuple[RunRecord, ...]
    done: tuple[RunRecord, ...]

    def count(self, status: str) -> int:
        """How many of the runs ended (or stand) so."""
        return sum(r.status == status for r in self.runs)

    @property
    def consumed(self) -> dict[str, float]:
        """What a finished run used up, means over them, by name; what one of them did not count is left out."""
        spent = [r.consumed for r in self.done]
        names = [n for n in (spent[0] if spent else ()) if all(n in c for c in spent)]
        return {n: sum(c[n] for c in spent) / len(spent) for n in sorted(names)}

    @property
    def state(self) -> str:
        """``6 seeds, 1 diverged``: everything that was run, nothing dropped silently."""
        if not self.runs:
            return ""
        seeds = len(self.done)
        spec = self.runs[0].spec if seeds != 1 else self.done[0].spec
        first = f"{spec.seeds} instances" if spec.model == "table" else f"seed {spec.seed}"
        first = first if seeds == 1 else f"{seeds} seeds"
        rest = [f"{self.count(s)} {s}" for s in ("failed", "diverged", "started") if self.count(s)]
        return ", ".join([first, *rest] if seeds or not rest else rest)


@dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
        estimate: mean and interval, in the metric's unit (percent metrics are shares here).
        n: episodes (or trials of a rate, or prompts of a difference) of each seed behind it.
        over: what the interval is over; ``none`` where there is no interval.
    """

    estimate: Estimate
    n: tuple[float, ...]
    over: Literal["prompts", "seeds", "none"]


@dataclass(frozen=True)
class Block:
    """The runs that share one reference: one table.

    Attributes:
        columns: the reference first, then each algorithm.
        places: (split, mode) in the order the runs evaluated them.
        metrics: in the task's order.
        cells: (split, mode, label, metric) -> the policy's number.
        differences: the same keys -> trained minus reference.
        rates: names of metrics whose n counts trials.
        best: keys whose number beats the runner-up beyond doubt (see ``_winners``).
        drops: keys of differences on lm-eval tasks that are losses beyond doubt.
        captions: lines to print underneath.
    """

    title: str
    conditions: Mapping[str, Any]
    columns: tuple[Column, ...]
    places: tuple[Place, ...]
    metrics: tuple[Metric, ...]
    cells: Mapping[tuple[str, str, str, str], Cell]
    differences: Mapping[tuple[str, str, str, str], Cell]
    rates: frozenset[str]
    best: frozenset[tuple[str, str, str, str]]
    drops: frozenset[tuple[str, str, str, str]]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything a table shows, before it is laid out."""

    blocks: tuple[Block, ...]
    captions: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """One row a number, ordered task > split > mode > policy > metric, at full precision."""
        import pandas as pd

        return pd.DataFrame([row for block in self.blocks for row in _rows(block)], columns=list(_FRAME))


def compare(
    records: Iterable[RunRecord],
    metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]] = (),
    *,
    allow_mixed: bool = False,
) -> Comparison:
    """Group records into blocks and columns, and compute every cell.

    Args:
        records: in any order; the result does not depend on it.
        metrics: the tasks' metrics (by task name where there are several tasks), which give order,
            titles, units and direction; what they leave out follows by name.
        allow_mixed: compare runs of different versions of the source, and say so underneath.

    Raises:
        UserError: no records, one run given twice, or different source hashes.
    """
    records = sorted(records, key=lambda r: (r.spec.task, r.spec.algo, r.spec.seed, r.run_id))
    if not records:
        raise UserError("no run records to make a table of")
    twice = [run_id for run_id, count in Counter(r.run_id for r in records).items() if count > 1]
    if twice:
        raise UserError(f"run {min(twice)} is given twice; expected every run once")
    hashes = Counter(r.source_hash or "unknown" for r in records)
    if len(hashes) > 1 and not allow_mixed:
        counts = ", ".join(f"{h} ({n} runs)" for h, n in sorted(hashes.items()))
        raise UserError(f"runs of different versions of the source: {counts}; rerun them, or pass --allow-mixed")

    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        # A judge's own scale: what another one says is no number of the same table.
        judges = {"judges": record.judges_hash} if record.judges_hash else {}
        groups.setdefault(canonical_json(_conditions(record.spec) | judges), []).append(record)
    keys = sorted(groups, key=lambda k: (groups[k][0].spec.task, k))
    differing = _differing([_conditions(groups[k][0].spec) for k in keys])
    blocks = []
    for key in keys:
        task = groups[key][0].spec.task
        known = metrics.get(task, ()) if isinstance(metrics, Mapping) else metrics
        blocks.append(_block(groups[key], known, differing))

    captions = []
    if len(hashes) > 1:
        versions = ", ".join(sorted(hashes))
        captions.append(f"MIXED SOURCES: these runs come from different versions of the code: {versions}.")
    if any(r.git_dirty for r in records):
        captions.append("Some runs were made from a checkout with uncommitted changes.")
    return Comparison(tuple(blocks), tuple(captions))


def comparison_frame(
    records: Iterable[RunRecord],
    metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]] = (),
    *,
    allow_mixed: bool = False,
) -> pd.DataFrame:
    """:func:`compare` as a DataFrame; see :meth:`Comparison.frame`."""
    return compare(records, metrics, allow_mixed=allow_mixed).frame()


def run_table(record: RunRecord, metrics: Sequence[Metric] = (), *, console: Console | None = None) -> None:
    """Print the table of one run: reference and trained, every split, greedy and sampled."""
    print_table([record], metrics, console=console)


def print_table(
    records: Iterable[RunRecord],
    metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]] = (),
    *,
    format: str = "rich",
    allow_mixed: bool = False,
    console: Console | None = None,
) -> None:
    """:func:`compare`, and print it as ``rich``, ``md`` or ``csv``.

    A terminal decides how wide a rich table is; a pipe or a file gets 120 columns.

    Raises:
        UserError: as :func:`compare`, or another format.
    """
    from rich.console import Console

    if format not in FORMATS:
        raise UserError(f"no table format is called {format!r}{suggest(format, FORMATS)}")
    comparison = compare(records, metrics, allow_mixed=allow_mixed)
    console = console or Console()
    if format != "rich":
        console.file.write(markdown(comparison) if format == "md" else csv(comparison))
        return
    if not console.is_terminal and console.width < WIDTH:
        console = Console(file=console.file, width=WIDTH, color_system=None)
    console.print(terminal(comparison, console.width))


# --- arithmetic ----------------------------------------------------------------------------------


def _conditions(spec: RunSpec) -> dict[str, Any]:
    outcome = spec.outcome()
    # A table's run holds many instances: runs that share some are no independent seeds of each other.
    names = (*_CONDITIONS, "seed", "seeds") if spec.model == "table" else _CONDITIONS
    return {name: outcome[name] for name in names}


def _differing(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names whose values are not the same everywhere."""
    names = {name for s in settings for name in s}
    return {n for n in names if len({canonical_json(s[n]) if n in s else None for s in settings}) > 1}


def _flat(spec: RunSpec) -> dict[str, Any]:
    """What a column stands for: the algorithm's options and every other setting but the seed."""
    outcome = {k: v for k, v in spec.outcome().items() if k not in {*_CONDITIONS, "algo", "seed", "algo_options"}}
    return {**dict(spec.algo_options), **outcome}


def _columns(records: Sequence[RunRecord]) -> list[Column]:
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        outcome = {k: v for k, v in record.spec.outcome().items() if k != "seed"}
        groups.setdefault(stable_hash(outcome), []).append(record)
    columns = []
    for algo in sorted({r.spec.algo for r in records}):
        alike = [g for g in groups.values() if g[0].spec.algo == algo]
        names = sorted(_differing([_flat(g[0].spec) for g in alike]))
        for group in sorted(alike, key=lambda g: [_sortable(_flat(g[0].spec).get(n)) for n in names]):
            flat = _flat(group[0].spec)
            label = " ".join([algo, *(f"{n}={_plain(flat[n])}" for n in names if n in flat)])
            done = tuple(r for r in group if r.status == "done")
            columns.append(Column(label, tuple(group), done))
    return columns


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, (int, float)):
        return (0, float(value), "")
    return (1, 0.0, _plain(value))


def _plain(value: Any) -> str:
    return "none" if value == "" else value if isinstance(value, str) else canonical_json(value)


def _last(record: RunRecord, policy: str, place: Place) -> Evaluation | None:
    """The policy's evaluation at its last checkpoint: the rule by which every number is chosen."""
    found = [e for e in record.evaluations if e.policy == policy and (e.split, e.mode) == place]
    return max(found, key=lambda e: e.step, default=None)


def reference_of(records: Sequence[RunRecord], place: Place) -> tuple[Evaluation | None, int]:
    """The reference's evaluation, from a finished run where there is one, and how many disagree with it."""
    finished_first = sorted(records, key=lambda r: (r.status != "done", r.run_id))
    found = [e for r in finished_first if (e := _last(r, "reference", place)) is not None]
    if not found:
        return None, 0
    return found[0], sum(canonical_json(e.metrics) != canonical_json(found[0].metrics) for e in found)


def _checkpoint(evaluation: Evaluation | None, metric: str) -> Estimate | None:
    """One checkpoint's number with its interval over prompts; None where it was not measured."""
    if evaluation is None or metric not in evaluation.metrics:
        return None
    values = evaluation.metrics[metric]
    # No single episode has what was pooled from other metrics: all of them stand behind it.
    pooled = not any(metric in e for e in evaluation.examples)
    prompts = {
        e["prompt_id"] for e in evaluation.examples if pooled or (e.get(metric) is not None and e.get(f"{metric}/n", 1))
    }
    return t_interval(values.get("mean"), values.get("stderr"), values.get("n") or 0, len(prompts))


def cell_of(evaluations: Sequence[Evaluation | None], metric: str) -> Cell | None:
    """A column's number from one checkpoint of each of its finished runs; None where none measured it."""
    return _cell([e for x in evaluations if (e := _checkpoint(x, metric)) is not None], len(evaluations))


def _cell(estimates: Sequence[Estimate], seeds: int) -> Cell | None:
    """One seed: its interval over prompts. Several: the t interval over the seeds' means."""
    if not estimates:
        return None
    if seeds == 1:
        only = estimates[0]
        return Cell(only, (only.n,), "prompts" if only.half else "none")
    known = [e for e in estimates if e.mean is not None]
    across = mean_ci_t(e.mean for e in known)
    return Cell(across, tuple(e.n for e in known), "seeds" if across.half else "none")


def _block(
    records: Sequence[RunRecord],
    known: Sequence[Metric],
    differing: set[str],
) -> Block:
    columns = _columns(records)
    # In the order the runs evaluated them, splits kept together.
    seen = dict.fromkeys((e.split, e.mode) for r in records for e in r.evaluations)
    splits = list(dict.fromkeys(split for split, _ in seen))
    places = tuple(sorted(seen, key=lambda p: splits.index(p[0])))
    names = dict.fromkeys(name for r in records for e in r.evaluations for name in e.metrics)
    of_lm_eval = {name for r in records for e in r.evaluations if e.mode == LM_EVAL for name in e.metrics}
    metrics = _ordered(names, [*known, *(_of_lm_eval(n) for n in sorted(of_lm_eval - {m.name for m in known}))])
    # Chosen by the task before any run: the metrics that get a difference to the reference.
    paired = [m.name for m in metrics if m.headline]

    cells: dict[tuple[str, str, str, str], Cell] = {}
    differences: dict[tuple[str, str, str, str], Cell] = {}
    disagree = 0
    for place in places:
        reference, others = reference_of(records, place)
        disagree = max(disagree, others)
        for metric in metrics:
            if shown := _checkpoint(reference, metric.name):
                cells[(*place, "reference", metric.name)] = Cell(shown, (shown.n,), "prompts" if shown.half else "none")
            for column in columns:
                evaluations = [_last(r, "trained", place) for r in column.done]
                if cell := cell_of(evaluations, metric.name):
                    cells[(*place, column.label, metric.name)] = cell
                if reference is None or metric.name not in paired:
                    continue
                pairs = []
                for record, trained in zip(column.done, evaluations, strict=True):
                    own = _last(record, "reference", place) or reference
                    if trained is not None:
                        pairs.append(paired_examples(trained.examples, own.examples, metric.name))
                if cell := _cell([p for p in pairs if p.mean is not None], len(column.done)):
                    differences[(*place, column.label, metric.name)] = cell

    spec = records[0].spec
    title = " · ".join([
        spec.task,
        f"model {spec.model}",
        *(f"{k}={_plain(v)}" for k, v in sorted(spec.task_options.items()) if v != ""),
        *(f"{n}={_plain(getattr(spec, n))}" for n in sorted(differing - {"task", "task_options", "model"})),
    ])  # fmt: skip
    block = Block(
        title=title,
        conditions=_conditions(spec),
        columns=(Column("reference", (), ()), *columns),
        places=places,
        metrics=tuple(m for m in metrics if any(k[3] == m.name for k in cells)),
        cells=cells,
        differences=differences,
        rates=frozenset(
            n for n in names if any(f"{n}/n" in x for r in records for e in r.evaluations for x in e.examples)
        ),
        best=_winners(columns, places, metrics),
        drops=frozenset(k for k, c in differences.items() if k[1] == LM_EVAL and (c.estimate.high or 0.0) < 0),
        captions=(),
    )
    captions = tuple(_captions(block, records, disagree))
    return Block(**{**{f.name: getattr(block, f.name) for f in fields(block)}, "captions": captions})


def _ordered(names: Iterable[str], known: Sequence[Metric]) -> list[Metric]:
    """The task's metrics in its order, then the rest by name, the engine's own last."""
    engine = {m.name for m in ENGINE_METRICS}
    task = [m for m in known if m.name in names]
    listed = {m.name for m in task}
    rest = [n for n in names if n not in listed]
    own = [Metric(n, "neither", n.replace("_", " ")) for n in sorted(rest) if n not in engine]
    shared = [m for m in ENGINE_METRICS if m.name in rest]
    first = [m for m in shared if m.headline]
    return [*(first if not task else []), *task, *(first if task else []), *own, *(m for m in shared if m not in first)]


def _of_lm_eval(name: str) -> Metric:
    """What is known of a metric by lm-eval's name for it, ``metric,filter`` where answers are filtered."""
    base, title = name.partition(",")[0], name.replace("_", " ").replace(",", ", ")
    if base == "exact_match" or base.startswith("acc") or base.endswith("_acc"):
        return Metric(name, "higher", title, percent=True, headline=True)
    return Metric(name, "lower" if "perplexity" in base or base == "bits_per_byte" else "neither", title)


def _winners(columns: Sequence[Column], places: Sequence[Place], metrics: Sequence[Metric]) -> frozenset[Any]:
    """Cells to mark: best of several algorithms, and its lead over the runner-up is not noise.

    The lead is the mean difference over shared seeds; it counts when the two have at least
    BOLD_SEEDS of them and its t interval excludes 0.
    """
    best = set()
    for place in places:
        for metric in metrics:
            sign = {"higher": 1.0, "lower": -1.0}.get(metric.better)
            if sign is None:
                continue
            by_seed: dict[str, dict[int, float]] = {}
            for column in columns:
                found = {r.spec.seed: _checkpoint(_last(r, "trained", place), metric.name) for r in column.done}
                means = {s: sign * e.mean for s, e in found.items() if e is not None and e.mean is not None}
                if means:
                    by_seed[column.label] = means
            if len(by_seed) < 2:
                continue
            first, second = sorted(by_seed, key=lambda k: -sum(by_seed[k].values()) / len(by_seed[k]))[:2]
            shared = by_seed[first].keys() & by_seed[second].keys()
            lead = mean_ci_t(by_seed[first][s] - by_seed[second][s] for s in sorted(shared))
            if len(shared) >= BOLD_SEEDS and lead.low is not None and lead.low > 0:
                best.add((*place, first, metric.name))
    return frozenset(best)


# --- captions ------------------------------------------------------------------------------------


def _captions(block: Block, records: Sequence[RunRecord], disagree: int) -> Iterable[str]:
    trained = block.columns[1:]
    table = block.conditions["model"] == "table"
    numbers = [*block.cells.values(), *block.differences.values()]
    over = {c.over for k, c in block.cells.items() if k[2] != "reference"}
    if table:
        yield (
            "±: 95% interval over instances, Student's t; every number of an instance is exact. "
            "n: instances, each with data and training of its own. Minus reference: paired by instance. "
            "Own fixed point: where the loss leads with exact expectations; sampled data lead elsewhere."
        )
    elif any(c.estimate.half for c in numbers):
        text = "±: 95% interval"
        if "seeds" in over:
            text += (
                ". Trained, several seeds: Student's t over the seeds' means. Reference: one checkpoint, over prompts"
            )
        else:
            text += " over prompts"
        text += ", errors clustered by prompt"
        if "prompts" in over:
            text += "; so is a single seed, and" if "seeds" in over else ";"
            text += " it does not cover other training seeds"
        text += "."
        if any(c.estimate.mean is not None and not c.estimate.half for c in numbers):
            text += " No ±: fewer than two of them, or all alike, which bounds nothing."
        yield text
    if numbers and not table:
        text = "n: episodes of one seed, or trials (turns, tokens) where the metric is a rate over them"
        if _uneven(block):
            text += "; a cell with another n has it in brackets"
        if block.differences:
            text += ". Minus reference: paired by prompt, n counts prompts"
            text += ", interval over the seeds' differences on these prompts" if "seeds" in over else ""
        yield text + "."
    idle = sum(record.spec.steps == 0 for record in records)
    if idle and not table:
        yield f"Not trained (steps=0): {idle} of {len(records)} runs; of those the reference alone was evaluated."
    if block.best:
        yield (
            "Bold, *: best of the methods; its lead on the runner-up has an interval above 0, "
            f"over {BOLD_SEEDS} shared seeds or more."
        )
    if any(mode == LM_EVAL for _, mode in block.places):
        yield "lm-eval: without a chat template; documents stand in the place of prompts."
    for task, mode, label, name in sorted(block.drops):
        metric = next(m for m in block.metrics if m.name == name)
        e = block.differences[(task, mode, label, name)].estimate
        assert e.mean is not None and e.low is not None and e.high is not None
        yield (
            f"Drop{DROP}, {label}, {task}, {metric.title}: {100 * e.mean:+.1f} points to the reference, 95% interval "
            f"{100 * e.low:+.1f} to {100 * e.high:+.1f}."
        )
    ends = {c.label: [e.step for r in c.done for e in r.evaluations if e.policy == "trained"] for c in trained}
    steps = {label: max(found) for label, found in ends.items() if found}
    if steps:
        at = set(steps.values())
        which = f"step {at.pop()}" if len(at) == 1 else ", ".join(f"{label} step {s}" for label, s in steps.items())
        yield f"Checkpoint: the last one ({which})."
    shown = {m.name for m in block.metrics}
    if shown & {"kl", "kl_k1", "kl_token"}:
        text = "KL: policy to reference, exact per-position, nats a dialogue, on its own samples at temperature 1"
        yield text + ("; k1 is the sampled log-ratio, its check." if "kl_k1" in shown else ".")
    if not table:
        yield from _cut(block)
    if block.conditions["model"] == "tiny":
        yield "Model: tiny, trained from scratch on the spot for this task; it says nothing about larger models."
    for metric in block.metrics:
        if metric.headline and metric.percent and metric.name not in block.rates:
            yield from _detectable(block, metric.name)
    yield from _settings(trained)
    for column in trained:
        if spent := column.consumed:
            means = (f"{mean:,.0f} {n.replace('_', ' ')}" for n, mean in spent.items())
            each = ", an instance" if table else ""
            runs = ", mean of a run" if len(column.done) > 1 else ""
            yield f"Consumed, {column.label}{each}{runs}: {', '.join(means)}."
    if disagree:
        yield f"{disagree} runs measured the reference differently under the same settings; the first is shown."
    for column in trained:
        for text, count in Counter(d for r in column.runs for d in dict.fromkeys(r.deviations)).items():
            share = f" ({count} of {len(column.runs)} runs)" if len(column.runs) > 1 else ""
            yield f"Deviation, {column.label}{share}: {text}"
    for record in records:
        if record.status != "done":
            why = f": {record.error.splitlines()[0]}" if record.error else ""
            yield f"Not in the means: {record.run_id}, {record.status}{why}"
    for column in trained:
        if len(column.runs) == 1:
            yield f"Run: {column.runs[0].run_id}"
        else:
            prefix = f"{column.runs[0].spec.algo}-{column.runs[0].spec.task}-"
            yield f"Runs of {column.label}: {prefix}{{{','.join(r.run_id.removeprefix(prefix) for r in column.runs)}}}"


def _uneven(block: Block) -> bool:
    """Whether policies of one place and metric differ in n."""
    for values in (block.cells, block.differences):
        seen: dict[tuple[str, str, str], set[str]] = {}
        for (split, mode, _, metric), cell in values.items():
            if metric in block.rates and values is block.cells:
                continue
            seen.setdefault((split, mode, metric), set()).add(_n(cell))
        if any(len(n) > 1 for n in seen.values()):
            return True
    return False


def _cut(block: Block) -> Iterable[str]:
    rates = [m for m in block.metrics if m.name.startswith(("truncated", "forced"))]
    if not block.cells:
        return
    if not rates:
        yield "Cut by a limit: not recorded."
        return
    parts = []
    for metric in rates:
        found = [(c.estimate.mean, k) for k, c in block.cells.items() if k[3] == metric.name]
        known = [(mean, key) for mean, key in found if mean is not None]
        if not known:
            continue
        mean, (split, mode, label, _) = max(known, key=lambda f: f[0])
        value = f"{100 * mean:.1f}%" if metric.percent else f"{mean:.3g}"
        parts.append(
            f"{metric.title} at most {value} ({label}, {split}, {mode})" if mean else f"{metric.title} nowhere"
        )
    if parts:
        yield f"Cut by a limit, and kept in every mean: {'; '.join(parts)}."


def _detectable(block: Block, name: str) -> Iterable[str]:
    """Minimum detectable effect of a rate: what the number of prompts cannot resolve."""
    title = next((m.title for m in block.metrics if m.name == name), name)
    for split in dict.fromkeys(split for split, _ in block.places):
        for mode in ("greedy", "sampled"):
            cell = block.cells.get((split, mode, "reference", name))
            if cell is None or cell.estimate.mean is None or cell.estimate.units < 2:
                continue
            n = cell.estimate.units
            # A rate of 0 or 1 has no binomial spread to go by: use (x + 1) / (n + 2).
            rate = cell.estimate.mean if 0 < cell.estimate.mean < 1 else (cell.estimate.mean * n + 1) / (n + 2)
            error = binomial_stderr(rate, n)
            assert error is not None
            yield (
                f"Minimum detectable effect, {title}, {split}: {100 * detectable_difference(error):.1f} points between "
                f"two unpaired policies (80% power; {n} prompts near {100 * rate:.1f}% have a standard error of "
                f"{100 * error:.1f})."
            )
            break


def _settings(columns: Sequence[Column]) -> Iterable[str]:
    """Options of every column, and the shared settings that are not equal across them."""
    specs = {c.label: c.runs[0].spec for c in columns}
    options = {k: " ".join(f"{n}={_plain(v)}" for n, v in sorted(s.algo_options.items())) for k, s in specs.items()}
    if any(options.values()):
        yield "Options: " + "; ".join(f"{k}: {v or 'none'}" for k, v in options.items()) + "."
    settings = {k: {n: v for n, v in _flat(s).items() if n not in s.algo_options} for k, s in specs.items()}
    for name in sorted(_differing(list(settings.values()))):
        values = ", ".join(f"{_plain(v[name])} for {label}" for label, v in settings.items())
        yield f"Not the same everywhere: {name} is {values}."


# --- layout shared by the renderers --------------------------------------------------------------

_ARROW = {"higher": " ↑", "lower": " ↓", "neither": ""}
_EMPTY = "–"


@dataclass(frozen=True)
class _Line:
    """A laid-out row: its label, one text a column, and which are winners or differences."""

    label: str
    texts: tuple[str, ...]
    bold: tuple[bool, ...]
    difference: bool = False


@dataclass(frozen=True)
class _Panel:
    """A table that fits: header (split, policy, state of the runs) a column, and rows."""

    title: str
    headers: tuple[tuple[str, str, str], ...]
    lines: tuple[_Line, ...]

    @property
    def heads(self) -> list[list[str]]:
        """Header lines of the terminal: a split once, then the label's words and the state's parts."""
        splits = len({h[0] for h in self.headers if h[0]}) > 1
        first = [[h[0]] if splits else [] for h in self.headers]
        labels = [h[1].split(" ") for h in self.headers]
        states = [h[2].split(", ") if h[2] else [] for h in self.headers]
        words, parts = max(map(len, labels)), max(map(len, states))
        # A space and not nothing: the terminal would drop an empty line and shift the rest.
        return [
            [*(t or " " for t in f), *w, *[" "] * (words - len(w)), *s, *[" "] * (parts - len(s))]
            for f, w, s in zip(first, labels, states, strict=True)
        ]

    @property
    def breaks(self) -> list[int]:
        """Columns with which a further split begins; the terminal leaves a gap before them."""
        return [i for i, header in enumerate(self.headers) if header[0] and i]

    @property
    def marked(self) -> bool:
        """Whether any cell is a winner, which takes a character in the terminal."""
        return any(any(line.bold) for line in self.lines)

    @property
    def width(self) -> int:
        """Characters it takes in the terminal."""
        label = max((len(line.label) for line in self.lines), default=0)
        columns = [
            max(len(t) for t in [*head, *(line.texts[i] for line in self.lines)]) for i, head in enumerate(self.heads)
        ]
        return label + sum(columns) + (2 + self.marked) * len(columns) + 2 * len(self.breaks)


def _decimals(block: Block, metric: Metric) -> int:
    """Decimals that give the widest interval two digits, or the largest mean three without one."""
    if metric.percent:
        return 1
    estimates = [c.estimate for k, c in block.cells.items() if k[3] == metric.name]
    halves = [e.half for e in estimates if e.half]
    largest = max(halves or [abs(e.mean) for e in estimates if e.mean], default=0.0)
    return min(5, max(0, (1 if halves else 2) - floor(log10(largest)))) if largest else 1


def _text(cell: Cell | None, metric: Metric, decimals: int, signed: bool = False) -> str:
    if cell is None or cell.estimate.mean is None:
        return _EMPTY
    scale = 100 if metric.percent else 1
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    mean = round(scale * cell.estimate.mean, decimals) + 0.0
    text = f"{mean:+.{decimals}f}" if signed else f"{mean:.{decimals}f}"
    half = cell.estimate.half
    return f"{text} ± {scale * half:.{decimals}f}" if half else text


def _n(cell: Cell | None) -> str:
    """``160`` when every seed has as many, else ``150-160``."""
    if cell is None or not cell.n:
        return ""
    low, high = min(cell.n), max(cell.n)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def metric_title(metric: Metric) -> str:
    """What it is, in which unit, and which way is better."""
    return f"{metric.title}{' (%)' if metric.percent else ''}{_ARROW[metric.better]}"


def _panel(block: Block, title: str, places: Sequence[Place], columns: Sequence[Column]) -> _Panel:
    headers: list[tuple[str, str, str]] = []
    for split, _ in places:
        for i, column in enumerate(columns):
            headers.append((split if i == 0 else "", column.label, column.state))
        headers.append(("", "n", ""))
    lines = []
    for metric in block.metrics:
        for values, difference in ((block.cells, False), (block.differences, True)):
            row = [values.get((*place, c.label, metric.name)) for place in places for c in columns]
            if not any(row):
                continue
            decimals = _decimals(block, metric)
            texts: list[str] = []
            bold: list[bool] = []
            for place in places:
                cells = [values.get((*place, c.label, metric.name)) for c in columns]
                counts = Counter(_n(c) for c in cells if c is not None)
                # What most columns have, the larger on a tie; trials differ everywhere, so their range.
                usual = max(counts, key=lambda n: (counts[n], float(n.split("-")[-1] or 0)), default="")
                trials = metric.name in block.rates and not difference
                if trials and len(counts) > 1:
                    every = [n for c in cells if c is not None for n in c.n]
                    usual = f"{min(every):g}-{max(every):g}"
                for column, cell in zip(columns, cells, strict=True):
                    text = _text(cell, metric, decimals, signed=difference)
                    if difference and (*place, column.label, metric.name) in block.drops:
                        text += DROP
                    short = cell is not None and column.done and len(cell.n) < len(column.done)
                    if cell is not None and short:
                        text += f" ({len(cell.n)} of {len(column.done)} seeds)"
                    elif cell is not None and _n(cell) != usual and not trials:
                        text += f" ({_n(cell)})"
                    texts.append("" if difference and column.label == "reference" else text)
                    bold.append(not difference and (*place, column.label, metric.name) in block.best)
                texts.append(usual)
                bold.append(False)
            label = "  minus reference" if difference else metric_title(metric)
            lines.append(_Line(label, tuple(texts), tuple(bold), difference))
    return _Panel(title, tuple(headers), tuple(lines))


def _panels(block: Block, width: int | None) -> list[_Panel]:
    """One panel a mode with the splits side by side; where that is too wide, one a split and mode;
    where that still is, the policies in several, the reference in the first."""
    modes = list(dict.fromkeys(mode for _, mode in block.places))
    beside = [
        _panel(block, _mode(block, mode), [p for p in block.places if p[1] == mode], block.columns) for mode in modes
    ]
    if width is None or all(p.width <= width for p in beside):
        return beside
    panels = []
    for place in block.places:
        title = place_title(block, place)
        columns = list(block.columns)
        while columns:
            take = len(columns)
            while take > 1 and _panel(block, title, [place], columns[:take]).width > width:
                take -= 1
            panels.append(_panel(block, title, [place], columns[:take]))
            columns = columns[take:]
    return panels


def texts(block: Block, differences: bool = False) -> dict[tuple[str, str, str, str], str]:
    """Every cell (or every difference to the reference) as all renderers write it: ``0.28 ± 0.18``, percent as such."""
    metrics = {m.name: (m, _decimals(block, m)) for m in block.metrics}
    values = block.differences if differences else block.cells
    return {
        key: _text(cell, *metrics[key[3]], signed=differences) + (DROP if differences and key in block.drops else "")
        for key, cell in values.items()
    }


def place_title(block: Block, place: Place) -> str:
    """Split and mode, in words."""
    return f"{place[0]}, {_mode(block, place[1])}"


def _mode(block: Block, mode: str) -> str:
    if mode == "stored":
        return "stored answers, by the policy's implicit reward"
    if mode != "sampled":
        return mode
    return f"sampled, temperature 1, {block.conditions['eval_samples']} a prompt"


# --- renderers -----------------------------------------------------------------------------------


def terminal(comparison: Comparison, width: int = WIDTH) -> RenderableType:
    """For a rich console: tables that fit the width, captions underneath."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for block in comparison.blocks:
        parts.append(Text(block.title, style="bold cyan"))
        for panel in _panels(block, width):
            table = Table(
                title=Text(panel.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False,
                pad_edge=False, padding=(0, 1, 0, 0), header_style="",
            )  # fmt: skip
            table.add_column("")
            for i, ((split, policy, state), head) in enumerate(zip(panel.headers, panel.heads, strict=True)):
                lines = Text()
                for line_number, text in enumerate(head):
                    kind = "bold magenta" if text == split else "dim" if text in state else "bold"
                    lines.append(("\n" if line_number else "") + text, style=kind)
                if i in panel.breaks:
                    table.add_column("")
                # Folding a number that does not fit keeps its digits; cutting it would not.
                table.add_column(lines, justify="right", overflow="fold", style="dim" if policy == "n" else "")
            for line in panel.lines:
                style = "italic" if line.difference else ""
                texts = [
                    Text(t + ("*" if b else " " if panel.marked else ""), style="bold" if b else style)
                    for t, b in zip(line.texts, line.bold, strict=True)
                ]
                for i in reversed(panel.breaks):
                    texts.insert(i, Text(""))
                table.add_row(Text(line.label, style=style), *texts)
            parts += [Text(""), table]
        if not block.places:
            parts.append(Text("no evaluations yet", style="dim"))
        parts.append(Text(""))
        parts += [Text(line, style="dim") for line in block.captions]
        parts.append(Text(""))
    parts += [Text(line, style="bold yellow") for line in comparison.captions]
    return Group(*parts)


def terminal_text(comparison: Comparison, width: int = WIDTH) -> str:
    """What :func:`terminal` prints, without colour."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(terminal(comparison, width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip() + "\n"


def markdown(comparison: Comparison) -> str:
    """Pipe tables, one a mode, with the captions as a list underneath."""
    out: list[str] = []
    for block in comparison.blocks:
        out += [f"### {block.title}", ""]
        for panel in _panels(block, None):
            split = ""
            heads = []
            for name, policy, state in panel.headers:
                split = name or split
                heads.append(f"{split}: {policy}{f' ({state})' if state else ''}" if policy != "n" else "n")
            out += [f"**{panel.title}**", "", _pipe(["", *heads]), "|:--|" + "--:|" * len(heads)]
            for line in panel.lines:
                texts = [f"**{t}**" if b else t for t, b in zip(line.texts, line.bold, strict=True)]
                label = f"*{line.label.strip()}*" if line.difference else line.label
                out.append(_pipe([label, *texts]))
            out.append("")
        if not block.places:
            out += ["No evaluations yet.", ""]
        out += [f"- {_escape(line)}" for line in block.captions] + [""]
    out += [f"- {_escape(line)}" for line in comparison.captions]
    return "\n".join(out).rstrip() + "\n"


def csv(comparison: Comparison) -> str:
    """:meth:`Comparison.frame` as text, ten significant digits; undefined is an empty field."""
    text: str = comparison.frame().to_csv(index=False, float_format="%.10g", lineterminator="\n")
    return text


def _escape(text: str) -> str:
    for character in "\\|*_`<":
        text = text.replace(character, f"\\{character}")
    return text


def _pipe(texts: Sequence[str]) -> str:
    return "| " + " | ".join(t.replace("|", "\\|") for t in texts) + " |"


# --- the frame -----------------------------------------------------------------------------------

_FRAME = (
    "task", "conditions", "split", "mode", "policy", "metric", "title", "kind", "unit", "better",
    "mean", "low", "high", "stderr", "interval_over", "n", "n_max", "seeds", *get_args(Status), "step", "best",
    "run_ids",
)  # fmt: skip


def _rows(block: Block) -> Iterable[dict[str, Any]]:
    defaults = {f.name: f.default for f in fields(RunSpec) if f.default is not MISSING}
    plain = {k: v for k, v in block.conditions.items() if k not in {"task", "task_options"} and v != defaults[k]}
    told = {"model": block.conditions["model"], **block.conditions["task_options"], **plain}
    conditions = " ".join(f"{k}={_plain(v)}" for k, v in told.items())
    for split, mode in block.places:
        for column in block.columns:
            steps = [x.step for r in column.done if (x := _last(r, "trained", (split, mode))) is not None]
            for metric in block.metrics:
                key = (split, mode, column.label, metric.name)
                for kind, values in (("value", block.cells), ("minus_reference", block.differences)):
                    cell = values.get(key)
                    if cell is None and (kind != "value" or column.done or not column.runs):
                        continue  # not measured here; only columns without any finished run keep empty rows
                    e = cell.estimate if cell else Estimate(None, None, None, None, 0, 0)
                    yield {
                        "task": block.conditions["task"], "conditions": conditions, "split": split, "mode": mode,
                        "policy": column.label, "metric": metric.name, "title": metric.title, "kind": kind,
                        "unit": "share" if metric.percent else "", "better": metric.better,
                        "mean": e.mean, "low": e.low, "high": e.high, "stderr": e.stderr,
                        "interval_over": cell.over if cell else "none", "n": min(cell.n, default=0) if cell else 0,
                        "n_max": max(cell.n, default=0) if cell else 0,
                        "seeds": len(cell.n) if cell and column.runs else 0,
                        **{status: column.count(status) for status in get_args(Status)},
                        "step": max(steps, default=0), "best": key in block.best and kind == "value",
                        "run_ids": " ".join(r.run_id for r in column.runs),
                    }  # fmt: skip
