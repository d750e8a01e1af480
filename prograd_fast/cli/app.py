"""All commands under one name, and the line and exit code of one that fails."""

import logging
import sys
import traceback
import warnings
from typing import Annotated

import typer

from prograd_fast.cli.cache import cache_app
from prograd_fast.cli.compare import compare
from prograd_fast.cli.data import data_app
from prograd_fast.cli.demo import demo
from prograd_fast.cli.export import export, interpret
from prograd_fast.cli.lists import doctor, methods, models
from prograd_fast.cli.ranks import begin
from prograd_fast.cli.report import report
from prograd_fast.cli.reproduce import reproduce
from prograd_fast.cli.saved_run import evaluate, predict
from prograd_fast.cli.train import train
from prograd_fast.terminal import interrupts
from prograd_fast.terminal.printable import message_line, printable
from prograd_fast.terminal.streams import LogLines

_DEBUG = "--debug"

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
for command in (train, methods, models, evaluate, predict, report, export, interpret, compare, reproduce, demo, doctor):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback where a command fails.")] = False,
) -> None:
    """Adapt a CLIP model to a few pictures per class, and keep what it knew."""


def run(arguments: list[str]) -> int:
    """Run the command.

    `--debug`, anywhere before a `--`, shows the traceback where it fails.

    Returns:
        The exit code: 0 for success, 2 for wrong input, 1 for any other failure, 130 after SIGINT, 143 after SIGTERM.
        A failure prints one line on stderr. The caller prints the line of an interruption.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != _DEBUG]
    debug = len(options) < end
    interrupts.hint = str
    logging.lastResort = LogLines(logging.WARNING)
    # a picture is read or refused; Pillow's warnings in between name no file
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        begin(options)
        # app(...) would turn KeyboardInterrupt into an exit code
        command = typer.main.get_command(app)
        with command.make_context("prograd-fast", [*options, *arguments[end:]] or ["--help"]) as context:
            command.invoke(context)
        return 0
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort) as error:
        return getattr(error, "code", 130)
    except Exception as error:
        if debug:
            for line in "".join(traceback.format_exception(error)).splitlines():
                print(printable(line), file=sys.stderr)
        code, message = _code_and_message(error, debug)
        if not message:  # a group without a command: its help is printed
            return 0
    print(f"prograd-fast: {message_line(message)}", file=sys.stderr)
    return code


def _code_and_message(error: Exception, debug: bool) -> tuple[int, str]:
    """The exit code of an error, 2 for wrong input and 1 for all else, and its message."""
    if hasattr(error, "format_message"):  # a usage error; typer's click has no public address in newer releases
        return 2, error.format_message()
    named = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, ValueError | OSError | ImportError):
        return 2, str(error) if " " in str(error).strip() else named  # a lone word or number says nothing
    if isinstance(error, MemoryError) or "out of memory" in named or "allocate memory" in named:
        return 1, f"out of memory ({named}); train on fewer pictures or classes at once (--max-memory, --accumulate)"
    shown = "" if debug else f"; {_DEBUG} shows where"
    return 1, f"{named}. This is a mistake in prograd-fast, or in a package that it uses{shown}. Please report it."
