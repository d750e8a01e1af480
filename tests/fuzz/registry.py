"""The targets of the fuzz driver by name."""

from collections.abc import Callable
from pathlib import Path
from random import Random

Target = Callable[[Random, Path], None]
TARGETS: dict[str, Target] = {}


def target(name: str) -> Callable[[Target], Target]:
    """Register a function that tries one random case."""

    def register(function: Target) -> Target:
        TARGETS[name] = function
        return function

    return register
