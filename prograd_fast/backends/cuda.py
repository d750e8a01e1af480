"""The kernels of csrc/cuda: CUDA C++, compiled with the extension where the CUDA toolkit was there."""

from collections.abc import Callable

import torch

from prograd_fast.backends import extension, gpu


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
    architectures = extension.build_facts()["cuda_architectures"]
    return gpu.why_not(
        gpu.compiled_for(architectures), f"They were compiled for {architectures}: set CMAKE_CUDA_ARCHITECTURES."
    )


def device() -> str:
    """The type of device they run on."""
    return "cuda"


def register() -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again."""
    extension.EXTENSION.register_cuda()
    return extension.EXTENSION.unregister_cuda
