"""The noise floor: how small a general gradient must be, beside the task gradient, to be nothing but rounding."""

import math

import torch

# ‖b‖/‖a‖ by the precision that the losses were computed in. At the first step the student often is the teacher: then b
# is rounding alone, its direction is noise, and it would decide where the whole run goes. Measured with ProGrad on
# emoji-lite, of the context: rounding gives 5e-16, 3e-7, 7e-4 and 1e-3 at the first step, 1e-6, 2e-3 and 1e-2 at most
# later; real general gradients begin at 6e-3. In bfloat16 the two overlap: below 1e-2 the direction is mostly noise.
NOISE_FLOORS: dict[torch.dtype, float] = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 1e-2,
}


def check_noise_floor(noise_floor: float | None) -> None:
    """Raise TypeError or ValueError unless it is None or a finite number of at least 0."""
    if noise_floor is None:
        return
    if isinstance(noise_floor, bool) or not isinstance(noise_floor, (int, float)):
        raise TypeError(f"noise_floor: expected a number or None, got {type(noise_floor).__name__}. 0 turns it off.")
    if not (0 <= noise_floor < math.inf):
        raise ValueError(f"noise_floor: expected a finite number of at least 0, got {noise_floor}. 0 turns it off.")
