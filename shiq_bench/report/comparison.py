"""Run records to numbers: the reference beside every trained policy, with intervals and n."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from shiq_bench.records.errors import UserError
from shiq_bench.records.hashing import canonical_json, stable_hash
from shiq_bench.records.provenance import code_versions
from shiq_bench.records.record import ENGINE_METRICS, Evaluation, Metric, RunRecord
from shiq_bench.records.spec import conditions
from shiq_bench.report.blocks import LM_EVAL, Block, Cell, Column, Comparison, Key, Place, differing, flat, last, plain
from shiq_bench.report.captions import captions_of
from shiq_bench.stats.clustered import linearised, linearised_difference, paired_examples, prompts_with
from shiq_bench.stats.intervals import Estimate, crossed_rows, mean_ci_t, t_interval
from shiq_bench.stats.ranking import Test, against_best, winner
from shiq_bench.stats.tests import holm, paired_p


def compare(
    records: Iterable[RunRecord],
    metrics: Sequence[Metric] | Mapping[str, Sequence[Metric]] = (),
    *,
    allow_mixed: bool = False,
) -> Comparison:
    """Group records into blocks and columns, and compute every cell.

    Args:
        records: in any order.
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
    versions = code_versions(records)
    if versions and not allow_mixed:
        raise UserError(
            f"runs of different versions of the source: {'; '.join(versions)}: rerun them, or pass --allow-mixed"
        )

    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        # A judge's own scale: what another one says is no number of the same table.
        judges = {"judges": record.judges_hash} if record.judges_hash else {}
        groups.setdefault(canonical_json(conditions(record.spec) | judges), []).append(record)
    keys = sorted(groups, key=lambda k: (groups[k][0].spec.task, k))
    unequal = differing([conditions(groups[k][0].spec) for k in keys])
    blocks = []
    for key in keys:
        task = groups[key][0].spec.task
        known = metrics.get(task, ()) if isinstance(metrics, Mapping) else metrics
        scales = {groups[k][0].judges_hash for k in keys if groups[k][0].spec.task == task}
        blocks.append(_block(groups[key], known, unequal | ({"judges"} if len(scales) > 1 else set())))

    captions = mixed_sources(records)
    if any(r.git_dirty for r in records):
        captions.append("Some runs were made from a checkout with uncommitted changes.")
    return Comparison(tuple(blocks), tuple(captions))


def mixed_sources(records: Iterable[RunRecord]) -> list[str]:
    """A warning where runs come from different versions of the source."""
    told = "; ".join(code_versions(records))
    return [f"MIXED SOURCES: these runs come from different versions of the code: {told}."] if told else []


# --- arithmetic ----------------------------------------------------------------------------------


def columns_of(records: Sequence[RunRecord]) -> list[Column]:
    """One column for all runs that differ in their seed alone, labelled by what tells it from the others.

    Raises:
        UserError: two columns would have one label.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        outcome = {k: v for k, v in record.spec.outcome().items() if k != "seed"}
        groups.setdefault(stable_hash(outcome), []).append(record)
    columns: list[Column] = []
    for algo in sorted({r.spec.algo for r in records}):
        alike = [g for g in groups.values() if g[0].spec.algo == algo]
        names = sorted(differing([flat(g[0].spec) for g in alike]))
        for group in sorted(alike, key=lambda g: [_sortable(flat(g[0].spec).get(n)) for n in names]):
            own = flat(group[0].spec)
            label = " ".join([algo, *(f"{n}={plain(own[n])}" for n in names if n in own)])
            # Numbers are kept by label.
            if label in {"reference", *(c.label for c in columns)}:
                raise UserError(f"two columns of different settings would be called {label!r}: show them apart")
            done = tuple(r for r in group if r.status == "done")
            columns.append(Column(label, tuple(group), done))
    return columns


def _sortable(value: Any) -> tuple[float, str]:
    """A key that orders numbers as numbers, before text."""
    return (float(value), "") if isinstance(value, (int, float)) else (inf, plain(value))


def reference_of(
    records: Sequence[RunRecord], place: Place, own: Collection[str] = ()
) -> tuple[Evaluation | None, int]:
    """The reference's evaluation, of a finished run if there is one, and how many disagree with it but for ``own``."""
    finished_first = sorted(records, key=lambda r: (r.status != "done", r.run_id))
    found = [e for r in finished_first if (e := last(r, "reference", place)) is not None]
    if not found:
        return None, 0
    told = [canonical_json({k: v for k, v in e.metrics.items() if k not in own}) for e in found]
    return found[0], sum(text != told[0] for text in told)


def _checkpoint(evaluation: Evaluation | None, metric: str) -> Estimate | None:
    """One checkpoint's number with its interval over prompts; None where it was not measured."""
    if evaluation is None or metric not in evaluation.metrics:
        return None
    values = evaluation.metrics[metric]
    # No single episode has what was pooled from other metrics: all of them stand behind it.
    pooled = not any(metric in e for e in evaluation.examples)
    prompts = {e["prompt_id"] for e in evaluation.examples} if pooled else prompts_with(evaluation.examples, metric)
    return t_interval(values.get("mean"), values.get("stderr"), values.get("n") or 0, len(prompts))


def cell_of(evaluations: Sequence[Evaluation | None], metric: str) -> Cell | None:
    """A column's number from one checkpoint of each of its finished runs; None where none measured it."""
    found = [(x, e) for x in evaluations if x is not None and (e := _checkpoint(x, metric)) is not None]
    return _cell([(e, linearised(x.examples, metric)) for x, e in found], len(evaluations))


def difference_of(pairs: Sequence[tuple[Evaluation, Evaluation]], metric: str, seeds: int) -> Cell | None:
    """The first minus the second of every pair, paired by prompt; None where no pair has the metric.

    Args:
        pairs: evaluations of one seed each, or of one run.
        seeds: runs that there are, whether or not they have the metric.
    """
    both = [(a.examples, b.examples) for a, b in pairs]
    found = [(e, x) for x in both if (e := paired_examples(*x, metric)).mean is not None]
    return _cell([(e, linearised_difference(*x, metric)) for e, x in found], seeds)


def unit_differences(pairs: Sequence[tuple[Evaluation, Evaluation]], metric: str, table: bool) -> list[float]:
    """The same of every unit: one a seed, or of a table one an instance."""
    if not table:
        each = (paired_examples(a.examples, b.examples, metric).mean for a, b in pairs)
        return [d for d in each if d is not None]
    out: list[float] = []
    for a, b in pairs:
        one, other = ({e["prompt_id"]: e.get(metric) for e in x.examples} for x in (a, b))
        out += [x - y for k, x in one.items() if x is not None and (y := other.get(k)) is not None]
    return out


def _cell(found: Sequence[tuple[Estimate, Mapping[str, float]]], seeds: int) -> Cell | None:
    """One seed: its interval over prompts. Several: over seeds and prompts, or of what prompts lack over seeds.

    Args:
        found: each seed's number, and what every prompt adds to it.
    """
    if not found:
        return None
    if seeds == 1:
        only = found[0][0]
        return Cell(only, (only.n,), "prompts" if only.half else "none")
    known = [(e, row) for e, row in found if e.mean is not None]
    n = tuple(e.n for e, _ in known)
    across, crossed = mean_ci_t(e.mean for e, _ in known), crossed_rows([row for _, row in known])
    # What was pooled in another way than by prompts is not what they add up to.
    if crossed is not None and np.isclose(crossed.mean or 0.0, across.mean or 0.0, rtol=1e-9, atol=1e-12):
        # Equal but for the last bits, which decide how a tie is rounded.
        return Cell(replace(crossed, mean=across.mean), n, "seeds and prompts" if crossed.half else "none")
    return Cell(across, n, "seeds" if across.half else "none")


def _block(records: Sequence[RunRecord], known: Sequence[Metric], unequal: set[str]) -> Block:
    columns = columns_of(records)
    places = places_of(e for r in records for e in r.evaluations)
    names = dict.fromkeys(name for r in records for e in r.evaluations for name in e.metrics)
    of_lm_eval = {name for r in records for e in r.evaluations if e.mode == LM_EVAL for name in e.metrics}
    metrics = known_metrics(names, [*known, *(_of_lm_eval(n) for n in sorted(of_lm_eval - {m.name for m in known}))])
    # Chosen by the task before any run: the metrics that get a difference to the reference.
    paired = [m.name for m in metrics if m.headline and not m.own]
    own = frozenset(m.name for m in metrics if m.own)

    cells: dict[Key, Cell] = {}
    differences: dict[Key, Cell] = {}
    to_reference: dict[Key, Test] = {}
    disagree = 0
    for place in places:
        reference, others = reference_of(records, place, own)
        disagree = max(disagree, others)
        for metric in metrics:
            if not metric.own and (shown := cell_of([reference], metric.name)):
                cells[(*place, "reference", metric.name)] = shown
            tests: dict[str, tuple[float | None, int]] = {}
            for column in columns:
                evaluations = [last(r, "trained", place) for r in column.done]
                if cell := cell_of(evaluations, metric.name):
                    cells[(*place, column.label, metric.name)] = cell
                if reference is None or metric.name not in paired:
                    continue
                begun = [last(r, "reference", place) or reference for r in column.done]
                pairs = [(x, b) for x, b in zip(evaluations, begun, strict=True) if x is not None]
                if cell := difference_of(pairs, metric.name, len(column.done)):
                    differences[(*place, column.label, metric.name)] = cell
                    units = unit_differences(pairs, metric.name, records[0].spec.model == "table")
                    # One seed of a language model says nothing of others: it has an interval over prompts and no p.
                    p = paired_p(cell.estimate, units) if len(units) > 1 else None
                    tests[column.label] = (p, len(units))
            adjusted = holm([p for p, _ in tests.values()])
            for (label, (p, n)), over_methods in zip(tests.items(), adjusted, strict=True):
                to_reference[(*place, label, metric.name)] = Test(p, over_methods, n)

    best, unmarked, to_best = _compared(columns, places, metrics)
    spec = records[0].spec
    shared = conditions(spec) | ({"judges": records[0].judges_hash[:12]} if "judges" in unequal else {})
    title = " · ".join([
        spec.task,
        f"model {spec.model}",
        *(f"{k}={plain(v)}" for k, v in sorted(spec.task_options.items()) if v != ""),
        *(f"{n}={plain(shared[n])}" for n in sorted(unequal & shared.keys() - {"task", "task_options", "model"})),
    ])  # fmt: skip
    block = Block(
        title=title,
        conditions=shared,
        columns=(Column("reference", (), ()), *columns),
        places=places,
        metrics=tuple(m for m in metrics if any(k[3] == m.name for k in cells)),
        cells=cells,
        differences=differences,
        rates=frozenset(
            n for n in names if any(f"{n}/n" in x for r in records for e in r.evaluations for x in e.examples)
        ),
        best=best,
        unmarked=unmarked,
        to_reference=to_reference,
        to_best=to_best,
        drops=frozenset(k for k, c in differences.items() if k[1] == LM_EVAL and (c.estimate.high or 0.0) < 0),
        captions=(),
    )
    return replace(block, captions=tuple(captions_of(block, records, disagree)))


def places_of(evaluations: Iterable[Evaluation]) -> tuple[Place, ...]:
    """Splits and modes in the order in which they were evaluated, splits kept together."""
    seen = dict.fromkeys((e.split, e.mode) for e in evaluations)
    splits = list(dict.fromkeys(split for split, _ in seen))
    return tuple(sorted(seen, key=lambda p: splits.index(p[0])))


def known_metrics(names: Collection[str], known: Sequence[Metric]) -> list[Metric]:
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


def _units(column: Column, place: Place, metric: str) -> dict[Any, float]:
    """Unit that methods share -> the trained policy's number: seeds, or the instances of a table."""
    found: dict[Any, float] = {}
    for record in column.done:
        evaluation = last(record, "trained", place)
        if record.spec.model == "table" and evaluation is not None:
            # One run holds every instance; a rerun of it with other settings is another column.
            found |= {e["prompt_id"]: float(e[metric]) for e in evaluation.examples if e.get(metric) is not None}
        elif (e := _checkpoint(evaluation, metric)) is not None and e.mean is not None:
            found[record.spec.seed] = e.mean
    return found


def _compared(
    columns: Sequence[Column], places: Sequence[Place], metrics: Sequence[Metric]
) -> tuple[frozenset[Key], frozenset[Key], dict[Key, Test]]:
    """Cells to mark, those that are not for their lost units, and every method against the best of its row."""
    best: set[Key] = set()
    unmarked: set[Key] = set()
    tests: dict[Key, Test] = {}
    for place in places:
        for metric in metrics:
            sign = {"higher": 1.0, "lower": -1.0}.get(metric.better)
            if sign is None or metric.own:
                continue
            scores = {c.label: {u: sign * v for u, v in _units(c, place, metric.name).items()} for c in columns}
            if (first := winner(scores)) is not None:
                specs = [r.spec for c in columns if c.label == first for r in c.runs]
                asked = sum(s.seeds if s.model == "table" else 1 for s in specs)
                # Survivors are no sample of what was run.
                (best if len(scores[first]) == asked else unmarked).add((*place, first, metric.name))
            tests |= {(*place, label, metric.name): test for label, test in against_best(scores).items()}
    return frozenset(best), frozenset(unmarked), tests
