"""The command line, one file a group of commands.

Anything heavy is imported inside a command, so that ``--help`` answers at once.
"""

from shiq_bench.cli.app import main

__all__ = ["main"]
