"""The command line: `zcontext compress | decompress | ask | inspect | prepare | train | ...`.

This module puts the commands together; each group has a module of its own. Nothing here imports
torch: a command does when it runs, so that `zcontext --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from zcontext import __version__
from zcontext.cli import asking, bundles, inspecting, learning, measuring, spanning
from zcontext.cli.console import INTERRUPTED, Command, say

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error, told in one line on standard error (--debug shows where); "
    "2 wrong usage; 130 interrupted."
)

app = typer.Typer(
    name="zcontext",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zcontext {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Text as Z-tokens: symbols that a language model wrote for itself and reads back."""


app.command("compress", cls=Command)(spanning.compress)
app.command("decompress", cls=Command)(spanning.decompress)
app.command("ask", cls=Command)(asking.ask)
app.command("inspect", cls=Command)(inspecting.inspect)
app.command("prepare", cls=Command)(learning.prepare)
app.command("questions", cls=Command)(learning.questions)
app.command("instructions", cls=Command)(learning.instructions)
app.command("train", cls=Command)(learning.train)
app.add_typer(measuring.app, name="eval")
app.add_typer(bundles.app, name="bundle")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: What follows the program's name; None means the process's own.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="zcontext")
    except KeyboardInterrupt:  # outside a command: while its arguments were read
        say("interrupted")
        raise SystemExit(INTERRUPTED) from None
