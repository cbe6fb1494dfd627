"""Two runs, or two methods over their shared seeds, side by side: what differs, by how much, and on which prompts.

Everything is a difference of the first minus the second, on the prompts both answered. What a model wrote is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.escaping import visible
from shiq_bench.records.hashing import canonical_json
from shiq_bench.records.provenance import code_versions
from shiq_bench.records.record import Evaluation, Metric, RunRecord
from shiq_bench.records.spec import conditions
from shiq_bench.report import render
from shiq_bench.report.blocks import Cell, Place, differing, flat, last, named, plain
from shiq_bench.report.comparison import difference_of, known_metrics, mixed_sources, places_of, unit_differences
from shiq_bench.report.document import Document, Header, Row, Section, Table, simple_table
from shiq_bench.report.format import EMPTY, decimals, metric_label, p_value, plus_minus
from shiq_bench.stats.clustered import prompts_with, summarise
from shiq_bench.stats.intervals import Estimate, mean_ci_t
from shiq_bench.stats.tests import paired_p

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

#: Lines that either side of an example may take, and characters of a line where no terminal says how many.
LINES, CHARACTERS = 20, 100

FRAME = (
    "one", "other", "split", "mode", "metric", "mean_one", "mean_other", "difference", "low", "high", "stderr",
    "interval_over", "p", "prompts", "seeds",
)  # fmt: skip

Runs = Sequence[RunRecord]
Pairs = Sequence[tuple[Evaluation, Evaluation]]
Over = Literal["seeds and prompts", "seeds", "prompts", "instances", "none"]


@dataclass(frozen=True)
class Difference:
    """One metric on one split in one mode.

    Attributes:
        one, other: the two means over the shared prompts, in the metric's unit; None where undefined.
        p: two-sided, of no difference, see :func:`shiq_bench.stats.tests.paired_p`.
        prompts: shared, the fewest of any seed.
        seeds: pairs of runs behind it, which both measured it.
    """

    split: str
    mode: str
    metric: Metric
    one: float | None
    other: float | None
    difference: Estimate
    over: Over
    p: float | None
    prompts: int
    seeds: int


@dataclass(frozen=True)
class Example:
    """A prompt on which the two differ: by how much, and what each of them did, one pair of runs for all."""

    split: str
    mode: str
    prompt: str
    difference: float
    one: Mapping[str, Any]
    other: Mapping[str, Any]


@dataclass(frozen=True)
class Versus:
    """Everything a comparison of two shows.

    Attributes:
        settings: name, the first's value, the second's: only where they differ.
        by: metric by which examples were chosen.
    """

    title: str
    one: str
    other: str
    rows: tuple[Difference, ...]
    settings: tuple[tuple[str, str, str], ...]
    examples: tuple[Example, ...]
    by: Metric | None
    captions: tuple[str, ...]


def select(records: Runs, name: str, task: str = "") -> list[RunRecord]:
    """The runs that a name stands for: a run id, or ``algo``, or ``algo:key=value,key=value``.

    Raises:
        UserError: none is called so, or those that are belong to several tasks or have several settings.
    """
    if exact := [r for r in records if r.run_id == name]:
        return exact
    algo, _, given = name.partition(":")
    found = [r for r in records if r.spec.algo == algo and task in ("", r.spec.task)]
    if not found:
        if elsewhere := sorted({r.spec.task for r in records if r.spec.algo == algo}):
            raise UserError(f"{name!r} has no run on {task}; it has some on {', '.join(elsewhere)}")
        names = [*dict.fromkeys(r.spec.algo for r in records), *(r.run_id for r in records)]
        raise UserError(
            f"no run, and no method{f' on {task}' if task else ''}, is called {name!r}{suggest(name, names)}"
        )
    tasks = sorted({r.spec.task for r in found})
    if len(tasks) > 1:
        raise UserError(f"{name!r} was run on {', '.join(tasks)}: say which with --task")
    for part in filter(None, given.split(",")):
        key, equals, value = part.partition("=")
        known = sorted({k for r in found for k in _settings(r)})
        if not equals or key not in known:
            raise UserError(f"{name!r}: expected key=value of a setting, and this is {part!r}{suggest(key, known)}")
        there = sorted({plain(_settings(r).get(key)) for r in found})
        found = [r for r in found if _same(_settings(r).get(key), value)]
        if not found:
            raise UserError(f"no run of {algo} has {key}={value}; there is {', '.join(there)}")
    apart = differing([{k: v for k, v in _settings(r).items() if k != "seed"} for r in found])
    if apart:
        key = min(apart)
        there = sorted({plain(_settings(r).get(key)) for r in found})
        raise UserError(f"{name!r} has runs of different settings, {key} is {', '.join(there)}: say {algo}:{key}=...")
    return sorted(found, key=lambda r: r.spec.seed)


def versus(
    one: Runs,
    other: Runs,
    names: tuple[str, str],
    metrics: Sequence[Metric] = (),
    *,
    count: int = 5,
    allow_mixed: bool = False,
) -> Versus:
    """Compare two selections, called by those names.

    Args:
        metrics: the task's, which give order, titles and units.
        count: examples at most.
        allow_mixed: compare runs of different versions of the source, and say so.

    Raises:
        UserError: other tasks, conditions or judges, mixed sources, no finished run, or no seed in common.
    """
    _check(one, other, names, allow_mixed)
    pairs = _paired_runs(one, other, names)
    table = pairs[0][0].spec.model == "table"
    rows: list[Difference] = []
    found: dict[Place, Pairs] = {}
    for place in places_of(e for a, _ in pairs for e in a.evaluations if e.policy == "trained"):
        both = [(last(a, "trained", place), last(b, "trained", place)) for a, b in pairs]
        evaluated = [(a, b) for a, b in both if a is not None and b is not None]
        if evaluated:
            found[place] = evaluated
            measured = {name for a, b in evaluated for name in a.metrics.keys() & b.metrics.keys()}
            rows += [_row(place, metric, evaluated, table) for metric in known_metrics(sorted(measured), metrics)]
    rows = [r for r in rows if r.one is not None or r.other is not None]
    by = next((r.metric for r in rows if r.metric.headline and r.difference.mean is not None), None)
    return Versus(
        title=f"{names[0]} minus {names[1]} · {pairs[0][0].spec.task} · model {pairs[0][0].spec.model}",
        one=names[0],
        other=names[1],
        rows=tuple(rows),
        settings=tuple(_unlike(pairs[0])),
        examples=tuple(_examples(found, by, count)) if by else (),
        by=by,
        captions=tuple(_captions(one, other, pairs, rows)),
    )


def _settings(record: RunRecord) -> dict[str, Any]:
    outcome = record.spec.outcome()
    rest = {k: v for k, v in outcome.items() if k not in ("algo_options", "task_options")}
    return {**rest, **named(record.spec, "task"), **named(record.spec)}


def _same(value: Any, text: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    return plain(value) == text


def _check(one: Runs, other: Runs, names: tuple[str, str], allow_mixed: bool) -> None:
    if {r.run_id for r in one} & {r.run_id for r in other}:
        raise UserError(f"{names[0]} and {names[1]} have a run in common: nothing can be learnt from comparing it")
    both = [*one, *other]
    found = [conditions(r.spec) | {"judges": r.judges_hash} for r in both]
    if unlike := differing(found):
        key = "task" if "task" in unlike else min(unlike)
        there = list(dict.fromkeys(plain(c.get(key)) for c in found))
        raise UserError(f"{names[0]} and {names[1]} cannot be compared: {key} is {' and '.join(there)}")
    versions = code_versions(both)
    if versions and not allow_mixed:
        raise UserError(
            f"runs of different versions of the source, {'; '.join(versions)}: add --allow-mixed to compare them"
        )
    for name, runs in zip(names, (one, other), strict=True):
        if not any(r.status == "done" for r in runs):
            raise UserError(f"{name} has no finished run: {runs[0].run_id} is {runs[0].status}")


def _paired_runs(one: Runs, other: Runs, names: tuple[str, str]) -> list[tuple[RunRecord, RunRecord]]:
    """Finished runs of equal seeds; two single runs are a pair whatever their seeds."""
    a, b = ({r.spec.seed: r for r in runs if r.status == "done"} for runs in (one, other))
    if shared := sorted(a.keys() & b.keys()):
        return [(a[seed], b[seed]) for seed in shared]
    if len(a) == len(b) == 1:
        return [(next(iter(a.values())), next(iter(b.values())))]
    raise UserError(f"no seed in common: {names[0]} has {sorted(a)}, {names[1]} has {sorted(b)}")


# --- numbers -------------------------------------------------------------------------------------


def _row(place: Place, metric: Metric, pairs: Pairs, table: bool) -> Difference:
    name = metric.name
    means = [(_shared_mean(a, b, name), _shared_mean(b, a, name)) for a, b in pairs]
    one, other = (mean_ci_t(m[i] for m in means).mean for i in (0, 1))
    shared = [len(prompts_with(a.examples, name) & prompts_with(b.examples, name)) for a, b in pairs]
    cell = difference_of(pairs, name, len(pairs)) or Cell(mean_ci_t(()), (), "none")
    units = unit_differences(pairs, name, table) if table or len(pairs) > 1 else []
    over: Over = "instances" if table and cell.over == "prompts" else cell.over
    seeds = sum(m is not None for m, _ in means)
    p = paired_p(cell.estimate, units)
    return Difference(*place, metric, one, other, cell.estimate, over, p, min(filter(None, shared), default=0), seeds)


def _shared_mean(a: Evaluation, b: Evaluation, metric: str) -> float | None:
    """The first's pooled mean over the prompts on which both have the metric."""
    shared = prompts_with(b.examples, metric)
    return summarise([e for e in a.examples if e["prompt_id"] in shared], [metric])[metric]["mean"]


def _by_prompt(a: Evaluation, b: Evaluation, metric: str) -> dict[str, float]:
    """Prompt -> difference of the two means over its episodes, by prompt."""
    found: list[dict[str, list[float]]] = [{}, {}]
    for values, evaluation in zip(found, (a, b), strict=True):
        for example in evaluation.examples:
            x, trials = example.get(metric), example.get(f"{metric}/n", 1)
            if x is not None and trials:
                values.setdefault(str(example["prompt_id"]), []).append(float(x) / trials)
    return {k: float(np.mean(found[0][k]) - np.mean(found[1][k])) for k in sorted(found[0].keys() & found[1].keys())}


def _examples(found: Mapping[Place, Pairs], by: Metric, count: int) -> list[Example]:
    """Where they differ most by a metric, averaged over seeds, and the pair of runs where that shows most."""
    out = []
    for place, pairs in found.items():
        by_pair = [_by_prompt(a, b, by.name) for a, b in pairs]
        for prompt in sorted({p for d in by_pair for p in d}):
            differences = [d[prompt] for d in by_pair if prompt in d]
            mean = float(np.mean(differences))
            a, b = max(
                ((pair, d[prompt]) for pair, d in zip(pairs, by_pair, strict=True) if prompt in d),
                key=lambda item: item[1] * (1 if mean >= 0 else -1),
            )[0]
            if mean:
                out.append(Example(*place, prompt, mean, *(_shown(e, prompt, by) for e in (a, b))))
    return sorted(out, key=lambda e: (-abs(e.difference), e.split, e.mode, e.prompt))[:count]


def _shown(evaluation: Evaluation, prompt: str, by: Metric) -> Mapping[str, Any]:
    """An episode of a prompt: the one whose value is nearest to the mean of its episodes."""
    episodes = [e for e in evaluation.examples if str(e["prompt_id"]) == prompt and e.get(by.name) is not None]
    mean = float(np.mean([e[by.name] for e in episodes]))
    return min(episodes, key=lambda e: abs(e[by.name] - mean))


def _unlike(pair: tuple[RunRecord, RunRecord]) -> list[tuple[str, str, str]]:
    a, b = ({"algo": r.spec.algo, **flat(r.spec), "seed": r.spec.seed} for r in pair)
    unlike = differing([a, b])
    one, other = ({n: plain(s[n]) if n in s else EMPTY for n in a | b} for s in (a, b))
    return [(n, one[n], other[n]) for n in one if n in unlike]


def _captions(one: Runs, other: Runs, pairs: Sequence[Sequence[RunRecord]], rows: Sequence[Difference]) -> list[str]:
    said: dict[Over, str] = {
        "instances": "Intervals: Student's t over instances.",
        "seeds and prompts": "Intervals over seeds and prompts: t from their variance components.",
        "seeds": "Intervals over seeds alone, where not every seed has every prompt's number: Student's t over the "
        "seeds' differences on these prompts, which does not cover others.",
        "prompts": "Intervals over prompts: paired, clustered by prompt. One pair of runs, so other training seeds are "
        "not covered.",
    }
    out = [said[over] for over in dict.fromkeys(r.over for r in rows) if over in said]
    if rows:
        out.append(
            "p: the t test of the interval beside it (sign-flip where all differences are alike), not adjusted for the "
            "number of rows. Checkpoint: the last one."
        )
    if len(pairs) == 1 and pairs[0][0].spec.seed != pairs[0][1].spec.seed:
        out.append("The two have different seeds.")
    used = {r.run_id for pair in pairs for r in pair}
    for record in (*one, *other):
        if record.run_id not in used:
            why = record.status if record.status != "done" else "its seed is not shared"
            out.append(f"Left out: {record.run_id}: {why}.")
    out += mixed_sources((*one, *other))
    out.append(f"Runs: {', '.join(a.run_id for a, _ in pairs)} against {', '.join(b.run_id for _, b in pairs)}.")
    return out


# --- what is shown ------------------------------------------------------------------------------


def print_versus(versus: Versus, format: str, console: Console) -> None:
    """Print it in one of :data:`shiq_bench.report.render.FORMATS`, or raise UserError."""
    made = frame(versus) if format == "csv" else document(versus, render.room(format, console))
    render.show(made, format, console)


def frame(versus: Versus) -> pd.DataFrame:
    """One row a metric, at full precision."""
    import pandas as pd

    rows = []
    for row in versus.rows:
        d = row.difference
        about = (versus.one, versus.other, row.split, row.mode, row.metric.name, row.one, row.other)
        rows.append((*about, d.mean, d.low, d.high, d.stderr, row.over, row.p, row.prompts, row.seeds))
    return pd.DataFrame(rows, columns=list(FRAME))


def document(versus: Versus, width: int | None = None) -> Document:
    """The numbers, what differs in the settings, and the examples side by side, shortened to fit the width."""
    names = (versus.one, versus.other)
    tables = []
    for place in dict.fromkeys((r.split, r.mode) for r in versus.rows):
        rows = [_row_of(r) for r in versus.rows if (r.split, r.mode) == place]
        headers = map(Header, (*names, "difference", "p", "prompts", "seeds"))
        tables.append(Table(f"{place[0]}, {place[1]}", tuple(headers), tuple(rows)))
    if versus.settings:
        tables.append(simple_table("settings that differ", ("", *names), versus.settings))
    sections = [Section(versus.title, tuple(tables), notes=versus.captions)]
    if versus.examples and versus.by:
        half = CHARACTERS if width is None else max(10, (width - 3) // 2)
        examples = tuple(_example(versus, e, half) for e in versus.examples)
        sections.append(Section(f"prompts that differ most by {versus.by.title}", examples))
    return Document(tuple(sections))


def _row_of(difference: Difference) -> Row:
    d, metric = difference.difference, difference.metric
    known = [Estimate(x, None, None, None, 0, 0) for x in (difference.one, difference.other)]
    digits = decimals([d] if d.half else known, metric)
    texts = [*(plus_minus(e, metric, digits) for e in known), plus_minus(d, metric, digits, signed=True)]
    texts += [p_value(difference.p), str(difference.prompts), str(difference.seeds)]
    return Row(metric_label(metric), tuple(texts))


def _example(versus: Versus, example: Example, width: int) -> Table:
    """What either did on one prompt, a row a line."""
    assert versus.by is not None
    scale, unit = (100, " points") if versus.by.percent else (1, "")
    amount = f"{versus.by.title} {scale * example.difference:+.3g}{unit}"
    sides = (told(*pair, versus) for pair in ((example.one, example.other), (example.other, example.one)))
    lines = zip_longest(*(shortened(side, width) for side in sides), fillvalue="")
    title = f"{example.prompt} ({example.split}, {example.mode}): {amount}"
    rows = tuple(Row(one, (other,)) for one, other in lines)
    return Table(title, (Header(versus.other),), rows, corner=versus.one, left=True)


def told(example: Mapping[str, Any], beside: Mapping[str, Any], versus: Versus) -> list[str]:
    """An episode in lines: its numbers and what its task has kept of it, short before long, where the two differ."""
    known = {row.metric.name for row in versus.rows}
    numbers = [k for k in example if k in known and isinstance(example[k], int | float) and example[k] != beside.get(k)]
    lines = [", ".join(f"{k} {example[k]:g}" for k in numbers)]
    details, others = example.get("details") or {}, beside.get("details") or {}
    texts = {
        name: value if isinstance(value, str) else canonical_json(value)
        for name, value in details.items()
        if name not in others or value != others[name]
    }
    for name, text in sorted(texts.items(), key=lambda item: len(item[1])):
        first, *rest = visible(text).split("\n")
        lines += [f"{visible(str(name))}: {first}", *rest]
    return lines


def shortened(lines: Sequence[str], width: int, most: int = LINES) -> list[str]:
    """Lines no wider than a column, and no more than fit; what was cut is said."""
    folded = [part for line in lines for part in ([line[i : i + width] for i in range(0, len(line), width)] or [""])]
    if len(folded) <= most:
        return folded
    return [*folded[: most - 1], f"… {len(folded) - most + 1} more lines"]
