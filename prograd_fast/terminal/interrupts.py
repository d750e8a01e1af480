"""Ctrl-C and SIGTERM: the command ends with one line, at once, or, while it trains, when its state is saved.

This module imports as little as possible: before its handler is set, no signal can end in a line.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as type checkers understand it; `typing` takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_COMMAND = "prograd-fast"

hint: Callable[[], str] = str
"""Tells how to go on, in printable text at the end of the line. Commands that can go on set it."""


class Interrupted(KeyboardInterrupt):
    """A signal that waited until the state was saved. Only the command raises it.

    Attributes:
        code: exit code of a process that ends by it.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


class Held:
    """A context manager in which SIGINT and SIGTERM wait, so that its block is never stopped half-way.

    `came` holds a signal that arrives. `deliver` and the end of the block pass it to the handler that was set before,
    such as Python's, which raises KeyboardInterrupt. Ignored signals stay ignored. In other threads than the main one
    nothing happens, because signals do not come there.

    Attributes:
        came: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        self._before: dict[int, Any] = {}
        self._waiting = False

    def __enter__(self) -> Held:
        import threading

        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if kind is None:
            self._send()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = self.came or number
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def wait(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, which changes nothing and may be stopped; None where a signal stopped it."""
        try:
            self._waiting = self.came is None
            return work() if self._waiting else None
        except KeyboardInterrupt:
            if self.came is None:
                raise
            return None
        finally:
            self._waiting = False

    def deliver(self) -> None:
        """Let the signal go on its way, if one came. Later ones wait again."""
        if self.came is not None:
            self._restore()
            self._send()
            self.__enter__()

    def _send(self) -> None:
        number, self.came = self.came, None
        if number is None:
            return
        if signal.getsignal(number) is _end:  # it would end the process before open files are closed
            raise Interrupted(number)
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


def is_command() -> bool:
    """Whether this process is `prograd-fast` or `python -m prograd_fast`. Works before the package is imported."""
    started_as = sys.argv[0] if sys.argv else ""
    if started_as == "-m":  # Python's placeholder until it has found the module
        return "prograd_fast" in sys.orig_argv
    return os.path.splitext(os.path.basename(started_as))[0] == _COMMAND


def end_in_one_line() -> None:
    """From now on SIGINT and SIGTERM end the process at once, with one line and exit code 130 or 143.

    The stack is not unwound. While packages are imported, Python code runs inside of C code, which can change or lose
    an exception. Files are written whole or not at all, so that this end is no worse than being killed. Signals that
    are ignored, as by `nohup`, stay ignored.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: a file that is opened later must not be taken for stdout or stderr
            os.open(os.devnull, os.O_RDWR)
    for number, default in zip(_SIGNALS, (signal.default_int_handler, signal.SIG_DFL), strict=True):
        if signal.getsignal(number) == default:
            signal.signal(number, _end)


def line() -> str:
    """The line of a command that was interrupted."""
    return f"{_COMMAND}: interrupted{hint()}"


def leave(code: int) -> NoReturn:
    """End the process without waiting for threads."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # closed, full, or the signal came in the midst of a write
            continue
    os._exit(code)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    for other in _SIGNALS:  # one line, however often somebody presses Ctrl-C
        signal.signal(other, signal.SIG_IGN)
    # a progress bar leaves the cursor hidden and in the midst of a line
    bar_ends = "\n\x1b[?25h" if os.isatty(2) else ""
    try:  # not through sys.stderr: the signal may have come in the midst of a write
        os.write(2, f"{bar_ends}{line()}\n".encode(errors="backslashreplace"))
    finally:  # even where stderr is closed
        leave(128 + number)
