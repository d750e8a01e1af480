"""The operators of the neighbours, forward with backward: sides, sizes and bytes are those of the table of targets."""

import pytest

from benchmarks.neighbours import CASES


@pytest.mark.parametrize(
    ("case", "size", "side"),
    [(case, size, side) for case in CASES for size in case.sizes for side in case.sides],
    ids=lambda value: getattr(value, "work", str(value)),
)
def test_with_gradient(timed, case, size, side):
    timed(f"{case.work}, {size}", case.sides[side](size), case.moved * case.elements(size))
