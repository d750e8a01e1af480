"""Processes that tests start by a fork: all is imported there already, which takes seconds in a new Python."""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from prograd_fast import __main__
from prograd_fast.terminal import interrupts
from tests.paths import REPOSITORY


class Forked:
    """A child of this process that runs a function. What it prints is kept.

    Attributes:
        pid: of the child.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(function,))
        self._process.start()
        self.pid: int = self._process.pid or 0

    def _run(self, function: Callable[[], object]) -> None:
        for number in (1, 2):
            os.dup2(os.open(Path(self._folder.name, str(number)), os.O_CREAT | os.O_WRONLY), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        # a test has made errors of warnings, and collects what is logged
        warnings.resetwarnings()
        logging.getLogger().handlers.clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background has inherited another
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        function()

    def send_signal(self, number: int) -> None:
        """Send a signal to the child."""
        os.kill(self.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end. Returns the exit code, negative for a signal, and what came to stdout and stderr."""
        self._process.join(timeout=120)
        code = self._process.exitcode
        assert code is not None, "the child does not end"
        with self._folder as folder:
            out, err = (Path(folder, str(number)).read_text() for number in (1, 2))
        return code, out, err


def forked_command(*arguments: str | Path | float) -> Forked:
    """The command `prograd-fast`, as it is after Python's start and its imports."""

    def command() -> None:
        os.chdir(REPOSITORY)
        sys.argv = ["prograd-fast", *map(str, arguments)]
        interrupts.end_in_one_line()
        __main__.main()

    return Forked(command)
