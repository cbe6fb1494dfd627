"""The commands together, and how they end."""

from __future__ import annotations

import sys

import typer

from shiq_bench.cli.bench import bench
from shiq_bench.cli.data import data
from shiq_bench.cli.options import SETTINGS_AS_FLAGS
from shiq_bench.cli.results import compare, report, table
from shiq_bench.cli.reward import reward, score
from shiq_bench.cli.run import list_, run
from shiq_bench.cli.sweep import status, study, sweep
from shiq_bench.records.errors import UserError
from shiq_bench.records.escaping import one_line

app = typer.Typer(
    name="shiq-bench",
    help="A fair comparison of reinforcement-learning fine-tuning methods for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # or else half of --help is the import of a Markdown parser
    context_settings={"max_content_width": 120},
)
for group in (bench, data, reward):
    app.add_typer(group)
app.command(context_settings=SETTINGS_AS_FLAGS)(run)
for command in (table, compare, report, study, sweep, status, score):
    app.command()(command)
app.command(name="list")(list_)

INTERRUPTED = 130


def main() -> None:
    """Entry point: bad input is one line and exit code 2, an interruption 130."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        typer.echo(f"error: {one_line(error)}", err=True)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # Click's own errors (unknown option, missing value) carry their exit code and one line.
        show = getattr(error, "format_message", None)
        if show is None:
            raise
        if text := show():
            typer.echo(f"error: {text}", err=True)
        code = getattr(error, "exit_code", 2)
    if code == INTERRUPTED:
        typer.echo("interrupted: the same command goes on from here (shiq-bench run: with --resume)", err=True)
    sys.exit(code if isinstance(code, int) else 0)
