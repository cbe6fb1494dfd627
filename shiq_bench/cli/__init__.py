"""The command line, one file a group of commands. Anything heavy is imported inside a command."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``shiq-bench``; see :func:`shiq_bench.cli.app.main`."""
    from shiq_bench.cli.app import main as run

    run()
