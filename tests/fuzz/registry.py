"""The targets that can be fuzzed: functions of one random case, by name. A new module of them joins by being here."""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from random import Random

Case = Callable[[Random, Path], None]
"""One random case: what it does depends on the random numbers alone; the folder is empty and its own. It returns where
all is well. Whatever it raises, a crash, a hang and too much memory are findings."""

TARGETS: dict[str, Case] = {}
WEIGHTS: dict[str, float] = {}  # shares of the time


def target(name: str, weight: float = 1.0) -> Callable[[Case], Case]:
    """Register a function under a name of its own."""

    def register(case: Case) -> Case:
        assert name not in TARGETS, name
        TARGETS[name], WEIGHTS[name] = case, weight
        return case

    return register


def load_targets() -> None:
    """Import all modules beside this one, which registers their targets."""
    package = importlib.import_module("tests.fuzz")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):  # __main__
            importlib.import_module(f"tests.fuzz.{module.name}")
