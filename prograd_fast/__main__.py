"""The command `prograd-fast`, also as `python -m prograd_fast`: what belongs to its process, then the `cli`."""

import io
import os
import sys
import warnings
from typing import Any, TextIO

from prograd_fast import interrupts, show_config
from prograd_fast.printable import printable


def main() -> None:
    """Run the command. Where only the core is installed, `doctor` still works, and all else tells what to install."""
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)
    warnings.showwarning = _show_warning
    _leave(_code())


def _code() -> int:
    try:
        from prograd_fast import cli
    except ModuleNotFoundError as error:
        if sys.argv[1:] == ["doctor"]:
            print(show_config())
            return 0
        print(f'prograd-fast: {error.name} is not installed: pip install "prograd-fast[demo]"', file=sys.stderr)
        return 2
    return cli.run(sys.argv[1:])


def _leave(code: int) -> None:
    if code > 128:  # interrupted: threads that look at pictures are not waited for
        print(interrupts.line(), file=sys.stderr)
        interrupts.leave(code)
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tries again, and tells with a traceback
        print(f"prograd-fast: {error}", file=sys.stderr)
        code = code or 2
    sys.exit(code)


class _Pipe(io.FileIO):
    """What is written to it may be lost: a run that took hours does not end because `head` has seen enough.

    Of stdout only a reader that has gone away is no error; where errors are told, nothing is.
    """

    def write(self, data: Any) -> int:
        """As of `io.FileIO`."""
        try:
            return super().write(data) or 0
        except OSError as error:
            if self.fileno() != 2 and not isinstance(error, BrokenPipeError):
                raise OSError(f"cannot write to stdout: {error.strerror}") from error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _stream(number: int, given: TextIO | None) -> TextIO:
    """A stream like the one given, None if that was closed, which shows what its encoding lacks as escapes."""
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
    for text in warnings.formatwarning(message, category, filename, lineno, line).splitlines():
        print(printable(text), file=sys.stderr)


if __name__ == "__main__":
    main()
