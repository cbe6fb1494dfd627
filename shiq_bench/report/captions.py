"""The lines under a table: what its numbers are, what they cost, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import product

from shiq_bench.records.record import RunRecord
from shiq_bench.report.blocks import DROP, LM_EVAL, Block, Column, differing, flat, named, plain, where
from shiq_bench.report.format import listed, p_value, span
from shiq_bench.stats.ranking import ALPHA, BOLD_SEEDS, FALSE_MARKS, SKEWED_MARKS
from shiq_bench.stats.tests import binomial_stderr, detectable, detectable_difference, sign_flip_name


def captions_of(block: Block, records: Sequence[RunRecord], disagree: int) -> Iterable[str]:
    """Every sentence under one block, in order; ``disagree`` runs measured another reference than the one shown."""
    trained = block.columns[1:]
    table = block.conditions["model"] == "table"
    if table:
        yield (
            "±: 95% interval over instances, Student's t; every number of an instance is exact. "
            "n: instances, each with data and training of its own. Minus reference: paired by instance. "
            "Own fixed point: the loss's minimiser under exact expectations; sampled data give another."
        )
    else:
        yield from _intervals(block)
    idle = sum(record.spec.steps == 0 for record in records)
    if idle and not table:
        yield f"Not trained (steps=0): {idle} of {len(records)} runs; of those the reference alone was evaluated."
    yield from _bold(block)
    yield from _significance(block)
    if any(mode == LM_EVAL for _, mode in block.places):
        yield "lm-eval: without a chat template; documents stand in the place of prompts."
    yield from _drops(block)
    yield from _checkpoints(trained)
    shown = {m.name for m in block.metrics}
    if shown & {"kl", "kl_k1", "kl_token"}:
        text = "KL: policy to reference, exact per-position, nats a dialogue, on its own samples at temperature 1"
        yield text + ("; k1 is the sampled log-ratio, its check." if "kl_k1" in shown else ".")
    if not table:
        yield from _cut(block)
    if block.conditions["model"] == "tiny":
        yield "Model: tiny, made from scratch on the spot for this task; it says nothing about larger models."
    yield from _detectable(block)
    yield from _detectable_pairs(block)
    yield from _objectives(trained)
    yield from _settings(trained)
    for column in trained:
        if spent := column.consumed:
            each, mean = ", an instance" if table else "", ", mean of a run" if len(column.done) > 1 else ""
            amounts = ", ".join(f"{amount:,.0f} {n.replace('_', ' ')}" for n, amount in spent.items())
            yield f"Consumed, {column.label}{each}{mean}: {amounts}."
    if disagree:
        yield f"{disagree} runs measured the reference differently under the same settings; the first is shown."
    yield from _runs(trained, records)


def _intervals(block: Block) -> Iterable[str]:
    """How to read the numbers of language models: their intervals and n."""
    numbers = [*block.cells.values(), *block.differences.values()]
    over = {c.over for k, c in block.cells.items() if k[2] != "reference"}
    several = bool(over & {"seeds and prompts", "seeds"})
    if any(c.estimate.half for c in numbers):
        text = "±: 95% interval"
        if several:
            text += f". Trained, several seeds: {_over_seeds(block, over)}. Reference: one checkpoint, over prompts"
        else:
            text += " over prompts"
        text += ", errors clustered by prompt"
        if "prompts" in over:
            text += "; so is a single seed, and" if several else ";"
            text += " it does not cover other training seeds"
        text += "."
        if any(c.estimate.mean is not None and not c.estimate.half for c in numbers):
            text += " No ±: fewer than two observations, or no variance."
        yield text
    if numbers:
        text = "n: episodes of one seed, or trials (turns, tokens) where the metric is a rate over them; in brackets "
        text += "where a cell has another"
        if block.differences:
            text += f". Minus reference: paired by prompt, n counts prompts{_over_differences(block)}"
        yield text + "."


def _bold(block: Block) -> Iterable[str]:
    """When a number is bold, and which are not for the seeds they lost."""
    unit = where(block)
    if block.best:
        done = [len(c.done) for c in block.columns[1:]]
        units = [block.conditions["seeds"]] if unit == "instances" else [n for n in done if n >= BOLD_SEEDS]
        yield (
            f"Bold, *: best of the methods with {BOLD_SEEDS} {unit} or more and none missing. Its lead over "
            f"each of them has a 95% interval above 0 and p below {ALPHA:g} ({sign_flip_name(units)}, unadjusted) over "
            f"{BOLD_SEEDS} shared {unit} or more. Of rows of equal methods at most {FALSE_MARKS} are marked "
            f"(measured; {SKEWED_MARKS} where one is skewed); rows are not adjusted for one another."
        )
    if block.unmarked:
        rows = Counter(label for _, _, label, _ in block.unmarked)
        kept = ", ".join(f"{label} in {n} row{'s' if n > 1 else ''}" for label, n in sorted(rows.items()))
        missing = f"{unit} are missing (failed, diverged, unfinished or without a number)"
        yield f"Not bold despite the best mean, because {missing}: {kept}."


def _drops(block: Block) -> Iterable[str]:
    """Losses on tasks of lm-eval."""
    titles = {m.name: m.title for m in block.metrics}
    for task, mode, label, name in sorted(block.drops):
        e = block.differences[(task, mode, label, name)].estimate
        assert e.mean is not None and e.low is not None and e.high is not None
        yield (
            f"Drop{DROP}, {label}, {task}, {titles[name]}: {100 * e.mean:+.1f} points to the reference, 95% interval "
            f"{100 * e.low:+.1f} to {100 * e.high:+.1f}."
        )


def _checkpoints(columns: Sequence[Column]) -> Iterable[str]:
    """Which checkpoint every number is of."""
    found = {c.label: [e.step for r in c.done for e in r.evaluations if e.policy == "trained"] for c in columns}
    steps = {label: max(ends) for label, ends in found.items() if ends}
    if steps:
        at = set(steps.values())
        which = f"step {at.pop()}" if len(at) == 1 else ", ".join(f"{label} step {s}" for label, s in steps.items())
        yield f"Checkpoint: the last one ({which})."


def _runs(columns: Sequence[Column], records: Sequence[RunRecord]) -> Iterable[str]:
    """Deviations, runs that are in no mean, and the ids of all."""
    for column in columns:
        for text, times in Counter(d for r in column.runs for d in dict.fromkeys(r.deviations)).items():
            share = f" ({times} of {len(column.runs)} runs)" if len(column.runs) > 1 else ""
            yield f"Deviation, {column.label}{share}: {text}"
    for record in records:
        if record.status != "done":
            why = f": {record.error.splitlines()[0]}" if record.error else ""
            yield f"Not in the means: {record.run_id}, {record.status}{why}"
    for column in columns:
        if len(column.runs) == 1:
            yield f"Run: {column.runs[0].run_id}"
        else:
            prefix = f"{column.runs[0].spec.algo}-{column.runs[0].spec.task}-"
            yield f"Runs of {column.label}: {prefix}{{{','.join(r.run_id.removeprefix(prefix) for r in column.runs)}}}"


def _over_seeds(block: Block, found: Collection[str]) -> str:
    """What the intervals of trained policies are over, where they have several seeds."""
    crossed = "t over seeds and prompts, from their variance components"
    alone = "Student's t over the seeds' means, which does not cover other prompts"
    if "seeds" not in found:
        return crossed
    if "seeds and prompts" not in found:
        return alone
    names = {k[3] for k, c in block.cells.items() if c.over == "seeds"}
    titles = ", ".join(m.title for m in block.metrics if m.name in names)
    return f"{crossed}; where not every seed has every prompt's number ({titles}) {alone}"


def _over_differences(block: Block) -> str:
    found = {c.over for c in block.differences.values()}
    crossed = ", interval over seeds and prompts" if "seeds and prompts" in found else ""
    if "seeds" not in found:
        return crossed
    where = " where not every seed has every prompt's number" if crossed else ""
    return (
        f"{crossed}, interval over the seeds' differences alone{where}, which covers neither other prompts nor the "
        "reference's own sampling"
    )


def _significance(block: Block) -> Iterable[str]:
    """P of headline metrics, a line each: against the reference, and of the best method against each other one."""
    unit = where(block)
    for metric in block.metrics:
        for tests, best in ((block.to_reference, False), (block.to_best, True)) if metric.headline else ():
            parts: list[str] = []
            counts: set[int] = set()
            for place in block.places:
                there = [key for c in block.columns[1:] if (key := (*place, c.label, metric.name)) in block.cells]
                found = {key[2]: test for key in there if (test := tests.get(key)) and test.p is not None}
                if found:
                    each = ", ".join(f"{label} {p_value(test.adjusted)}" for label, test in found.items())
                    first = next(key[2] for key in there if key not in tests) + " against " if best else ""
                    units = {test.units for test in found.values()}
                    parts.append(f"{place[0]}, {place[1]}: {first}{each} ({span(units)} {unit})")
                    counts |= units
            if parts:
                if best:
                    how = f"{sign_flip_name(counts)} over paired {unit}; Holm over all pairs of methods"
                    what = f"the best method against each other one ({how})"
                else:
                    how = "t test of its interval, sign-flip where all differences are alike; Holm over methods"
                    what = f"difference to the reference ({how})"
                yield f"p, {metric.title}, {what}: {'; '.join(parts)}."


def _detectable_pairs(block: Block) -> Iterable[str]:
    """What differences to the reference had to be to be found, from their own errors: the largest of the methods."""
    parts = []
    for metric in block.metrics:
        for place in block.places:
            keys = [(*place, c.label, metric.name) for c in block.columns[1:]]
            found = [d for k in keys if k in block.differences and (d := detectable(block.differences[k].estimate))]
            if found:
                amount = f"{100 * max(found):.1f} points" if metric.percent else f"{max(found):.2g}"
                parts.append(f"{metric.title} {amount} ({place[0]}, {place[1]})")
    if parts:
        yield f"Minimum detectable difference to the reference, paired (80% power): {', '.join(parts)}."


def _cut(block: Block) -> Iterable[str]:
    """How often answers were truncated, where it was worst."""
    rates = [m for m in block.metrics if m.name.startswith(("truncated", "forced"))]
    if block.cells and not rates:
        yield "Truncation: not recorded."
    parts = []
    for metric in rates:
        found = [(x, k) for k, c in block.cells.items() if k[3] == metric.name and (x := c.estimate.mean) is not None]
        mean, (split, mode, label, _) = max(found, key=lambda f: f[0], default=(0.0, ("", "", "", "")))
        value = f"{100 * mean:.1f}%" if metric.percent else f"{mean:.3g}"
        if found:
            parts.append(f"{metric.title} " + (f"at most {value} ({label}, {split}, {mode})" if mean else "nowhere"))
    if parts:
        yield f"Truncation (truncated answers count in every mean): {'; '.join(parts)}."


def _detectable(block: Block) -> Iterable[str]:
    """Minimum detectable effect of a rate: what the number of prompts cannot resolve."""
    metrics = [m for m in block.metrics if m.headline and m.percent and m.name not in block.rates]
    for metric, split in product(metrics, dict.fromkeys(split for split, _ in block.places)):
        cells = (block.cells.get((split, mode, "reference", metric.name)) for mode in ("greedy", "sampled"))
        e = next((c.estimate for c in cells if c and c.estimate.mean is not None and c.estimate.units > 1), None)
        if e is None or e.mean is None:
            continue
        # A rate of 0 or 1 has no binomial spread to go by: use (x + 1) / (n + 2).
        rate = e.mean if 0 < e.mean < 1 else (e.mean * e.units + 1) / (e.units + 2)
        error = binomial_stderr(rate, e.units)
        yield (
            f"Minimum detectable effect, {metric.title}, {split}: {100 * detectable_difference(error):.1f} points "
            f"between two unpaired policies (80% power; {e.units} prompts near {100 * rate:.1f}% have a standard error "
            f"of {100 * error:.1f})."
        )


def _objectives(columns: Sequence[Column]) -> Iterable[str]:
    """That methods which have a ``beta`` each do not share it, where they do not."""
    options = {c.label: named(c.runs[0].spec) for c in columns}
    found = {label: plain(own["beta"]) for label, own in options.items() if "beta" in own}
    if len(set(found.values())) > 1:
        values = listed([f"{beta} for {label}" for label, beta in found.items()])
        yield f"beta is not shared ({values}): these methods optimise different objectives."


def _settings(columns: Sequence[Column]) -> Iterable[str]:
    """Options of every column, and the shared settings that are not equal across them."""
    specs = {c.label: c.runs[0].spec for c in columns}
    options = {k: " ".join(f"{n}={plain(v)}" for n, v in sorted(s.algo_options.items())) for k, s in specs.items()}
    if any(options.values()):
        yield "Options: " + "; ".join(f"{k}: {v or 'none'}" for k, v in options.items()) + "."
    settings = {k: {n: v for n, v in flat(s).items() if n not in named(s)} for k, s in specs.items()}
    for name in sorted(differing(list(settings.values()))):
        values = ", ".join(f"{plain(v[name])} for {label}" for label, v in settings.items() if name in v)
        yield f"Settings that differ: {name} is {values}."
