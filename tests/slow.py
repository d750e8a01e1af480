"""Marks the cases of a dear test that `make test` leaves out; `make test-all` runs them all."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but_for(kept: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """The cases of a parametrised test, of which those that are not kept are marked slow."""
    kept = list(kept)
    return [pytest.param(case, marks=() if case in kept else pytest.mark.slow) for case in cases]
