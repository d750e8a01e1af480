"""The kernels of `triton_kernels`: for NVIDIA GPUs, compiled by Triton when they are first used."""

from collections.abc import Callable
from importlib.util import find_spec

import torch

from prograd_fast.backends.triton_kernels import operators
from prograd_fast.ops.registry import checked


def missing() -> str | None:
    """Say why the kernels cannot run here; None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed. On Linux, run: pip install triton"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU. Install its CUDA build and the NVIDIA driver, or use another backend."
    return None


def device() -> str:
    """The type of device they run on."""
    return "cuda"


def register(dispatch_key: str = "CUDA") -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again.

    Args:
        dispatch_key: whose tensors they take. "CPU" is for Triton's interpreter (TRITON_INTERPRET=1), in tests.
    """
    library = torch.library.Library("prograd_fast", "IMPL")
    for name, launch in operators().items():
        library.impl(name, checked(name, launch), dispatch_key)
    return library._destroy
