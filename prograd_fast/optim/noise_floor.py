"""The noise floor: how small a general gradient must be, beside the task gradient, to be nothing but rounding."""

import math
from collections.abc import Iterable

import torch

# ‖b‖/‖a‖ by the precision that the losses were computed in. At the first step the student often is the teacher: then b
# is rounding alone, its direction is noise, and it would decide where the whole run goes.
NOISE_FLOORS: dict[torch.dtype, float] = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 1e-2,
}


def check_noise_floor(noise_floor: float | None) -> None:
    """Raise TypeError or ValueError unless it is None or a finite number of at least 0."""
    if noise_floor is None:
        return
    if isinstance(noise_floor, bool) or not isinstance(noise_floor, int | float):
        raise TypeError(f"noise_floor: expected a number or None, got {type(noise_floor).__name__}. 0 turns it off.")
    if not (0 <= noise_floor < math.inf):
        raise ValueError(f"noise_floor: expected a finite number of at least 0, got {noise_floor}. 0 turns it off.")


def floor_of(dtypes: Iterable[torch.dtype], given: float | None) -> float:
    """The floor for gradients of these dtypes: the given one, else the highest of theirs."""
    return max((NOISE_FLOORS[dtype] for dtype in dtypes), default=0.0) if given is None else given
