"""Standard streams, warnings and log lines of a command: nothing that is written there ends it with a traceback."""

import io
import logging
import os
import sys
import warnings
from typing import Any, TextIO

from prograd_fast.terminal.printable import message_line, printable


def prepare() -> None:
    """Replace stdout and stderr by streams that bear a reader that goes away, and show warnings in printable lines."""
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)
    warnings.showwarning = _show_warning


class LogLines(logging.Handler):
    """Log records as printable lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        print(message_line(record.getMessage()), file=sys.stderr)


class _Pipe(io.FileIO):
    """A standard stream whose reader may go away: a run that took hours does not end because `head` has seen enough.

    stdout raises any other error, once. stderr raises none, as there is no place left to show it.
    """

    def write(self, data: Any) -> int:
        """See `io.FileIO`."""
        try:
            return super().write(data) or 0
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # what is buffered is written there later
            if self.fileno() != 2 and not isinstance(error, BrokenPipeError):
                raise OSError(f"cannot write to stdout: {error.strerror}") from error
            return len(data)


def _stream(number: int, given: TextIO | None) -> TextIO:
    """A stream like the given one (None: it was closed). It escapes what its encoding lacks."""
    raw = _Pipe(number, "w", closefd=False)
    encoding = getattr(given, "encoding", None) or "utf-8"
    lines = number == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=lines)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """As `warnings.showwarning`, in printable lines."""
    for text in warnings.formatwarning(message, category, filename, lineno, line).splitlines():
        print(printable(text), file=sys.stderr)
