"""What launches share: the device they run on, the precision of products, and tensors that are not contiguous."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def product_precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies what was loaded as `dtype`: 16 bits are exact in TF32; float32 is three TF32 products."""
    return {torch.float32: "tf32x3", torch.float64: "ieee"}.get(dtype, "tf32")


def contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, or contiguous copies of those that are not."""
    return [tensor.contiguous() for tensor in tensors]


def copy_back(tensors: Sequence[Tensor], changed: Sequence[Tensor]) -> None:
    """Write to the tensors what a kernel did to their contiguous copies."""
    for tensor, copy in zip(tensors, changed, strict=True):
        if tensor is not copy and not tensor.is_contiguous():
            tensor.copy_(copy)


def check_steps(params: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
    """Raise unless the step counters can be read where the kernels run."""
    for i, (param, step) in enumerate(zip(params, steps, strict=True)):
        if step.device != param.device:
            raise ValueError(
                f"steps[{i}]: expected the device of its parameter, {param.device}, got {step.device}. "
                "Move the step counter there, as torch.optim does for fused=True."
            )
