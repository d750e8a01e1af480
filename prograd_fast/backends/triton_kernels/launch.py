"""Helpers of all launches: the device, the precision of products, and tensors that are not contiguous."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def product_precision(dtype: torch.dtype) -> str:
    """The precision of tl.dot for values of `dtype`: TF32 holds 16 bits exactly; float32 is three TF32 products."""
    return {torch.float32: "tf32x3", torch.float64: "ieee"}.get(dtype, "tf32")


def contiguous(tensors: Sequence[Any]) -> list[Any]:
    """The tensors, or contiguous copies of those that are not; None stays None."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def copy_back(tensors: Sequence[Tensor], changed: Sequence[Tensor]) -> None:
    """Write to the tensors what a kernel did to their contiguous copies."""
    for tensor, copy in zip(tensors, changed, strict=True):
        if tensor is not copy and not tensor.is_contiguous():
            tensor.copy_(copy)


def into_contiguous(kernel: Callable[..., None]) -> Callable[..., None]:
    """A kernel that writes contiguous results, for results of any strides."""

    @wraps(kernel)
    def write(*args: Any, **results: Tensor) -> None:
        dense = {name: result.contiguous() for name, result in results.items()}
        kernel(*args, **dense)
        copy_back(list(results.values()), list(dense.values()))

    return write


def learning_rate(lr_tensor: Tensor | None, lr: float, param: Tensor) -> tuple[Tensor | None, float]:
    """The learning rate as a number where its tensor is on the CPU and the kernels, which cannot read it, are not."""
    if lr_tensor is not None and lr_tensor.is_cpu and not param.is_cpu:
        return None, lr_tensor.item()
    return lr_tensor, lr
