"""What the cases for Triton's interpreter share; `test_triton_interpreter.py` says how they run.

The kernels are reached as users reach them, through the operators, here registered for CPU tensors. Everything is
compared with float64 formulas that share no code with the kernels: torch's losses, autograd and optimizers.
"""

from collections.abc import Iterator

import pytest
import torch

from prograd_fast import backends
from prograd_fast.backends import triton as triton_backend

torch.set_num_threads(1)
ops = torch.ops.prograd_fast

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def triton_on_the_cpu() -> Iterator[None]:
    backends.use("reference")  # the C++ kernels would be in the way where they are built
    unregister = triton_backend.register("CPU")
    yield
    unregister()


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def draw(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return (scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)
