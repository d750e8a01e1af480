"""The kernels of `triton_kernels`: for NVIDIA GPUs, compiled by Triton when they are first used."""

from collections.abc import Callable, Collection
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec

import torch

from prograd_fast.backends import chunked_products, gpu
from prograd_fast.backends.choice import FAMILIES
from prograd_fast.backends.triton_kernels import operators
from prograd_fast.ops.registry import checked

# 3.1 to 3.3 do not compile the kernels of the optimizers, or give them float64 numbers as float32
OLDEST_TRITON = (3, 4)


def missing() -> str | None:
    """Say why the kernels cannot run here; None where they can."""
    if find_spec("triton") is None:
        return "Triton is not installed. On Linux, run: pip install triton"
    try:
        found = _version()
    except (PackageNotFoundError, KeyError):
        return "There is a module triton, but no installed package says its version. On Linux, run: pip install triton"
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TRITON:
        least = ".".join(map(str, OLDEST_TRITON))
        return (
            f"Triton {found} does not compile the kernels, or rounds their numbers. Install a PyTorch that brings "
            f"Triton {least} or newer (2.8 does)."
        )
    return gpu.why_not(lambda capability: capability >= gpu.OLDEST, "They need 8.0 or newer.")


def _version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:  # PyTorch's nightly builds bring pytorch-triton, Windows has triton-windows
        return version(packages_distributions()["triton"][0])


def device() -> str:
    """The type of device they run on."""
    return "cuda"


def register(dispatch_key: str = "CUDA", *, families: Collection[str] = tuple(FAMILIES)) -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again.

    Args:
        dispatch_key: whose tensors they take. "CPU" is for Triton's interpreter (TRITON_INTERPRET=1), in tests.
        families: of operators (default: all).
    """
    launches = operators() | chunked_products.OPERATORS
    library = torch.library.Library("prograd_fast", "IMPL")
    for name in (operator for family in families for operator in FAMILIES[family].operators):
        library.impl(name, checked(name, launches[name]), dispatch_key)
    return library._destroy
