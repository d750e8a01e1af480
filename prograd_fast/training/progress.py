"""The interface of a progress bar: the command brings one for a terminal."""

from collections.abc import Callable
from typing import Protocol


class Bar(Protocol):
    """A progress bar of known length."""

    def __call__(self) -> None:
        """Move it on by one."""

    def note(self, text: str) -> None:
        """Show a short text behind it, in the place of the one before."""


Track = Callable[[str, int], Bar]
"""Opens a progress bar of a label and a length."""
