"""Tables, sentences and progress bars on a terminal. They show every name as text, whatever is in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich.table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from prograd_fast.terminal.printable import printable

console = Console(highlight=False)


def say(text: str) -> None:
    """Print one line, however long."""
    print(printable(text))


def plain(text: object) -> Text:
    """A text for rich as it is: without markup and emoji codes, printable."""
    return Text(printable(text))


class Table(rich.table.Table):
    """Rich's table of plain texts."""

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        """See `rich.table.Table`."""
        super().add_column(plain(header), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """See `rich.table.Table`."""
        super().add_row(*map(plain, cells), **options)


@contextmanager
def progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Progress bars on stderr, so that stdout has the results alone."""
    described = TextColumn("{task.description}", markup=False)
    columns = (described, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def track(label: str, total: int) -> Callable[[], None]:
            task = bars.add_task(printable(label), total=total)
            return lambda: bars.advance(task)

        try:
            yield track
        except BaseException:
            bars.console.quiet = not bars.console.is_terminal  # a file or pipe gets only the line of the error
            raise
