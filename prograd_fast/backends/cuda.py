"""The kernels of csrc/cuda: CUDA C++, compiled with the extension where the CUDA toolkit was there."""

from collections.abc import Callable, Collection

import torch

from prograd_fast.backends import chunked_products, extension, gpu
from prograd_fast.backends.choice import FAMILIES
from prograd_fast.installation import to_compile
from prograd_fast.ops.registry import checked


def missing() -> str | None:
    """Say why the kernels cannot run here; None where they can."""
    reason = extension.missing()
    if reason is not None:
        return reason
    if not hasattr(extension.EXTENSION, "register_cuda"):
        return (
            "the extension was built without CUDA. Install the CUDA toolkit of PyTorch's CUDA version "
            f"({torch.version.cuda}), set CUDA_HOME, and run: {to_compile()}"
        )
    architectures = extension.build_facts()["cuda_architectures"]
    return gpu.why_not(
        gpu.compiled_for(architectures), f"They were compiled for {architectures}: set CMAKE_CUDA_ARCHITECTURES."
    )


def device() -> str:
    """The type of device they run on."""
    return "cuda"


_OWN = tuple(name for name, family in FAMILIES.items() if "cuda" in family.backends)


def register(families: Collection[str] = _OWN) -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again.

    Args:
        families: of operators (default: all that have kernels here).
    """
    compiled = [name for name in families if name != "linear_dual_loss"]
    products = torch.library.Library("prograd_fast", "IMPL")
    if "linear_dual_loss" in families:
        for name, operator in chunked_products.OPERATORS.items():
            products.impl(name, checked(name, operator), "CUDA")
    extension.EXTENSION.register_cuda(compiled)

    def unregister() -> None:
        products._destroy()
        extension.EXTENSION.unregister_cuda()

    return unregister
