"""The page of the command: every subcommand with its arguments and options, as `--help` has them."""

import inspect
import re
from pathlib import Path
from typing import Any

import typer

from prograd_fast.cli.app import app


def write(folder: Path) -> None:
    """Write the page.

    Args:
        folder: Its folder in the site's source.
    """
    root = typer.main.get_command(app)
    parts = ["# The command", "", "Every subcommand of `prograd-fast`, with all options, as `--help` shows them.", ""]
    for name, command in _commands(root, "prograd-fast"):
        parts += [f"## {name}", "", _text(command.help or ""), ""]
        options = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        if options:
            parts += ["| argument or option | meaning |", "| --- | --- |"]
            parts += [_row(option) for option in options]
            parts += [""]
    (folder / "command.md").write_text("\n".join(parts), encoding="utf-8")


def _commands(command: Any, name: str) -> list[tuple[str, Any]]:
    """The commands below one, in the order of its help; a group is not one itself."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        return [(name, command)]
    return [found for part, below in subcommands.items() for found in _commands(below, f"{name} {part}")]


def _text(text: str) -> str:
    return re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", inspect.cleandoc(text))


def _row(option: Any) -> str:
    named = option.opts[0].startswith("-")
    value = option.metavar or option.name.upper()
    words = [*option.opts, *([] if getattr(option, "is_flag", False) else [value])] if named else [value]
    meaning = _text(getattr(option, "help", "") or "")
    if option.default not in (None, False) and not callable(option.default) and getattr(option, "show_default", True):
        meaning += f" Default: {option.default}."
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{' '.join(words)}`", meaning)) + " |"
