"""Tables, sentences and progress bars on a terminal. They show every name as text, whatever is in it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import rich.table
from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from prograd_fast.terminal.printable import printable

_WIDEST = 10_000  # columns of a table in a file or pipe


class _WholeTables(Console):
    """A console that does not wrap for a file or pipe, unless COLUMNS says how wide it is."""

    @property
    def size(self) -> ConsoleDimensions:
        """See `rich.console.Console`."""
        size = super().size
        return size if self.is_terminal or "COLUMNS" in os.environ else ConsoleDimensions(_WIDEST, size.height)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        Console.size.fset(self, size)  # type: ignore[attr-defined]


console = _WholeTables(highlight=False)

muted = False  # no progress bars: of several processes that do the same, one shows them


def say(text: str) -> None:
    """Print one line, however long."""
    print(printable(text))


def plain(text: object) -> Text:
    """A text for rich as it is: without markup and emoji codes, printable."""
    return Text(printable(text))


class Table(rich.table.Table):
    """Rich's table of plain texts, whole: where a column is too narrow for a word, it goes on in the next line."""

    def add_column(self, header: Any = "", *arguments: Any, overflow: Any = "fold", **options: Any) -> None:
        """See `rich.table.Table`."""
        super().add_column(plain(header), *arguments, overflow=overflow, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """See `rich.table.Table`."""
        super().add_row(*map(plain, cells), **options)


class Bar:
    """A progress bar; the form of `prograd_fast.training.Bar`."""

    def __init__(self, bars: Progress, label: str, total: int) -> None:
        self._bars = bars
        self._task = bars.add_task(printable(label), total=total, note="")

    def __call__(self) -> None:
        """Move it on by one."""
        self._bars.advance(self._task)

    def note(self, text: str) -> None:
        """Show a text behind it."""
        self._bars.update(self._task, note=printable(text))


def _stderr(passing: bool) -> Console:
    stderr = Console(stderr=True)
    stderr.quiet = muted or (passing and not stderr.is_terminal)
    return stderr


@contextmanager
def progress(passing: bool = False) -> Iterator[Callable[[str, int], Bar]]:
    """Progress bars on stderr, so that stdout has the results alone.

    Args:
        passing: they vanish at the end, and a file or pipe gets none.
    """
    described, noted = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[note]}", markup=False)
    columns = (described, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), noted)
    with Progress(*columns, console=_stderr(passing), transient=passing) as bars:
        try:
            yield partial(Bar, bars)
        except BaseException:
            bars.console.quiet = not bars.console.is_terminal  # a file or pipe gets only the line of the error
            raise
