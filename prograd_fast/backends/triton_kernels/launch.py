"""Helpers of all launches: the device, the precision of products, and tensors that are not contiguous."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from operator import methodcaller
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def product_precision(dtype: torch.dtype) -> str:
    """The precision of tl.dot for values of `dtype`.

    float32 is three TF32 products, which keep 22 bits of each operand, or one of 11 bits where PyTorch may use TF32 for
    its own products. The operands of float16 and bfloat16 are exact.
    """
    if dtype == torch.float32:
        return "tf32" if _tf32_is_allowed() else "tf32x3"
    return "ieee"


def _tf32_is_allowed() -> bool:
    """PyTorch 2.9 named the setting anew."""
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


# the interpreter holds bfloat16 as integers, of which tl.dot makes wrong products without a word
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def product_operand(dtype: torch.dtype) -> tl.dtype:
    """The dtype of what is multiplied on tensor cores for values of `dtype`: their own."""
    return tl.float32 if _INTERPRETED and dtype == torch.bfloat16 else TRITON_DTYPES[dtype]


_is_contiguous = methodcaller("is_contiguous")


def contiguous(tensors: Sequence[Tensor | None]) -> Sequence[Any]:
    """The tensors, or contiguous copies of those that are not; None stays None."""
    try:
        if all(map(_is_contiguous, tensors)):  # lists have hundreds: no Python for each
            return tensors
    except AttributeError:  # of None
        pass
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def copy_back(tensors: Sequence[Tensor], changed: Sequence[Tensor]) -> None:
    """Write to the tensors what a kernel did to their contiguous copies."""
    if tensors is changed:
        return
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
