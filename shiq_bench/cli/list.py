"""``shiq-bench list``."""

from __future__ import annotations

from typing import Annotated

import typer

from shiq_bench.cli.options import Plugins, load_plugins


def list_(
    algo: Annotated[str, typer.Option(help="One algorithm, with its settings.")] = "",
    task: Annotated[str, typer.Option(help="One task, with its settings.")] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="All that it says of itself.")] = False,
    plugin: Plugins = None,
) -> None:
    """Algorithms and tasks, one line each; or one of them in full."""
    from rich.console import Console

    from shiq_bench.cli.listing import print_list, print_one

    load_plugins(plugin)
    if not algo and not task:
        print_list(Console())
    for kind, name in (("algorithm", algo), ("task", task)):
        if name:
            print_one(Console(), kind, name, verbose)
