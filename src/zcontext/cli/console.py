"""What every command shares: errors as one line, exit codes, progress on standard error.

Standard output belongs to results; whatever is said beside them goes to standard error.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperCommand

from zcontext.errors import ZContextError

FAILED: Final = 1
INTERRUPTED: Final = 130

Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Other")
]


class Command(TyperCommand):
    """A command whose errors are one readable line, and whose exit code says what happened.

    Its help ends with the lines under `Example:` of its docstring, kept as they are.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        text = kwargs.get("help")
        if text:
            # A backspace on a line of its own tells typer not to join the lines that follow.
            kwargs["help"] = text.replace("\n\nExample:", "\n\n\b\nExample:")
        super().__init__(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Args:
            ctx: The parsed command line.

        Returns:
            What the command returns.

        Raises:
            SystemExit: The command failed (1) or was interrupted (130).
        """
        # It advises, on every load, to install packages that nothing here needs.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has gone. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(FAILED) from None
        except (ZContextError, OSError) as error:
            _explain(_one_line(error), debug=ctx.params.get("debug", False))
            raise SystemExit(FAILED) from error
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise  # wrong usage and asked-for exits are typer's to show
            message = f"unexpected {type(error).__name__}: {_one_line(error)}"
            if not ctx.params.get("debug", False):
                message += " (a bug: run again with --debug and report it)"
            _explain(message, debug=ctx.params.get("debug", False))
            raise SystemExit(FAILED) from error


def say(message: str) -> None:
    """One line on standard error.

    Args:
        message: What to say.
    """
    typer.echo(f"zcontext: {message}", err=True)


def _explain(message: str, *, debug: bool) -> None:
    if debug:
        typer.echo(traceback.format_exc(), err=True, nl=False)
    say(message)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return told.replace("\n", " ")
    return " ".join(str(error).split()) or type(error).__name__


def show_logs() -> None:
    """Send the log lines of zcontext to standard error, as commands that run long want it."""
    from rich.logging import RichHandler

    logger = logging.getLogger("zcontext")
    if not logger.handlers:
        logger.addHandler(RichHandler(console=errors(), show_path=False))
        logger.setLevel(logging.INFO)


def results() -> Console:
    """A console on standard output: as wide as the terminal, or wide enough for any table."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


def errors() -> Console:
    """A console on standard error as it is now."""
    return Console(stderr=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, shown only where somebody can watch it.

    Args:
        what: Shown until the first report.

    Yields:
        A function of (what is being done, steps done, steps in all; 0 if nobody knows).
    """
    console = errors()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        bar = shown.add_task(what, total=None)

        def report(label: str, done: int, total: int) -> None:
            shown.update(bar, description=label, completed=done, total=total or None)

        yield report
