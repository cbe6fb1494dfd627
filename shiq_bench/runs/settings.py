"""From flags and YAML to a :class:`Resolved` run.

A key is looked for among the run's fields, the algorithm's and the task's; a key that two of them
know is written ``algorithm.key``, ``task.key`` or ``run.key``. Defaults are never repeated here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from shiq_bench.api.registry import algorithms, tasks
from shiq_bench.api.task import Task
from shiq_bench.data.dataset import read_manifest
from shiq_bench.data.schema import HASH, MANIFEST
from shiq_bench.generation.opening import vllm_lacks
from shiq_bench.models.hardware import fast_precision
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.spec import RunSpec
from shiq_bench.runs.resolved import Resolved

#: Fields of RunSpec that are not settings.
_NAMES = {"algo", "task", "algo_options", "task_options"}
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}

T = TypeVar("T")


def coerce(key: str, value: Any, kind: Any) -> Any:
    """``value`` (text from a flag, or YAML data) as the type of a dataclass field.

    Raises:
        UserError: it is not of that type; the line says what was expected.
    """
    choices = get_args(kind)
    if type(None) in choices:
        inner = next(c for c in choices if c is not type(None))
        return None if value in (None, "none", "null") else coerce(key, value, inner)
    if isinstance(value, str | int | float):
        with suppress(ValidationError):  # read as text, so that YAML's true is no number
            return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_strings(str(value))
    expected = _EXPECTED.get(kind, str(kind))
    if choices:
        expected = f"one of {', '.join(map(str, choices))}{_near(str(value), choices)}"
    raise UserError(f"{key}={value}: expected {expected}")


def _near(value: str, choices: Sequence[Any]) -> str:
    return suggest(value, [str(c) for c in choices]).split(" known:")[0].rstrip(";")


def settings(cls: type) -> dict[str, Any]:
    """Name -> type of the fields of a dataclass that can be set."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init and f.name not in _NAMES}


def known_settings(algo: str, task: str) -> dict[str, dict[str, Any]]:
    """Owner (run, algorithm, task) -> name -> type of everything that can be set of a run.

    Raises:
        UserError: an unknown name; the nearest is suggested.
    """
    owners: dict[str, type] = {"run": RunSpec, "algorithm": algorithms.get(algo), "task": tasks.get(task)}
    return {owner: settings(cls) for owner, cls in owners.items()}


def known_data_settings(task: str, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Like :func:`known_settings`, for data alone: no algorithm, and of the run's settings those in ``names``."""
    run = {name: kind for name, kind in settings(RunSpec).items() if name in names}
    return {"run": run, "task": settings(tasks.get(task))}


def parse_sets(pairs: Sequence[str], flag: str = "--set") -> dict[str, str]:
    """``["beta=0.3"]`` to a dict.

    Raises:
        UserError: an entry has no ``=`` or a key stands twice.
    """
    out: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{flag} {pair}: expected key=value, such as {flag} beta=0.3")
        if key.strip() in out:
            raise UserError(f"{flag} {key.strip()} is given twice")
        out[key.strip()] = value.strip()
    return out


def parse_flags(
    words: Sequence[str], known: Mapping[str, Mapping[str, Any]], options: Sequence[str] = ()
) -> dict[str, str]:
    """``["--tool-format", "hermes", "--shift"]`` to a dict; a flag without a value is true, ``--no-shift`` false.

    Args:
        words: what was typed beside the command's own options.
        known: as of :func:`known_settings`.
        options: the command's own options, to suggest.

    Raises:
        UserError: a flag is no setting, or stands twice, or a word belongs to no flag.
    """
    names = {name for fields in known.values() for name in fields}
    out: dict[str, str] = {}
    left = list(words)
    while left:
        flag, equals, value = left.pop(0).partition("=")
        if not flag.startswith("--"):
            raise UserError(f"{flag!r} belongs to no option: expected --name value, such as --beta 0.3")
        key = flag.removeprefix("--").replace("-", "_")
        if not equals and left and not left[0].startswith("--"):
            value = left.pop(0)
        elif not equals:
            off = key not in names and key.removeprefix("no_") in names
            key, value = (key.removeprefix("no_"), "false") if off else (key, "true")
        if key.rpartition(".")[2] not in names:
            flags = [*options, *(f"--{name.replace('_', '-')}" for name in sorted(names))]
            raise UserError(f"No such option: {flag}{_near(flag, flags)}")
        if key in out:
            raise UserError(f"{flag} is given twice")
        out[key] = value
    return out


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping of settings; sections ``algorithm``, ``task_options`` and ``run`` are flattened.

    Raises:
        UserError: the file is missing, no YAML, or no mapping.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping such as 'beta: 0.3'")
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= {f"{'task' if key == 'task_options' else key}.{k}": v for k, v in value.items()}
        else:
            flat[str(key)] = value
    return flat


def merged(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Later sources win over earlier ones, also where one writes ``run.steps`` and the other ``steps``."""
    out: dict[str, Any] = {}
    for source in sources:
        for key, value in source.items():
            prefix, _, name = key.rpartition(".")
            same = [
                k for k in out if k.rpartition(".")[2] == name and (not prefix or k.rpartition(".")[0] in ("", prefix))
            ]
            for k in same:
                if k not in source:
                    del out[k]
            out[key] = value
    return out


def data_setting(task: str, path: str) -> str:
    """Which setting ``--data`` gives: the run's dataset, or, where the task reads data of its own, that.

    A folder made by ``shiq-bench data build`` is always the run's.

    Raises:
        UserError: an unknown task.
    """
    own = next((f.name for f in dataclasses.fields(tasks.get(task)) if f.metadata.get("data")), None)  # type: ignore[arg-type]
    return "data" if own is None or (Path(path) / MANIFEST).is_file() else f"task.{own}"


def resolve(algo: str, task: str, values: Mapping[str, Any]) -> Resolved:
    """Check every name and value, and fill in every default.

    Raises:
        UserError: an unknown name or key (the nearest is suggested), or a value out of range.
    """
    algorithm_class, task_class = algorithms.get(algo), tasks.get(task)
    what = f"{algo} on {task}"
    given = _given(values, known_settings(algo, task), what)
    made_task = _make(task_class, given["task"], what)
    defaults = made_task.defaults_for(given["run"].get("model"))
    takes = {f.name for f in dataclasses.fields(algorithm_class) if f.metadata.get("advised", True)}  # type: ignore[arg-type]
    advised = {name: defaults[f"algorithm.{name}"] for name in takes if f"algorithm.{name}" in defaults}
    algorithm = _make(algorithm_class, {**advised, **given["algorithm"]}, what)
    spec = _spec(algo, task, _outcome(algorithm), made_task, _with_data(given["run"], task))
    return Resolved(spec, algorithm, made_task, dict(values))


def resolve_data(task: str, values: Mapping[str, Any], names: Collection[str]) -> tuple[RunSpec, Task]:
    """Like :func:`resolve`, for data alone: no algorithm, and of the run's settings those in ``names``.

    Raises:
        UserError: an unknown name or key (the nearest is suggested), or a value out of range.
    """
    given = _given(values, known_data_settings(task, names), f"data of {task}")
    made = _make(tasks.get(task), given["task"], f"data of {task}")
    return _spec("", task, {}, made, given["run"]), made


def _given(values: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], what: str) -> dict[str, dict[str, Any]]:
    """Owner -> name -> value of its type."""
    given: dict[str, dict[str, Any]] = {owner: {} for owner in known}
    for key, value in values.items():
        owner, name = _owner(key, known, what)
        if name in given[owner]:
            raise UserError(f"{key} is given twice")
        given[owner][name] = coerce(key, value, known[owner][name])
    return given


def _with_data(given: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Settings of the run, with what the manifest of a dataset says where one is given.

    ``samples`` and ``gold`` are those of the dataset, for nothing else is drawn; ``data_seed``
    also draws preference labels, so it is only the default.

    Raises:
        UserError: it is not the dataset asked for, or not drawn with the settings given beside it.
    """
    told = dict(given)
    asked = told.pop("data_hash", "")
    if not told.get("data"):
        if asked:
            raise UserError(f"data_hash={asked} names a dataset and none is given: add --data FOLDER, or leave it out")
        return told
    manifest = read_manifest(Path(told["data"]))
    if manifest["task"] != task:
        raise UserError(f"{told['data']} holds data of task {manifest['task']}; expected {task}: give another --data")
    found = manifest["sha256"][:HASH]
    if asked not in ("", found):
        raise UserError(
            f"data_hash={asked}, and {told['data']} is {found}: give the --data it was, or leave data_hash out"
        )
    fixed = {name: manifest[name] for name in ("samples", "gold")}
    for name, value in fixed.items():
        if told.get(name, value) != value:
            asked_for, made = (f"{name}={str(v).lower()}" for v in (told[name], value))
            raise UserError(f"{asked_for}, and {told['data']} was drawn with {made}: leave {name} out, or --set {made}")
    return {"data_seed": manifest["data_seed"], **told, **fixed, "data_hash": found}


def _spec(algo: str, task: str, options: Mapping[str, Any], made: Task, given: Mapping[str, Any]) -> RunSpec:
    engine = given.get("engine", "auto")
    if engine == "auto":
        engine = "hf" if vllm_lacks() else "vllm"
    defaults = {k: v for k, v in made.defaults_for(given.get("model")).items() if "." not in k}
    told = {**defaults, **given, "engine": engine}
    if told.get("precision", "auto") == "auto":
        told["precision"] = fast_precision()
    return RunSpec(algo=algo, task=task, algo_options=options, task_options=_outcome(made), **told)


def _make(cls: type[T], options: Mapping[str, Any], what: str) -> T:
    try:
        return cls(**options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what}: {error}") from error


def _outcome(made: Any) -> dict[str, Any]:
    """The options that can change a result, with their values; ``outcome: False`` in a field's metadata excepts it."""
    return {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.metadata.get("outcome", True)}


def _owner(key: str, known: Mapping[str, Mapping[str, Any]], what: str) -> tuple[str, str]:
    prefix, dot, name = key.partition(".")
    if dot and prefix in known:
        if name not in known[prefix]:
            raise UserError(f"no setting is called {key!r}{suggest(name, sorted(known[prefix]))}")
        return prefix, name
    owners = [owner for owner in known if key in known[owner]]
    if len(owners) > 1:
        raise UserError(f"{key!r} is a setting of {' and '.join(owners)}: write {owners[0]}.{key} or {owners[1]}.{key}")
    if not owners:
        names = sorted({name for fields in known.values() for name in fields})
        raise UserError(f"{what} has no setting {key!r}{suggest(key, names)}")
    return owners[0], key
