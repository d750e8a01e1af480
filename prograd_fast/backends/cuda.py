"""The kernels of csrc/cuda: CUDA C++, compiled with the extension where the CUDA toolkit was there."""

from collections.abc import Callable

import torch

from prograd_fast.backends import extension


def missing() -> str | None:
    """Say why the kernels cannot run here; None where they can."""
    reason = extension.missing()
    if reason is not None:
        return reason
    if not hasattr(extension.EXTENSION, "register_cuda"):
        return (
            "the extension was built without CUDA. Install the CUDA toolkit of PyTorch's CUDA version "
            f"({torch.version.cuda}), set CUDA_HOME, and run: "
            "pip install --no-build-isolation --force-reinstall --no-deps prograd-fast"
        )
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU. Install its CUDA build and the NVIDIA driver, or use another backend."
    return None


def device() -> str:
    """The type of device they run on."""
    return "cuda"


def register() -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again."""
    extension.EXTENSION.register_cuda()
    return extension.EXTENSION.unregister_cuda
