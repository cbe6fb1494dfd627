"""What a study's YAML file says, read and checked: nothing is run for it, and no algorithm's setting is looked at.

A study names a kind of picture, the methods, the panels (a task and its settings each) and what
varies. Tables train their seeds in one run; a study of language models says which seeds it wants
(``replicate``). The files in ``shiq_bench/studies`` are shipped; any other can be given by its path.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shiq_bench.api import needs as api_needs
from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.registry import algorithms
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.report.multi_task import IMPROVEMENT, PROFILES
from shiq_bench.report.study_results import Kind, View

Settings = Mapping[str, Any]

_NEEDS = sorted(name for name, value in vars(api_needs).items() if value in api_needs.Need.__subclasses__())


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError("expected values that differ, and at least one, such as [0, 1, 2]")
    return values


def _pair(panels: Any) -> Any:
    if not isinstance(panels, list) or len(panels) != 2:
        raise ValueError(f"expected pairs of panels, and this is {panels!r}")
    return panels


#: Text on one line, however the file breaks it.
Text = Annotated[str, AfterValidator(lambda text: " ".join(text.split()))]
#: Names of panels or of methods; () where the file names none, which means all of them.
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Settable(BaseModel):
    """Every key that is no field is a setting."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def settings(self) -> Settings:
        return self.model_extra or {}


class Panel(_Settable):
    """A task and its settings; ``bound`` is what the metric may at most be there."""

    task: Text
    bound: FiniteFloat | None = None


class Method(_Settable):
    algo: Text


class Cells(_Strict):
    panels: Names = ()
    methods: Names = ()


class Rule(Cells):
    """Some cells, by panel, by method and by what a method declares to need."""

    needs: str = ""

    @model_validator(mode="after")
    def _not_all(self) -> Rule:
        if not (self.panels or self.methods or self.needs):
            raise ValueError("name panels, methods or needs, for without them it is every cell")
        return self

    def about(self, panel: str, method: str, algorithm: Algorithm) -> bool:
        """Whether a cell is one of them."""
        needed = not self.needs or algorithm.need(getattr(api_needs, self.needs)) is not None
        return needed and panel in (self.panels or (panel,)) and method in (self.methods or (method,))


class Adjustment(Rule):
    """Cells with settings of their own, which win over all but what varies."""

    settings: dict[str, Any]


class Exemption(Rule):
    """Cells that are not run, or that no bound holds for, and why."""

    reason: Annotated[Text, AfterValidator(lambda text: text.rstrip("."))]


class Study(_Strict):
    """A study as its file says it.

    Attributes:
        asks: the question, one sentence.
        kind: ``curves`` over updates, numbers ``against`` what varies, a ``front`` of the metric over the KL to the
            reference as something varies, a ``table``, or all panels summed up ``across`` tasks.
        focus: the method that the others are compared with; "" for none.
        settings: of every cell; panels, methods and what varies win over them, in this order.
        task, panels: title -> task and settings, or the one task of the only panel.
        every_algorithm: methods that no label names are added under their own name.
        methods: label -> algorithm and settings.
        vary: the setting on the x axis -> its values.
        reach: a metric -> a threshold, to measure speed by.
        contrast: pairs of panels to compare method by method; their instances are the same problems.
        views: title -> which panels and methods share a pair of axes, or a table.
        no_bound: cells that the bounds do not hold for.
        replicate: training seeds of language models, one run each; () where the runs are tables.
        split, mode: the evaluation of language models that is shown.
    """

    name: str
    title: Text
    asks: Text = ""
    kind: Kind
    metric: Text
    focus: Text = ""
    settings: dict[str, Any] = {}
    task: Text | None = None
    panels: Annotated[dict[str, Panel], Field(min_length=1)] = Field(None, validate_default=True)
    every_algorithm: bool = False
    methods: Annotated[dict[str, Method], Field(min_length=1)]
    vary: Annotated[
        dict[str, Annotated[tuple[FiniteFloat, ...], AfterValidator(_distinct)]], Field(min_length=1, max_length=1)
    ] = {}
    x_label: Text = ""
    x_scale: Literal["log", "linear"] = "linear"
    floor: FiniteFloat = 0.0
    reach: Annotated[dict[str, Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=1, max_length=1)] = {}
    contrast: tuple[Annotated[tuple[str, str], BeforeValidator(_pair)], ...] = ()
    views: dict[str, Cells] | None = None
    adjust: tuple[Adjustment, ...] = ()
    leave_out: tuple[Exemption, ...] = ()
    no_bound: tuple[Exemption, ...] = ()
    notes: tuple[Text, ...] = ()
    replicate: Annotated[tuple[int, ...], AfterValidator(_distinct)] = ()
    split: Text = "heldout"
    mode: Literal["sampled", "greedy"] = "sampled"

    @field_validator("panels", mode="before")
    @classmethod
    def _or_one(cls, panels: Any, info: ValidationInfo) -> Any:
        task = info.data.get("task")
        if (task is None) == (panels is None):
            raise ValueError("a study needs either the key 'task' or the key 'panels'")
        return {task: {"task": task}} if panels is None else panels

    @field_validator("methods")
    @classmethod
    def _and_the_rest(cls, methods: dict[str, Method], info: ValidationInfo) -> dict[str, Method]:
        named = {method.algo for method in methods.values()}
        rest = [name for name in algorithms.names() if name not in named] if info.data.get("every_algorithm") else []
        return methods | {name: Method(algo=name) for name in rest}

    @model_validator(mode="after")
    def _known(self) -> Study:
        """Refuse names of no panel and of no method."""
        rules = {"adjust": self.adjust, "leave_out": self.leave_out, "no_bound": self.no_bound}
        cells = {f"views.{title}": view for title, view in (self.views or {}).items()}
        cells |= {f"{key}.{i}": rule for key, some in rules.items() for i, rule in enumerate(some)}
        named: list[tuple[str, tuple[str, ...], Collection[str]]]
        named = [("focus", (self.focus,) if self.focus else (), self.methods)]
        named += [("contrast", pair, self.panels) for pair in self.contrast]
        for where, some in cells.items():
            named += [(f"{where}.panels", some.panels, self.panels), (f"{where}.methods", some.methods, self.methods)]
            named += [(f"{where}.needs", (some.needs,), _NEEDS)] if isinstance(some, Rule) and some.needs else []
        for where, names, known in named:
            for name in names:
                if name not in known:
                    raise ValueError(f"{where}: there is no {name!r}{suggest(name, list(known))}")
        return self

    @model_validator(mode="after")
    def _fitting(self) -> Study:
        """Refuse what would do nothing."""
        kind, language = self.kind, bool(self.replicate)
        if kind == "across" and not self.focus:
            raise ValueError("kind: across needs the key 'focus', the method that is compared with every other")
        if (kind in ("against", "front")) != bool(self.vary):
            raise ValueError(
                "vary, a mapping such as 'off_policy: [0, 1]', is what kind: against and kind: front need, and no other"
            )
        if language and kind == "curves":
            raise ValueError("kind: curves shows tables alone; with replicate expected table, against or front")
        models = "language models: add replicate, such as 'replicate: [0, 1, 2]'"
        for key, fits, where in (
            ("split", language, models),
            ("mode", language, models),
            ("x_scale", kind == "against", "kind: against"),
            ("views", kind != "across", "other kinds: across tasks there are two pairs of axes"),
            ("reach", not language, "tables: leave it out, or leave out replicate"),
            ("views", not (language and kind == "table"), "pictures: a table of language models has one part a panel"),
        ):
            if key in self.model_fields_set and not fits:
                raise ValueError(f"{key} is for {where}")
        if language and any(panel.bound is not None for panel in self.panels.values()):
            raise ValueError("bound is for tables: leave it out, or leave out replicate")
        for title, view in (self.views or {}).items():
            if kind != "table" and len(view.panels or self.panels) > 1:
                raise ValueError(f"views.{title}: a pair of axes shows one panel; name it under 'panels'")
        return self

    @property
    def shown(self) -> tuple[View, ...]:
        """The views; without any a table is one, and every other panel has axes of its own."""
        panels, methods = tuple(self.panels), tuple(self.methods)
        if self.kind == "across":
            return tuple(View(title, panels, methods) for title in (PROFILES, IMPROVEMENT))
        if self.views is not None:
            return tuple(View(t, some.panels or panels, some.methods or methods) for t, some in self.views.items())
        if self.kind == "table":
            return (View("", panels, methods),)
        return tuple(View(panel, (panel,), methods) for panel in panels)

    @property
    def x_metric(self) -> str:
        """What stands on the x axis of a front: the KL to the reference, which tables compute and samples estimate."""
        return "" if self.kind != "front" else "kl" if self.replicate else "kl_reference"


def shipped() -> dict[str, Path]:
    """Name -> file of the studies that come with the package, the proof first."""
    files = Path(__file__).parent.glob("*.yaml")
    return {path.stem: path for path in sorted(files, key=lambda path: (path.stem != "proof", path.stem))}


def find(name: str) -> list[Path]:
    """The files of one study (a shipped name, or a path), or of ``all``: those shipped that run on tables.

    Those of language models take hours where a table takes seconds.

    Raises:
        UserError: no such study; the nearest is suggested.
    """
    known = shipped()
    if name == "all":
        return [path for path in known.values() if not load(path).replicate]
    if name in known:
        return [known[name]]
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return [path]
        raise UserError(f"no study at {path}")
    raise UserError(f"no study is called {name!r}{suggest(name, [*known, 'all'])}")


def load(path: Path) -> Study:
    """Read a study and check everything but its cells' settings, which :func:`expand` checks.

    Raises:
        UserError: no YAML, an unknown key, or a value of the wrong kind; the line names the file and the key.
    """
    data = read(path)
    if "name" in data:
        raise UserError(f"{path}: a study has no key 'name': it is called as its file is")
    try:
        return Study.model_validate({**data, "name": path.stem})
    except ValidationError as error:
        raise UserError(f"{path}: {_line(error)}") from None


def read(path: Path) -> dict[str, Any]:
    """A study's file as it stands, with every key as text: a label may be a number.

    Raises:
        UserError: it cannot be read, or is no mapping in YAML.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: a study: expected a mapping, and this is {data!r}"[:160])
    return _labelled(data)


def _labelled(data: Any) -> Any:
    if isinstance(data, list):
        return [_labelled(item) for item in data]
    return {str(k): _labelled(v) for k, v in data.items()} if isinstance(data, dict) else data


#: Where other keys are known than those of a study.
_KEYS: Mapping[Any, type[BaseModel]] = {
    "views": Cells, "adjust": Adjustment, "leave_out": Exemption, "no_bound": Exemption,
}  # fmt: skip
#: What pydantic says in other words than YAML's.
_EXPECTED = {
    "dict_type": "a mapping", "model_type": "a mapping", "tuple_type": "a list", "string_type": "text",
    "float_type": "a number", "float_parsing": "a number", "int_from_float": "a whole number",
    "greater_than": "a number above 0", "too_short": "at least one", "too_long": "one key alone",
}  # fmt: skip


def _line(error: ValidationError) -> str:
    """What is wrong first, in one line; an unknown key goes before the one that it was meant to be."""
    found = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    where = [str(part) for part in found["loc"]]
    if found["type"] == "value_error":
        return ": ".join([*filter(None, [".".join(where)]), str(found["ctx"]["error"])])
    *parents, key = where
    owner = ".".join(parents) or "a study"
    if found["type"] == "extra_forbidden":
        known = _KEYS[parents[0]] if parents else Study
        return f"{owner} has no key {key!r}{suggest(key, [name for name in known.model_fields if name != 'name'])}"
    if found["type"] == "missing":
        return f"{owner} needs the key {key!r}"
    expected = _EXPECTED.get(found["type"], found["msg"].removeprefix("Input should be "))
    return f"{'.'.join(where)}: expected {expected}, and this is {found['input']!r}"[:160]
