"""Counts among the options of a recipe's command."""

import argparse
from collections.abc import Callable


def at_least(lowest: int) -> Callable[[str], int]:
    """A `type` of argparse's options: an integer that is so large, or one line that says what was expected."""

    def count(text: str) -> int:
        if not text.lstrip("+-").isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"expected an integer of {lowest} or more, got {text!r}")
        return int(text)

    return count
