"""What the operators ask of their arguments before anything is read or written; csrc/checks.h asks the same in C++.

A wrong call of `torch.ops.prograd_fast.*` ends with a ValueError or TypeError that names the argument, what was
expected and what came. No kernel reads or writes outside of a tensor, whatever it is called with.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from prograd_fast.reference.losses import REDUCTIONS
from prograd_fast.reference.projection import SCOPES, all_units

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Arguments:
    """The tensors of one call, all on the device of the first.

    A shape is a tuple of sizes. `size` reads a shape that is free, once the number of dimensions is known to fit.

    Args:
        first: whose device is asked of all.
    """

    def __init__(self, first: Tensor) -> None:
        self.device = first.device

    def sizes(self, name: str, tensor: Tensor, what: str) -> tuple[int, ...]:
        """The shape of a floating-point tensor with a size for each word of `what`, such as "rows, classes"."""
        if tensor.dim() != len(what.split(",")):
            raise ValueError(f"{name}: expected shape ({what}), got {tuple(tensor.shape)}.")
        self.floating(name, tensor, tuple(tensor.shape))
        return tuple(tensor.shape)

    def floating(self, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
        """A tensor of float64, float32, bfloat16 or float16; None where one may be left out."""
        if tensor is None:
            return
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}.")
        self._placed(name, tensor, shape)

    def integers(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """A tensor of int64."""
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name}: expected int64, got {tensor.dtype}.")
        self._placed(name, tensor, shape)

    def result(self, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
        """A floating-point tensor to write to; None in a call that makes it."""
        self.floating(name, tensor, shape)
        if tensor is not None:
            check_memory(name, tensor)

    def count(self, name: str, tensor: Tensor | None) -> None:
        """A result of one int64; None in a call that makes it."""
        if tensor is not None:
            self.integers(name, tensor, ())

    def same(self, name: str, tensors: Sequence[Tensor], like: Sequence[Tensor], *, written: bool = False) -> None:
        """As many tensors as in another list, each of its partner's shape."""
        if len(tensors) != len(like):
            raise ValueError(f"{name}: expected {len(like)} tensors, got {len(tensors)}.")
        for i, (tensor, partner) in enumerate(zip(tensors, like, strict=True)):
            if tensor is None or partner is None:
                raise TypeError(f"{name}[{i}]: expected a tensor, got None.")
            self.floating(f"{name}[{i}]", tensor, tuple(partner.shape))
            if written:
                check_memory(f"{name}[{i}]", tensor)

    def number(self, name: str, tensor: Tensor | None, *, or_on_the_cpu: bool = False) -> None:
        """One float in a tensor of any shape, or None where it may be left out."""
        if tensor is None:
            return
        if tensor.numel() != 1:
            raise ValueError(f"{name}: expected one element, got shape {tuple(tensor.shape)}.")
        if not (or_on_the_cpu and tensor.device.type == "cpu" and self.device.type != "meta"):
            self.floating(name, tensor, tuple(tensor.shape))
        elif tensor.dtype not in FLOATING:
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}.")

    def _placed(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tensor.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}.")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}.")
        if tensor.device != self.device:
            raise ValueError(f"{name}: expected device {self.device} as for the others, got {tensor.device}.")


def check_memory(name: str, written: Tensor) -> None:
    """ValueError where several elements of a tensor that is written to share one place."""
    if any(size > 1 and stride == 0 for size, stride in zip(written.shape, written.stride(), strict=True)):
        raise ValueError(f"{name}: expected a place for each element, got an expanded tensor: call .clone() first.")


def check_reduction(reduction: int) -> str:
    """The name of a reduction's number."""
    if not 0 <= reduction < len(REDUCTIONS):
        raise ValueError(f"reduction: expected 0 (none), 1 (mean) or 2 (sum), got {reduction}.")
    return REDUCTIONS[reduction]


def check_positive(name: str, value: float) -> None:
    """ValueError unless a number is above 0 and finite."""
    if not 0 < value < inf:
        raise ValueError(f"{name}: expected a number above 0, got {value}.")


def check_gradients(call: dict[str, Any], *, written: bool = False) -> Arguments:
    """The two gradients of some tensors, and what belongs to their units; `written`: the task gradients are."""
    task, scope = call["task"], call["scope"]
    entries, coefficients = call.get("entries"), call.get("coefficients")
    if not 0 <= scope < len(SCOPES):
        raise ValueError(f"scope: expected 0 (tensor), 1 (row) or 2 (global), got {scope}.")
    first = task[0] if task else entries if entries is not None else coefficients
    if first is None:
        raise TypeError("task[0]: expected a tensor, got None.")
    arguments = Arguments(first)
    arguments.same("task", task, task, written=written)
    arguments.same("general", call["general"], task)
    units = all_units(task, SCOPES[scope])
    arguments.result("entries", entries, (units, 3))
    arguments.floating("coefficients", coefficients, (units, 2))
    return arguments
