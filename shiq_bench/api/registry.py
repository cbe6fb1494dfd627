"""Names to algorithms and tasks, imported only when asked for."""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from shiq_bench.api.algorithm import Algorithm
from shiq_bench.api.task import Task
from shiq_bench.records.errors import UserError, suggest
from shiq_bench.records.hashing import stable_hash

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to classes, imported only when asked for.

    A built-in is a module of ``package``; third parties come through the entry-point group
    ``shiq_bench.<package>`` or :func:`load_plugin`.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._classes: dict[str, type[T]] = {}

    def add(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator.

        Raises:
            UserError: the name is taken by another class.
        """

        def register(cls: type[T]) -> type[T]:
            built_in = self._module(name)
            if built_in and not f"{cls.__module__}.".startswith(f"{built_in}."):
                raise UserError(f"two {self.kind}s are called {name!r}: {built_in} and {cls.__module__}")
            have = self._classes.setdefault(name, cls)
            if (have.__module__, have.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UserError(f"two {self.kind}s are called {name!r}: {have.__module__} and {cls.__module__}")
            self._classes[name] = cls
            return cls

        return register

    def _module(self, name: str) -> str | None:
        """The built-in module of a name, imported or not."""
        stem = name.replace("-", "_")
        module = f"{self.package}.{stem}"
        return module if stem.isidentifier() and importlib.util.find_spec(module) else None

    def names(self) -> list[str]:
        """Every registered name, sorted; imports every module."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.package):
            try:
                point.load()
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"plugin {point.value} cannot be imported: {type(error).__name__}: {error}") from error
        return sorted(self._classes)

    def get(self, name: str) -> type[T]:
        """The class of a name.

        Raises:
            UserError: no such name; the nearest is suggested.
        """
        if name not in self._classes and (module := self._module(name)):
            importlib.import_module(module)
        if name not in self._classes and name not in (names := self.names()):
            raise UserError(f"no {self.kind} is called {name!r}{suggest(name, names)}")
        return self._classes[name]


algorithms: Registry[Algorithm] = Registry("algorithm", "shiq_bench.algorithms")
tasks: Registry[Task] = Registry("task", "shiq_bench.tasks")

algorithm = algorithms.add
task = tasks.add


def load_plugin(path: Path) -> ModuleType:
    """Import one file that registers algorithms or tasks.

    Raises:
        UserError: no such file, or it cannot be imported.
    """
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"no plugin file at {path}")
    name = f"shiq_bench_plugin_{path.stem}_{stable_hash(str(path))[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: a plugin ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"plugin {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
