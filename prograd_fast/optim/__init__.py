"""Optimizers that project the task gradient off its conflict with the general gradient."""

from prograd_fast.optim.adamw import ProGradAdamW
from prograd_fast.optim.conflict import Conflict
from prograd_fast.optim.noise_floor import NOISE_FLOORS
from prograd_fast.optim.sgd import ProGradSGD
from prograd_fast.optim.wrapper import ProGrad

__all__ = ["NOISE_FLOORS", "Conflict", "ProGrad", "ProGradAdamW", "ProGradSGD"]
