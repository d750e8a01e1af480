"""Fuzz targets by name."""

from collections.abc import Callable
from pathlib import Path
from random import Random

Target = Callable[[Random, Path], None]
TARGETS: dict[str, Target] = {}


def target(name: str) -> Callable[[Target], Target]:
    """Register a function as the fuzz target of this name."""

    def register(function: Target) -> Target:
        assert name not in TARGETS, f"two targets are called {name!r}"
        TARGETS[name] = function
        return function

    return register
