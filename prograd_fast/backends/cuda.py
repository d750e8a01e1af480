"""The kernels of csrc/cuda: CUDA C++, compiled with the extension where the CUDA toolkit was there."""

import importlib
from collections.abc import Callable
from typing import Any

import torch

_C: Any
try:
    _C = importlib.import_module("prograd_fast._C")
except ImportError as error:  # no compiler at installation, or another PyTorch since
    _C = None
    _ERROR = str(error)


def missing() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    how = "run: pip install --no-build-isolation --force-reinstall --no-deps prograd-fast"
    if _C is None:
        return (
            f"the C++ kernels are not built for this PyTorch ({_ERROR}). Install a C++17 compiler and nvcc, and {how}"
        )
    if not hasattr(_C, "register_cuda"):
        return (
            "the extension was built without CUDA. Install the CUDA toolkit of PyTorch's CUDA version "
            f"({torch.version.cuda}), set CUDA_HOME, and {how}"
        )
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU. Install its CUDA build and the NVIDIA driver, or use another backend."
    return None


def device() -> str:
    """The type of device they run on."""
    return "cuda"


def register() -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again."""
    _C.register_cuda()
    return _C.unregister_cuda
