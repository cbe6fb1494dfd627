"""Options that several commands share, and what they do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Results = Annotated[Path, typer.Option(help="Folder of run records.")]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file that registers algorithms or tasks.")
]
Model = Annotated[str | None, typer.Option(help="'tiny', a folder, or a hub id.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value: any setting of the run, the algorithm or the task.")
]


def load_plugins(paths: list[Path] | None) -> None:
    """Import the files given by ``--plugin``.

    Raises:
        UserError: no such file, or it cannot be imported.
    """
    from shiq_bench.api.registry import load_plugin

    for path in paths or []:
        load_plugin(path)
