"""What a study's YAML file says, read and checked: nothing is run for it, and no algorithm's setting is looked at.

A study names a kind of picture, the methods, the panels (a task and its settings each) and what
varies. Tables train their seeds in one run; a study of language models says which seeds it wants
(``replicate``). The files in ``shiq_bench/studies`` are shipped; any other can be given by its path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shiq_bench.api import needs as api_needs
from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.registry import algorithms
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.report.multi_task import IMPROVEMENT, PROFILES
from shiq_bench.report.study_results import Kind, View
from shiq_bench.runs.settings import coerce

#: The shipped studies, in the order of the index.
SHIPPED = Path(__file__).parent

Settings = Mapping[str, Any]

_KEYS = (
    "title", "asks", "kind", "metric", "focus", "settings", "task", "panels", "methods", "vary", "x_label", "x_scale",
    "scale", "floor", "reach", "contrast", "views", "adjust", "leave_out", "no_bound", "every_algorithm", "notes",
    "replicate", "split", "mode", "x_metric", "normalise",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Some cells, by panel, by method and by what a method declares to need; and why they are treated otherwise."""

    reason: str
    panels: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    needs: str = ""
    settings: Settings = field(default_factory=dict)

    def about(self, panel: str, method: str, algorithm: Algorithm) -> bool:
        """Whether a cell is one of them."""
        needed = not self.needs or algorithm.need(getattr(api_needs, self.needs)) is not None
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
    kind: Kind
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
    raise UserError(f"no study is called {name!r}{suggest(name, [*known, 'all'])}")


def of_language_models(path: Path) -> bool:
    """Whether a study's file says so, without a look at what it runs; those take hours where a table takes seconds."""
    return "replicate" in _read(path)


def title_of(path: Path) -> str:
    """A study's title, without a look at what it runs."""
    return str(_read(path)["title"])


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
    kind = coerce("kind", data["kind"], Kind)
    every = coerce("every_algorithm", data.get("every_algorithm", False), bool)
    methods = _methods(_mapping("methods", data["methods"]), every)
    panels, bounds = _panels(data)
    focus = _text("focus", data.get("focus", ""))
    if kind == "across" and not focus:
        raise UserError("kind: across needs the key 'focus', the method that is compared with every other")
    if focus and focus not in methods:
        raise UserError(f"focus is {focus!r}, which is no method{suggest(focus, list(methods))}")
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


def _fitting(kind: Kind, data: Mapping[str, Any]) -> None:
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
            raise UserError(f"{what} has no key {key!r}{suggest(str(key), list(keys))}")
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
        out |= {name: {"algo": name} for name in algorithms.names() if name not in used}
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
            raise UserError(f"{what}: there is no {name!r}{suggest(name, list(known))}")
    return found


def _rules(key: str, data: Any, panels: Mapping[str, Any], methods: Mapping[str, Any]) -> Iterator[Rule]:
    kinds = [
        n
        for n, c in vars(api_needs).items()
        if isinstance(c, type) and issubclass(c, api_needs.Need) and c is not api_needs.Need
    ]
    for given in _list(key, data):
        rule = _mapping(key, given)
        own = "settings" if key == "adjust" else "reason"
        _known(key, rule, ("panels", "methods", "needs", own), needed=(own,))
        needs = _text("needs", rule.get("needs", ""))
        if needs and needs not in kinds:
            raise UserError(f"{key}: no need is called {needs!r}{suggest(needs, sorted(kinds))}")
        if not {"panels", "methods", "needs"} & rule.keys():
            raise UserError(f"{key}: name panels, methods or needs, for without them it is every cell")
        yield Rule(
            _text("reason", rule.get("reason", "")).rstrip("."),
            _names(f"{key}.panels", rule["panels"], list(panels)) if "panels" in rule else tuple(panels),
            _names(f"{key}.methods", rule["methods"], list(methods)) if "methods" in rule else tuple(methods),
            needs,
            _mapping(f"{key}.settings", rule.get("settings", {})),
        )
