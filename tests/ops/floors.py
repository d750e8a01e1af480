"""Gradients around a noise floor: it is known whether the general one counts, and each kernel is asked the same."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.ops.support import accumulation, normal


class Around(NamedTuple):
    """Conflicting gradients of some tensors, and whether the floor leaves each unit's alone."""

    task: list[Tensor]
    general: list[Tensor]
    scope: int
    floor: float
    absent: list[bool]


# ‖a‖, b and floor of one element, float32, and whether b then counts as absent
EXTREMES = [
    (1.0, -1e-3, 0.0, False),
    (1.0, -1e-3, 1e-4, False),
    (1.0, -1e-3, 1e-2, True),  # below the floor, and not below its square
    (1e30, -1.0, 0.5, False),  # ‖a‖² is infinite
    (1e-25, -1e-10, 0.5, False),  # ‖a‖² vanishes
    (1e15, -1e-16, 1e-30, True),  # floor² vanishes
    (1e-15, -1e10, 1e30, True),  # floor² is infinite
    (1e18, -1e18, 1e10, True),  # floor²·‖a‖² is infinite
    (1.0, -1e18, 1e-30, False),
]


def arounds(dtype: torch.dtype, scope: int, shapes: list[tuple[int, ...]]) -> Iterator[Around]:
    """Units just below, at and just above a floor of 1/64: one element of each decides, the last of its unit."""
    sides = (-1, 0, 1)
    for first in range(3):
        task, general = [torch.zeros(shape, dtype=dtype) for shape in shapes], []
        absent = []
        for i, a in enumerate(task):
            units = a.reshape(len(a) if scope == 1 else 1, -1)
            b = torch.zeros_like(units)
            for j in range(len(units)):
                side = sides[(first + (0 if scope == 2 else i + j)) % 3]
                units[j, -1] = 2
                b[j, -1] = -(2 / 64) * (1 + side * 2 * torch.finfo(dtype).eps)
                absent.append(side <= 0)
            general.append(b.reshape(a.shape))
        yield Around(task, general, scope, 1 / 64, absent[:1] if scope == 2 else absent)


def random_rows(dtype: torch.dtype, rows: int) -> Around:
    """Rows of one element within a few roundings of a floor that is no power of two."""
    floor, wide = 3e-3, {torch.float64: np.float64}.get(dtype, np.float32)
    a = normal(rows, 1, seed=1).abs().to(dtype)
    steps = torch.arange(rows).unsqueeze(1) % 7 - 3
    b = -(a.double() * floor * (1 + steps * torch.finfo(dtype).eps)).to(dtype)
    aa, bb = (x.to(accumulation(dtype)).numpy() ** 2 for x in (a, b))
    absent = bb <= wide(floor) * aa * wide(floor)
    assert 0.2 < absent.mean() < 0.8
    return Around([a], [b], 1, floor, absent.flatten().tolist())


def extremes() -> Iterator[Around]:
    """EXTREMES, each by itself."""
    for a, b, floor, absent in EXTREMES:
        yield Around([torch.tensor([a])], [torch.tensor([b])], 0, floor, [absent])


def check(around: Around, projected: Callable[[Around], list[Tensor]]) -> None:
    """Whether `projected` leaves those units alone that it must, bit for bit; of the others nothing may be left."""
    results = projected(around)
    if around.scope == 2:
        units = [(a, g, around.absent[0]) for a, g in zip(around.task, results, strict=True)]
    elif around.scope == 0:
        units = list(zip(around.task, results, around.absent, strict=True))
    else:
        rows = ((r, s) for a, g in zip(around.task, results, strict=True) for r, s in zip(a, g, strict=True))
        units = [(a, g, absent) for (a, g), absent in zip(rows, around.absent, strict=True)]
    for i, (a, g, absent) in enumerate(units):
        left = float(g.abs().max() / a.abs().max())
        assert torch.equal(a, g) if absent else left < 0.1, (around.floor, i, absent, left)
