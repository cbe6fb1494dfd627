"""Studies: a YAML file that says what is compared, run on tables and drawn from its records.

A study names a kind of picture, the methods, the panels (a task and its settings each) and what
varies; its cells are their product. Tables train their seeds in one run; a study of language models
says which seeds it wants (``replicate``), and has a cell for each. A cell is one run of
:func:`shiq_bench.run.execute`, kept in the results folder under its own id: it is never run twice,
and studies share what they have in common.
The files in ``shiq_bench/studies`` are shipped; any other can be given by its path.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

from shiq_bench import api
from shiq_bench.config import Resolved, coerce, merged, resolve
from shiq_bench.records import RunRecord, RunSpec, UserError
from shiq_bench.reporting import findings, pictures, runs
from shiq_bench.reporting.crosswise import IMPROVEMENT, PROFILES
from shiq_bench.reporting.findings import Sheet, View
from shiq_bench.reporting.tables import ENGINE_METRICS
from shiq_bench.store import code_hash, source_hash

if TYPE_CHECKING:
    from rich.console import Console

#: The shipped studies, in the order of the index.
SHIPPED = Path(__file__).parent / "studies"

#: Distances of the trained policy to its reference, which sampled paths alone give.
KL_METRICS = ("kl", "kl_k1", "kl_token")

Settings = Mapping[str, Any]
State = Literal["done", "missing", "stale", "left out"]


@dataclass(frozen=True)
class Rule:
    """Some cells, by panel, by method and by what a method declares to need; and why they are treated otherwise."""

    reason: str
    panels: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    needs: str = ""
    settings: Settings = field(default_factory=dict)

    def about(self, panel: str, method: str, algorithm: api.Algorithm) -> bool:
        """Whether a cell is one of them."""
        needed = not self.needs or algorithm.need(getattr(api, self.needs)) is not None
        return panel in self.panels and method in self.methods and needed


@dataclass(frozen=True)
class Study:
    """A study as its file says it.

    Attributes:
        name: of the file, and of everything that is drawn from it.
        asks: the question, one sentence.
        kind: ``curves`` over updates, numbers ``against`` what varies, a ``front`` of the metric over
            another (``x_metric``; KL to the reference, unless told otherwise) as something varies, a ``table``,
            or all panels summed up ``across`` tasks.
        metric: what is shown.
        focus: the method that the others are compared with; "" for none.
        settings: of every cell; panels, methods and what varies win over them, in this order.
        panels: title -> ``task`` and settings.
        methods: label -> ``algo`` and settings.
        vary: the setting on the x axis and its values.
        views: which panels and methods share a pair of axes, or a table.
        every_algorithm: methods that no label names are added under their own name.
        reach: a metric and a threshold, to measure speed by.
        contrasts: pairs of panels to compare method by method; their instances are the same problems.
        replicate: training seeds of language models, one run each; () where the runs are tables.
        split, mode: the evaluation of language models that is shown.
        normalise: across tasks, what scores are between: the reference and the ``optimum`` (of a distance to the
            optimum, such as regret), or the worst and the best run of a panel (``minmax``).
        adjust: cells with settings of their own, which win over all but what varies.
        leave_out: cells that are not run.
        bounds: panel -> what the metric may at most be there.
        no_bound: cells that the bounds do not hold for.
    """

    name: str
    title: str
    asks: str
    kind: findings.Kind
    metric: str
    focus: str
    settings: Settings
    panels: Mapping[str, Settings]
    methods: Mapping[str, Settings]
    vary: tuple[str, tuple[float, ...]] | None = None
    x_label: str = ""
    x_scale: Literal["log", "linear"] = "linear"
    scale: Literal["log", "linear"] = "log"
    floor: float = 0.0
    reach: tuple[str, float] | None = None
    contrasts: tuple[tuple[str, str], ...] = ()
    views: tuple[View, ...] = ()
    adjust: tuple[Rule, ...] = ()
    leave_out: tuple[Rule, ...] = ()
    no_bound: tuple[Rule, ...] = ()
    every_algorithm: bool = False
    bounds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    replicate: tuple[int, ...] = ()
    split: str = ""
    mode: str = ""
    x_metric: str = ""
    normalise: str = ""


@dataclass(frozen=True)
class Cell:
    """One run of a study: what is to be run, or why not, and what is there of it."""

    panel: str
    method: str
    x: float | None
    resolved: Resolved
    left_out: str = ""
    bound: float | None = None
    record: RunRecord | None = None
    state: State = "missing"
    seed: int | None = None

    @property
    def shown(self) -> findings.Cell:
        return findings.Cell(self.panel, self.method, self.x, self.record, self.bound, self.left_out, seed=self.seed)


# --- reading -------------------------------------------------------------------------------------

_KEYS = (
    "title", "asks", "kind", "metric", "focus", "settings", "task", "panels", "methods", "vary", "x_label", "x_scale",
    "scale", "floor", "reach", "contrast", "views", "adjust", "leave_out", "no_bound", "every_algorithm", "notes",
    "replicate", "split", "mode", "x_metric", "normalise",
)  # fmt: skip


def shipped() -> dict[str, Path]:
    """Name -> file of the studies that come with the package, the proof first."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"), key=lambda p: (p.stem != "proof", p.stem))}


def find(name: str) -> list[Path]:
    """The files of one study (a shipped name, or a path), or of ``all``: those shipped that run on tables.

    Raises:
        UserError: no such study; the nearest is suggested.
    """
    known = shipped()
    if name == "all":
        return [path for path in known.values() if not of_language_models(path)]
    if name in known:
        return [known[name]]
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return [path]
        raise UserError(f"no study at {path}")
    raise UserError(f"no study is called {name!r}{api.suggest(name, [*known, 'all'])}")


def of_language_models(path: Path) -> bool:
    """Whether a study's file says so, without a look at what it runs; those take hours where a table takes seconds."""
    return "replicate" in _read(path)


def load(path: Path) -> Study:
    """Read a study and check everything but its cells' settings, which :func:`expand` checks.

    Raises:
        UserError: no YAML, an unknown key, or a value of the wrong kind; the line names the file.
    """
    try:
        return _study(path.stem, _mapping("a study", _read(path)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"no YAML: {' '.join(str(error).split())}") from error


def _study(name: str, data: Mapping[str, Any]) -> Study:
    _known("a study", data, _KEYS, needed=("title", "kind", "metric", "methods"))
    kind = coerce("kind", data["kind"], findings.Kind)
    every = coerce("every_algorithm", data.get("every_algorithm", False), bool)
    methods = _methods(_mapping("methods", data["methods"]), every)
    panels, bounds = _panels(data)
    focus = _text("focus", data.get("focus", ""))
    if kind == "across" and not focus:
        raise UserError("kind: across needs the key 'focus', the method that is compared with every other")
    if focus and focus not in methods:
        raise UserError(f"focus is {focus!r}, which is no method{api.suggest(focus, list(methods))}")
    vary = _vary(data.get("vary"))
    if (kind in ("against", "front")) != (vary is not None):
        raise UserError(
            "vary, a mapping such as 'off_policy: [0, 1]', is what kind: against and kind: front need, and no other"
        )
    replicate = _replicate(data["replicate"]) if "replicate" in data else ()
    _fitting(kind, data)
    if replicate and bounds:
        raise UserError("bound is for tables: leave it out, or leave out replicate")
    return Study(
        name=name,
        title=_text("title", data["title"]),
        asks=_text("asks", data.get("asks", "")),
        kind=kind,
        metric=_text("metric", data["metric"]),
        focus=focus,
        settings=_mapping("settings", data.get("settings", {})),
        panels=panels,
        methods=methods,
        vary=vary,
        x_label=_text("x_label", data.get("x_label", vary[0] if vary else "")),
        x_scale=coerce("x_scale", data.get("x_scale", "linear"), Literal["log", "linear"]),
        scale=coerce(
            "scale", data.get("scale", "linear" if replicate or kind == "front" else "log"), Literal["log", "linear"]
        ),
        floor=coerce("floor", data.get("floor", 0.0), float),
        reach=_reach(data.get("reach")),
        contrasts=_contrasts(data.get("contrast", []), tuple(panels)),
        views=_views(kind, data.get("views"), tuple(panels), tuple(methods)),
        adjust=tuple(_rules("adjust", data.get("adjust", []), panels, methods)),
        leave_out=tuple(_rules("leave_out", data.get("leave_out", []), panels, methods)),
        no_bound=tuple(_rules("no_bound", data.get("no_bound", []), panels, methods)),
        every_algorithm=every,
        bounds=bounds,
        notes=tuple(_text("notes", n) for n in _list("notes", data.get("notes", []))),
        replicate=replicate,
        split=_text("split", data.get("split", "heldout")) if replicate else "",
        mode=coerce("mode", data.get("mode", "sampled"), Literal["sampled", "greedy"]) if replicate else "",
        x_metric=_text("x_metric", data.get("x_metric", "kl")) if kind == "front" else "",
        normalise=_normalise(data) if kind == "across" else "",
    )


def _fitting(kind: findings.Kind, data: Mapping[str, Any]) -> None:
    """Refuse what would do nothing."""
    language = "replicate" in data
    if language and kind == "curves":
        raise UserError("kind: curves shows tables alone; with replicate expected table, against or front")
    for key, fits, where in (
        ("split", language, "language models: add replicate, such as 'replicate: [0, 1, 2]'"),
        ("mode", language, "language models: add replicate, such as 'replicate: [0, 1, 2]'"),
        ("x_metric", kind == "front", "kind: front"),
        ("x_scale", kind == "against", "kind: against"),
        ("normalise", kind == "across", "kind: across"),
        ("views", kind != "across", "other kinds: across tasks there are two pairs of axes"),
        ("reach", not language, "tables: leave it out, or leave out replicate"),
        ("views", not (language and kind == "table"), "pictures: a table of language models has one part a panel"),
    ):
        if key in data and not fits:
            raise UserError(f"{key} is for {where}")


def _known(what: str, data: Mapping[str, Any], keys: Sequence[str], needed: Sequence[str] = ()) -> None:
    for key in data:
        if key not in keys:
            raise UserError(f"{what} has no key {key!r}{api.suggest(str(key), list(keys))}")
    for key in needed:
        if key not in data:
            raise UserError(f"{what} needs the key {key!r}")


def _mapping(what: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UserError(f"{what}: expected a mapping, and this is {data!r}"[:160])
    return {str(k): v for k, v in data.items()}


def _list(what: str, data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise UserError(f"{what}: expected a list, and this is {data!r}"[:160])
    return data


def _text(what: str, data: Any) -> str:
    if not isinstance(data, str):
        raise UserError(f"{what}: expected text, and this is {data!r}"[:160])
    return " ".join(data.split())


def _methods(data: Mapping[str, Any], every: bool) -> dict[str, Settings]:
    out: dict[str, Settings] = {}
    for label, given in data.items():
        out[label] = _mapping(f"method {label}", given)
        _text(f"algo of {label}", out[label].get("algo"))
    if not out:
        raise UserError("methods: expected at least one")
    if every:
        used = {m["algo"] for m in out.values()}
        out |= {name: {"algo": name} for name in api.algorithms.names() if name not in used}
    return out


def _panels(data: Mapping[str, Any]) -> tuple[dict[str, Settings], dict[str, float]]:
    """``panels``, or the one panel that ``task`` names; and what they promise."""
    if ("task" in data) == ("panels" in data):
        raise UserError("a study needs either the key 'task' or the key 'panels'")
    if "task" in data:
        task = _text("task", data["task"])
        return {task: {"task": task}}, {}
    out: dict[str, Settings] = {}
    bounds = {}
    for title, given in _mapping("panels", data["panels"]).items():
        panel = _mapping(f"panel {title}", given)
        _text(f"task of {title}", panel.get("task"))
        if "bound" in panel:
            bounds[title] = coerce(f"bound of {title}", panel.pop("bound"), float)
        out[title] = panel
    if not out:
        raise UserError("panels: expected at least one")
    return out, bounds


def _vary(data: Any) -> tuple[str, tuple[float, ...]] | None:
    if data is None:
        return None
    found = _mapping("vary", data)
    if len(found) != 1:
        raise UserError("vary: expected one setting and its values, such as 'off_policy: [0, 1]'")
    ((key, given),) = found.items()
    numbers = tuple(coerce(f"vary.{key}", x, float) for x in _list(f"vary.{key}", given))
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"vary.{key}: expected values that differ, and at least one")
    return key, numbers


def _replicate(data: Any) -> tuple[int, ...]:
    seeds = tuple(coerce("replicate", x, int) for x in _list("replicate", data))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError("replicate: expected training seeds that differ, and at least one, such as [0, 1, 2]")
    return seeds


def _reach(data: Any) -> tuple[str, float] | None:
    if data is None:
        return None
    found = _mapping("reach", data)
    if len(found) != 1:
        raise UserError("reach: expected one metric and its threshold, such as 'kl_optimum: 0.001'")
    ((metric, threshold),) = found.items()
    number = coerce(f"reach.{metric}", threshold, float)
    if number <= 0:
        raise UserError(f"reach.{metric} is {number:g}; expected a number above 0")
    return metric, number


def _contrasts(data: Any, panels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    out = []
    for given in _list("contrast", data):
        found = _names("contrast", given, panels)
        if len(found) != 2:
            raise UserError(f"contrast: expected pairs of panels, and this is {given!r}")
        out.append((found[0], found[1]))
    return tuple(out)


#: Metrics that are a distance to the exact optimum, where 0 is the best there can be.
DISTANCES = ("regret", "kl_optimum")


def _normalise(data: Mapping[str, Any]) -> str:
    metric = _text("metric", data["metric"])
    given = data.get("normalise", "optimum" if metric in DISTANCES else "minmax")
    found: str = coerce("normalise", given, Literal["optimum", "minmax"])
    if found == "optimum" and metric not in DISTANCES:
        raise UserError(f"normalise: optimum is for {' and '.join(DISTANCES)}; of {metric} say minmax")
    return found


def _views(kind: str, data: Any, panels: tuple[str, ...], methods: tuple[str, ...]) -> tuple[View, ...]:
    """Without views a table is one, and every other panel has axes of its own."""
    if kind == "across":
        titles = (PROFILES, IMPROVEMENT)
        return tuple(View(title, panels, methods) for title in titles)
    if data is None:
        if kind == "table":
            return (View("", panels, methods),)
        return tuple(View(p, (p,), methods) for p in panels)
    out = []
    for title, given in _mapping("views", data).items():
        view = _mapping(f"view {title}", given)
        _known(f"view {title}", view, ("panels", "methods"))
        some = {
            key: _names(f"{key} of view {title}", view[key], every) if key in view else every
            for key, every in (("panels", panels), ("methods", methods))
        }
        if kind != "table" and len(some["panels"]) > 1:
            raise UserError(f"view {title}: a pair of axes shows one panel; name it under 'panels'")
        out.append(View(title, some["panels"], some["methods"]))
    return tuple(out)


def _names(what: str, data: Any, known: Sequence[str]) -> tuple[str, ...]:
    found = tuple(_text(what, n) for n in _list(what, data))
    for name in found:
        if name not in known:
            raise UserError(f"{what}: there is no {name!r}{api.suggest(name, list(known))}")
    return found


def _rules(key: str, data: Any, panels: Mapping[str, Any], methods: Mapping[str, Any]) -> Iterator[Rule]:
    kinds = [n for n, c in vars(api).items() if isinstance(c, type) and issubclass(c, api.Need) and c is not api.Need]
    for given in _list(key, data):
        rule = _mapping(key, given)
        own = "settings" if key == "adjust" else "reason"
        _known(key, rule, ("panels", "methods", "needs", own), needed=(own,))
        needs = _text("needs", rule.get("needs", ""))
        if needs and needs not in kinds:
            raise UserError(f"{key}: no need is called {needs!r}{api.suggest(needs, sorted(kinds))}")
        if not {"panels", "methods", "needs"} & rule.keys():
            raise UserError(f"{key}: name panels, methods or needs, for without them it is every cell")
        yield Rule(
            _text("reason", rule.get("reason", "")).rstrip("."),
            _names(f"{key}.panels", rule["panels"], list(panels)) if "panels" in rule else tuple(panels),
            _names(f"{key}.methods", rule["methods"], list(methods)) if "methods" in rule else tuple(methods),
            needs,
            _mapping(f"{key}.settings", rule.get("settings", {})),
        )


def overridden(study: Study, given: Settings) -> Study:
    """The study with settings in place of its own ``settings``; panels, methods and what varies still win.

    Raises:
        UserError: one that the study itself gives to every cell, so that it would do nothing.
    """
    taken = {study.vary[0].rpartition(".")[2]: "varies it"} if study.vary else {}
    taken |= {"seed": "says which by replicate"} if study.replicate else {}
    for cells, what in ((study.panels.values(), "panel"), (study.methods.values(), "method")):
        everywhere = set.intersection(*({key.rpartition(".")[2] for key in cell} for cell in cells))
        taken |= dict.fromkeys(everywhere, f"gives it to every {what}")
    for key in given:
        if why := taken.get(key.rpartition(".")[2]):
            raise UserError(f"--set {key}: study {study.name} {why}; change a copy of its file instead")
    if not given:
        return study
    # A path says where something lies on one machine, and not what it is.
    told = ", ".join(f"{key}={Path(value).name if '/' in str(value) else value}" for key, value in given.items())
    note = f"Set by hand: {told}."
    return replace(study, settings=merged(study.settings, given), notes=(*study.notes, note))


# --- cells ---------------------------------------------------------------------------------------


def expand(study: Study, results: Path) -> list[Cell]:
    """Every cell of a study with every setting resolved, panel by panel, method by method.

    Raises:
        UserError: a setting that the run, the algorithm and the task do not know or take; the line
            names the cell.
    """
    out = []
    values = study.vary[1] if study.vary else (None,)
    for panel, method, x, seed in product(study.panels, study.methods, values, study.replicate or (None,)):
        resolved = _resolved(study, panel, method, x, seed, results)

        def reason(rules: Sequence[Rule], panel: str = panel, method: str = method, r: Resolved = resolved) -> str:
            return next((rule.reason for rule in rules if rule.about(panel, method, r.algorithm)), "")

        bound = None if reason(study.no_bound) else study.bounds.get(panel)
        out.append(Cell(panel, method, x, resolved, reason(study.leave_out), bound, seed=seed))
    _check_metrics(study, out)
    return out


def _resolved(study: Study, panel: str, method: str, x: float | None, seed: int | None, results: Path) -> Resolved:
    given, chosen = study.panels[panel], study.methods[method]
    own = ({k: v for k, v in s.items() if k not in ("task", "algo")} for s in (given, chosen))
    varied: dict[str, Any] = {} if study.vary is None else {study.vary[0]: x}
    varied |= {} if seed is None else {"seed": seed}
    try:
        settings = merged(study.settings, *own)
        made = resolve(chosen["algo"], given["task"], settings)
        for rule in study.adjust:
            if rule.about(panel, method, made.algorithm):
                settings = merged(settings, rule.settings)
        resolved = resolve(chosen["algo"], given["task"], merged(settings, varied, {"results": str(results)}))
    except UserError as error:
        raise UserError(f"{study.name}: {method} on {panel}: {error}") from None
    if problem := _misplaced(study, resolved.spec):
        raise UserError(f"{study.name}: {method} on {panel}: {problem}")
    return resolved


def _misplaced(study: Study, spec: RunSpec) -> str:
    """What keeps a run from having the evaluation that the study shows."""
    if spec.model == "table":
        return "a table trains its seeds in one run: set seeds, and leave out replicate" if study.replicate else ""
    if not study.replicate:
        return f"model {spec.model} has one run a seed: add the seeds, such as 'replicate: [0, 1, 2]'"
    if study.split not in spec.splits:
        return f"split is {study.split}, and {spec.eval_splits} is evaluated: add it to eval_splits"
    if study.mode == "sampled" and not spec.eval_samples:
        return "mode is sampled, and eval_samples is 0: raise it, or set mode: greedy"
    return ""


def _metrics(study: Study, cell: Cell) -> dict[str, api.Metric]:
    """What the evaluations of a cell hold, by name."""
    own = {m.name: m for m in cell.resolved.task.metrics if not (study.replicate and m.exact)}
    return {m.name: m for m in ENGINE_METRICS} | own if study.replicate else own


def _check_metrics(study: Study, cells: Sequence[Cell]) -> None:
    for cell in cells:
        names = _metrics(study, cell)
        for name in (study.metric, *([study.reach[0]] if study.reach else []), *filter(None, [study.x_metric])):
            if name not in names:
                raise UserError(f"{study.name}: {cell.panel} has no metric {name!r}{api.suggest(name, sorted(names))}")
            if study.mode == "greedy" and name in KL_METRICS:
                raise UserError(f"{study.name}: {name} is measured on sampled answers alone: leave out mode: greedy")
        if names[study.metric].better == "neither":
            raise UserError(f"{study.name}: {study.metric} has no better and no worse: nothing can win by it")


def look_up(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with what the results folder holds of them.

    A finished run is one that is done or diverged, which on tables it would do again. ``stale`` is
    one that other code has made: it counts as finished, and is not mixed with others unasked.
    """
    source = source_hash()
    return [cell if cell.left_out else _looked_up(cell, source) for cell in cells]


def _looked_up(cell: Cell, source: str) -> Cell:
    spec = cell.resolved.spec
    try:
        record = runs.load(runs.run_folder(spec.results, spec.run_id))
    except UserError:  # there is none, or it cannot be read, and then the run itself will say so
        return cell
    if record.status not in ("done", "diverged"):
        return cell
    ours = (source, code_hash(type(cell.resolved.algorithm), type(cell.resolved.task)))
    state: State = "done" if (record.source_hash, record.code_hash) == ours else "stale"
    return replace(cell, record=_shortened(record), state=state)


def _shortened(record: RunRecord) -> RunRecord:
    """Losses of every update, and dialogues, are most of a record, and no picture shows them."""
    if record.spec.model == "table":
        return replace(record, training=())
    return replace(record, training=(), evaluations=tuple(replace(e, examples=()) for e in record.evaluations))


def refuse_mixture(study: Study, cells: Sequence[Cell]) -> None:
    """Let nothing be drawn, unasked, from runs of different versions of the code.

    Raises:
        UserError: some finished runs were made by other code than the rest are, or would be.
    """
    stale = [c for c in cells if c.state == "stale"]
    versions = {c.record.source_hash for c in stale if c.record is not None}
    if stale and (len(stale) < sum(not c.left_out for c in cells) or len(versions) > 1):
        raise UserError(
            f"{study.name}: {len(stale)} of its finished runs were made by other code: add --fresh to run them again, "
            "--allow-mixed to use them as they are, or --results for another folder"
        )


# --- running -------------------------------------------------------------------------------------


def run_missing(
    study: Study, cells: Sequence[Cell], console: Console, *, again: bool = False
) -> tuple[list[Cell], list[findings.Cell]]:
    """Run every cell that has no finished record; one that fails is reported in a line, and the rest go on.

    Args:
        again: also those that other code has made.

    Returns:
        The cells with their records, and all of them as reporting sees them, failures said.

    Raises:
        KeyboardInterrupt: asked to stop; what is finished stays so.
    """
    from shiq_bench.run import execute

    todo = {
        i for i, c in enumerate(cells) if not c.left_out and (c.state == "missing" or (again and c.state == "stale"))
    }
    out, shown = list(cells), [c.shown for c in cells]
    with Progress(study.name, len(todo), console) as progress:
        for i in sorted(todo):
            cell = cells[i]
            progress.begin(shown[i].name)
            try:
                fresh = _foreign(cell)
                record = execute(cell.resolved, resume=not fresh, fresh=fresh, report=progress.within)
            except UserError as error:
                problem = " ".join(str(error).split())
                out[i], shown[i] = replace(cell, record=None), replace(shown[i], record=None, problem=problem)
                progress.end(f"failed: {problem}")
                continue
            out[i] = replace(cell, record=_shortened(record), state="done")
            shown[i] = out[i].shown
            progress.end("" if record.status == "done" else f"{record.status}: {record.error}")
    return out, [replace(c, problem=unfinished(c)) if c.record and not c.problem else c for c in shown]


def _foreign(cell: Cell) -> bool:
    """Whether something other code has made is in the way; what it left unfinished is of no use."""
    spec = cell.resolved.spec
    try:
        record = runs.load(runs.run_folder(spec.results, spec.run_id))
    except UserError:
        return False
    ours = (source_hash(), code_hash(type(cell.resolved.algorithm), type(cell.resolved.task)))
    return (record.source_hash, record.code_hash) != ours


def unfinished(cell: findings.Cell) -> str:
    """Why a cell's record is not of a finished run; "" where it is."""
    assert cell.record is not None
    return "" if cell.record.status == "done" else f"{cell.record.status}: {cell.record.error}"


class Progress:
    """A bar over the cells of a study with an estimate of what is left; in a log, a line a cell."""

    def __init__(self, name: str, total: int, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TaskID,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self.name, self.total, self.console = name, total, console
        self._done = 0
        self._start = self._begun = time.perf_counter()
        self._cell = ""
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self.total and self.console.is_terminal:
            self._task = self._bar.add_task(self.name, total=self.total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            self._print(f"{self.name}: stopped; the same command goes on with the {self.total - self._done} runs left")

    def begin(self, cell: str) -> None:
        self._cell, self._begun = cell, time.perf_counter()
        if self._task is not None:
            self._bar.update(self._task, description=f"{self.name}: {cell}")

    def within(self, what: str, done: int, total: int) -> None:
        """How far the run itself is, as part of the bar."""
        if self._task is not None and what == "training" and total:
            self._bar.update(self._task, completed=self._done + done / total)

    def end(self, problem: str) -> None:
        self._done += 1
        now = time.perf_counter()
        if self._task is not None:
            self._bar.update(self._task, completed=self._done)
        if problem:
            self._print(f"{self.name}: {self._cell}: {problem}")
        elif self._task is None:
            left = (now - self._start) / self._done * (self.total - self._done)
            self._print(
                f"{self.name} [{self._done}/{self.total}] {self._cell}: {now - self._begun:.1f} s, {about(left)} left"
            )

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def about(seconds: float) -> str:
    """``40 s``, ``3 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


# --- the whole -----------------------------------------------------------------------------------


def sheet(study: Study, cells: Sequence[Cell], shown: Sequence[findings.Cell]) -> Sheet:
    """A study and its records as reporting sees them."""
    known = _metrics(study, cells[0])
    metric, titles = known[study.metric], {name: m.title for name, m in known.items()}
    assert metric.better != "neither"
    return Sheet(
        name=study.name,
        title=study.title,
        asks=study.asks,
        kind=study.kind,
        metric=study.metric,
        label=metric.title,
        better=metric.better,
        focus=study.focus,
        x_label=study.x_label,
        panels=tuple(study.panels),
        methods=tuple(study.methods),
        views=study.views,
        cells=tuple(shown),
        log_y=study.scale == "log",
        log_x=study.kind == "curves" or study.x_scale == "log",
        floor=study.floor,
        reach=(*study.reach, titles[study.reach[0]]) if study.reach else None,
        contrasts=study.contrasts,
        notes=(*study.notes, *(_unbound(rule, study) for rule in study.no_bound)),
        split=study.split,
        mode=study.mode,
        x_metric=study.x_metric,
        x_metric_label=titles.get(study.x_metric, ""),
        normalise=study.normalise,
    )


def _unbound(rule: Rule, study: Study) -> str:
    who = f"methods that declare {rule.needs}" if rule.needs else findings.listed(rule.methods)
    where = "" if rule.panels == tuple(study.panels) else f" on {findings.listed(rule.panels)}"
    return f"Nothing is promised for {who}{where}: {rule.reason}."


def main(
    name: str,
    results: Path,
    out: Path,
    console: Console,
    log: Console,
    *,
    dry_run: bool = False,
    fresh: bool = False,
    allow_mixed: bool = False,
    given: Settings | None = None,
) -> int:
    """Run and draw the studies of a name; every file is checked before anything runs.

    Args:
        log: where progress goes.
        given: settings that win over those of the file, as in :func:`overridden`.

    Returns:
        Cells that failed.

    Raises:
        UserError: as :func:`find`, :func:`load`, :func:`overridden`, :func:`expand` and :func:`refuse_mixture`.
    """
    studies = [overridden(load(path), given or {}) for path in find(name)]
    expanded = {study.name: expand(study, results) for study in studies}
    failed = 0
    for study in studies:
        # Looked up only now: an earlier study may have run the same cell.
        cells = look_up(expanded[study.name])
        if dry_run:
            _print_plan(study, cells, console)
            continue
        if not (fresh or allow_mixed):
            refuse_mixture(study, cells)
        cells, shown = run_missing(study, cells, log, again=fresh)
        failed += sum(bool(c.problem) for c in shown)
        made = sheet(study, cells, shown)
        written = pictures.write(made, out)
        console.print(pictures.terminal(made))
        console.print(f"written: {', '.join(map(str, written))}\n", soft_wrap=True, highlight=False, markup=False)
    tabular = [s.name for s in studies if not s.replicate]
    if tabular and not dry_run:
        names = list(dict.fromkeys([*(path.stem for path in find("all")), *tabular]))
        console.print(f"index: {pictures.index(out, names)}", soft_wrap=True, highlight=False, markup=False)
    return failed


def _print_plan(study: Study, cells: Sequence[Cell], console: Console) -> None:
    """What would be run, and about how long it takes by what the finished runs of the study took."""
    counts = {
        state: sum((c.state if not c.left_out else "left out") == state for c in cells) for state in get_args(State)
    }
    seconds = [sum(c.record.timings.values()) for c in cells if c.record is not None]
    guess = f", {about(sum(seconds) / len(seconds) * counts['missing'])}" if seconds and counts["missing"] else ""
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    console.print(f"{study.name}: {study.title}", style="bold", highlight=False, markup=False)
    console.print(f"  {len(cells)} runs: {said}{guess}", highlight=False, markup=False)
    for cell in cells:
        state = f"left out: {cell.left_out}" if cell.left_out else cell.state
        line = f"  {cell.resolved.spec.run_id}  {cell.shown.name}  ({state})"
        console.print(line, highlight=False, markup=False, soft_wrap=True, style="dim")


def print_list(console: Console) -> None:
    """The shipped studies, one line each; no algorithm is imported for it."""
    width = 2 + max(map(len, shipped()))
    for name, path in shipped().items():
        apart = " (language models: not part of all)" if of_language_models(path) else ""
        console.print(f"{name:<{width}}{_read(path)['title']}{apart}", highlight=False, markup=False, soft_wrap=True)
