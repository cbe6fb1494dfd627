"""The content-addressed cache: a folder a key, built once among all processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from shiq_bench.records.errors import UserError
from shiq_bench.records.files import write_json
from shiq_bench.records.hashing import stable_hash
from shiq_bench.records.leases import wait


def home() -> Path:
    """Root of every cache: ``$SHIQ_BENCH_HOME``, or ``~/.cache/shiq-bench``."""
    return Path(os.environ.get("SHIQ_BENCH_HOME") or Path.home() / ".cache" / "shiq-bench")


_TELLING: ContextVar[Callable[[str, str], None]] = ContextVar("telling", default=lambda what, who: None)


@contextlib.contextmanager
def telling(tell: Callable[[str, str], None]) -> Iterator[None]:
    """Have ``tell(what is waited for, who makes it)`` called when :func:`cached_folder` waits for another process."""
    token = _TELLING.set(tell)
    try:
        yield
    finally:
        _TELLING.reset(token)


def cached_folder(kind: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder built for ``key``, building it once; what an interrupted build leaves is swept up.

    Of several processes that need it at once, one builds it and the others wait.
    ``key`` must hold everything that determines the content, as JSON data.
    """
    folder = home() / kind / stable_hash(key)[:24]

    def done() -> bool:
        return (folder / "key.json").is_file()

    def on_wait(who: str) -> None:
        _TELLING.get()(kind.replace("-", " "), who)

    try:
        lease = wait(folder.with_name(f".{folder.name}.lease"), done, on_wait)
    except UserError as error:
        raise UserError(f"{error}; set SHIQ_BENCH_HOME to another folder for the cache") from None
    if lease is None:
        return folder
    with lease:
        if lease.inherited:  # what a killed process had begun
            for begun in folder.parent.glob(f".{folder.name}.*/"):
                shutil.rmtree(begun, ignore_errors=True)
        if done():
            return folder
        place = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True)
        with place as temporary:
            build(Path(temporary))
            write_json(Path(temporary) / "key.json", dict(key))
            try:
                os.rename(temporary, folder)
            except OSError:
                if not done():
                    raise
    return folder
