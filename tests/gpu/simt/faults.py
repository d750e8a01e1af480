"""Faults planted in the CUDA kernels, which the tests of their family must find."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.gpu.simt.build import changed_sources
from tests.gpu.simt.library import ORDERS, Library, SimtError
from tests.slow import slow_but_for

L = TypeVar("L", bound=Library)


@dataclass(frozen=True)
class Fault:
    """One change of a source file of csrc/cuda, and what a test must say of it."""

    file: str
    old: str
    new: str
    says: str = "relative error|wrong count"


def planted(faults: dict[str, Fault]) -> pytest.MarkDecorator:
    """A test for each fault, in `make test-all` alone: each is compiled for seconds."""
    return pytest.mark.parametrize("fault", slow_but_for([], faults))


def run_case(simt: L, case: Callable[[L, int], None]) -> None:
    """Run case(simt, seed) under several schedules: it is small, and has a race wherever a fault could make one."""
    for seed in range(2):
        for order in ORDERS:
            simt.schedule(order, seed, resident_blocks=3)
            case(simt, seed)


def assert_found(fault: Fault, library: type[L], case: Callable[[L, int], None], folder: Path) -> None:
    """Compile a family with the fault: the case must fail."""
    simt = library(changed_sources(fault.file, fault.old, fault.new, folder))
    with pytest.raises((AssertionError, SimtError), match=fault.says):
        run_case(simt, case)
