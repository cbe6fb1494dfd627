"""A comparison in sections: by task, by method, or by the settings of each method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from shiq_bench.records.hashing import canonical_json
from shiq_bench.records.metric import Metric
from shiq_bench.report.blocks import Block, Cell, Column, Comparison, Key, Place, cell_n, differing, named, plain
from shiq_bench.report.layout import EMPTY, Line, Panel, Section, cell_text, decimals_of, metric_label, panels
from shiq_bench.stats.power import detectable

By = Literal["task", "method", "setting"]

#: What a section can be about.
BY: tuple[By, ...] = get_args(By)

_COST = ("updates", "action_tokens", "trajectories", "samples_drawn")
_COST_TITLES = ("updates", "tokens trained", "trajectories", "samples drawn")


def sections(comparison: Comparison, by: By = "task", width: int | None = None) -> list[Section]:
    """The comparison as it is to be printed.

    ``task``: a section a block, methods side by side. ``method``: a section a method, a row for every
    task, split and headline metric. ``setting``: a section for every method of a block, a row for each of
    its settings, metrics side by side.

    Args:
        width: characters that a panel may take; None is any number. What is by method or by setting is
            folded by the terminal itself.
    """
    if by == "task":
        return [Section(b.title, tuple(panels(b, width)), b.captions) for b in comparison.blocks]
    if by == "method":
        return list(_by_method(comparison))
    return [section for block in comparison.blocks for section in _by_setting(block)]


def _by_method(comparison: Comparison) -> Iterable[Section]:
    methods: dict[str, list[tuple[Block, Column]]] = {}
    for block in comparison.blocks:
        for column in block.columns[1:]:
            spec = column.runs[0].spec
            methods.setdefault(canonical_json([spec.algo, dict(spec.algo_options)]), []).append((block, column))
    ordered = sorted(methods.values(), key=lambda found: (found[0][1].runs[0].spec.algo, found[0][1].label))
    for found in ordered:
        spec = found[0][1].runs[0].spec
        alike = [other[0][1].runs[0].spec for other in ordered if other[0][1].runs[0].spec.algo == spec.algo]
        names, options = sorted(differing([named(s) for s in alike])), named(spec)
        title = " ".join([spec.algo, *(f"{n}={plain(options[n])}" for n in names if n in options)])
        results, costs = [], []
        for block, column in found:
            # The rest of its label tells it from another column of the same options.
            rest = [w for w in column.label.split(" ")[1:] if w.partition("=")[0] not in options]
            row = " ".join([_short(comparison, block), *rest])
            results += list(_results(block, column, row))
            costs.append(_costs(block, column, row))
        yield Section(
            title,
            (
                _plain_panel("results", ("reference", "trained", "minus reference", "p", "p best", "detectable", "n"),
                             results),
                _plain_panel("runs, and what each took", ("seeds", "failed", "KL (nats)", *_COST_TITLES), costs),
            ),
            tuple(_legend(found)),
        )  # fmt: skip


def _short(comparison: Comparison, block: Block) -> str:
    """The task, and what tells the block from others of it."""
    parts = block.title.split(" · ")
    others = [set(b.title.split(" · ")) for b in comparison.blocks if b is not block]
    alike = [o for o in others if parts[0] in o]
    return " · ".join([parts[0], *(p for p in parts[1:] if not all(p in o for o in alike))])


def _results(block: Block, column: Column, row: str) -> Iterable[Line]:
    for place in block.places:
        for metric in block.metrics:
            if not metric.headline:
                continue
            key = (*place, column.label, metric.name)
            if key not in block.cells and column.done:
                continue
            decimals, difference = decimals_of(block, metric), block.differences.get(key)
            texts = (
                cell_text(block.cells.get((*place, "reference", metric.name)), metric, decimals),
                cell_text(block.cells.get(key), metric, decimals),
                cell_text(difference, metric, decimals, signed=True),
                _p(block, key, "reference"),
                _p(block, key, "best"),
                _least(difference, metric, decimals),
                cell_n(block.cells.get(key)) or EMPTY,
            )
            bold = tuple(i == 1 and key in block.best for i in range(len(texts)))
            yield Line(f"{row}, {place[0]}, {place[1]}: {metric_label(metric)}", texts, bold)


def _costs(block: Block, column: Column, row: str) -> Line:
    kl = {m.name: m for m in block.metrics}.get("kl")
    cells = [block.cells.get((*place, column.label, "kl")) for place in block.places]
    shown = [cell_text(c, kl, decimals_of(block, kl)) for c in cells if c is not None and kl is not None]
    texts = (_seeds(column), str(len(column.runs) - len(column.done)), ", ".join(shown) or EMPTY, *_spent(column))
    return Line(row, texts, (False,) * len(texts))


def _by_setting(block: Block) -> Iterable[Section]:
    algos = dict.fromkeys(c.runs[0].spec.algo for c in block.columns[1:])
    for algo in algos:
        columns = [c for c in block.columns[1:] if c.runs[0].spec.algo == algo]
        reference = block.columns[0]
        made = [_setting_panel(block, place, [reference, *columns]) for place in block.places]
        costs = []
        for column in columns:
            texts = (_seeds(column), str(len(column.runs) - len(column.done)), *_spent(column))
            costs.append(Line(_setting(column), texts, (False,) * len(texts)))
        runs = _plain_panel("runs, and what each took", ("seeds", "failed", *_COST_TITLES), costs)
        yield Section(f"{algo} · {block.title}", (*made, runs), tuple(_legend([(block, c) for c in columns])))


def _setting_panel(block: Block, place: Place, columns: Sequence[Column]) -> Panel:
    metrics = [m for m in block.metrics if any((*place, c.label, m.name) in block.cells for c in columns)]
    headers: list[str] = []
    for metric in metrics:
        headers += [metric_label(metric), *(["p"] if metric.headline else [])]
    lines = []
    for column in columns:
        texts: list[str] = []
        bold: list[bool] = []
        for metric in metrics:
            key = (*place, column.label, metric.name)
            texts.append(cell_text(block.cells.get(key), metric, decimals_of(block, metric)))
            bold.append(key in block.best)
            if metric.headline:
                texts.append(_p(block, key, "reference") if column.runs else "")
                bold.append(False)
        n = {cell_n(block.cells.get((*place, column.label, m.name))) for m in metrics if m.name not in block.rates}
        texts.append(", ".join(sorted(n - {""}, key=lambda t: (len(t), t))) or EMPTY)
        lines.append(Line(_setting(column), tuple(texts), (*bold, False)))
    return _plain_panel(f"{place[0]}, {place[1]}", [*headers, "n"], lines)


def _setting(column: Column) -> str:
    return (column.label.partition(" ")[2] or "as given") if column.runs else column.label


def _plain_panel(title: str, headers: Sequence[str], lines: Sequence[Line]) -> Panel:
    return Panel(title, tuple(("", header, "") for header in headers), tuple(lines))


def _seeds(column: Column) -> str:
    spec = column.runs[0].spec
    return f"{spec.seeds} instances" if spec.model == "table" and column.done else str(len(column.done))


def _spent(column: Column) -> tuple[str, ...]:
    spent = column.consumed
    return tuple(f"{spent[name]:,.0f}" if name in spent else EMPTY for name in _COST)


def _p(block: Block, key: Key, against: Literal["reference", "best"]) -> str:
    test = (block.to_reference if against == "reference" else block.to_best).get(key)
    if test is None or test.adjusted is None:
        return EMPTY
    return "<0.001" if test.adjusted < 0.001 else f"{test.adjusted:.3f}"


def _least(difference: Cell | None, metric: Metric, decimals: int) -> str:
    least = None if difference is None else detectable(difference.estimate)
    return EMPTY if least is None else f"{(100 if metric.percent else 1) * least:.{decimals}f}"


def _legend(found: Sequence[tuple[Block, Column]]) -> Iterable[str]:
    yield (
        "p: of the difference to the reference, t over seeds and prompts (sign-flip over a table's instances, and over "
        "seeds alone where not every seed has every prompt's number), Holm over the methods of a row; p best: of the "
        "difference to the best method of the row, sign-flip over paired seeds (instances), Holm over all pairs of its "
        "methods. Detectable: the smallest difference to the reference that would have been found with 80% power. "
        "Failed: failed, diverged or unfinished runs."
    )
    said = {line: None for block, _ in found for line in block.captions if line.startswith(("±", "Checkpoint", "Bold"))}
    yield from said
    for block, column in found:
        wanted = (f"Not in the means: {run.run_id}," for run in column.runs if run.status != "done")
        for start in wanted:
            yield from (line for line in block.captions if line.startswith(start))
    yield "Runs: " + ", ".join(run.run_id for _, column in found for run in column.runs)
