"""The command `data check`."""

from typing import Annotated

import typer
from typer import Argument

from prograd_fast.cli.pictures import open_pictures
from prograd_fast.terminal.output import Table, console, progress, say

data_app = typer.Typer(help="Look at pictures before anything is trained on them.", no_args_is_help=True)

_FOLDER = "Check this folder, which has one folder of pictures per class, or this embedded set."


@data_app.command()
def check(folder: Annotated[str, Argument(metavar="DIR", help=_FOLDER)]) -> None:
    """Count pictures, decode each, and find copies and near copies between training and test.

    Example: [bold]prograd-fast data check my_pictures[/bold]

    The exit code is 0 if nothing is wrong, and 3 if there are problems.
    """
    from prograd_fast.data.check import NAMED, check_pictures

    unreadable: list[str] = []
    pictures = open_pictures(folder, unreadable=unreadable)
    with progress() as track:
        found = check_pictures(pictures, unreadable, track("looking at the pictures", len(pictures)))
    table = Table("class", "to learn from", "validation", "test", "all")
    for name, parts in found.counts:
        table.add_row(name, *map(str, parts), str(sum(parts)))
    console.print(table)
    if found.sizes:
        say(f"Sizes in pixels: {found.sizes}")
    for problem in found.problems:
        say(f"Problem: {problem}.")
    if len(found.unreadable) > NAMED:
        for line in found.unreadable:
            say(line)
    if found.problems:
        raise typer.Exit(3)
    say("No problem found.")
