"""The CUDA kernels on the CPU: compiles csrc/cuda with g++ through simt.h, and calls the result with torch tensors.

A family's test has a subclass of `Library` with the operators of `prograd_fast.ops` as methods, with the same names and
arguments.
"""

import ctypes
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_uint, c_uint64
from pathlib import Path

import torch
from torch import Tensor

from tests.gpu.simt.build import compile_cpp
from tests.paths import REPOSITORY

ORDERS = ("random", "greedy", "reverse")
SCHEDULES = [(order, seed) for seed, order in enumerate(ORDERS)]
STORAGES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class SimtError(Exception):
    """A kernel did what a GPU would punish: the message of simt.h."""


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def storage_of(tensor: Tensor) -> int:
    return STORAGES.index(tensor.dtype)


class Library:
    """The operators of one family, compiled from one source tree.

    Attributes:
        stem: of the family: csrc/cuda/STEM*.cu, and STEM.cpp in this folder.
        needs: other files of csrc/cuda that these call.

    Args:
        csrc: the folder with common/, formulas/ and cuda/.
    """

    stem: str
    needs: tuple[str, ...] = ()

    def __init__(self, csrc: Path = REPOSITORY / "csrc") -> None:
        here, cuda = Path(__file__).parent, csrc / "cuda"
        kernels = [*sorted(cuda.glob(f"{self.stem}*.cu")), *(cuda / name for name in self.needs)]
        sources = [*kernels, here / f"{self.stem}.cpp"]
        self._library = ctypes.CDLL(str(compile_cpp(sources, [here], f"{self.stem}.so")))
        self._library.simt_schedule.argtypes = (c_int, c_uint64, c_uint)
        self.schedule("random", 0)

    def schedule(self, order: str, seed: int, resident_blocks: int = 8) -> None:
        """How the following launches are run; see simt.h."""
        self._library.simt_schedule(ORDERS.index(order), seed, resident_blocks)

    def launches(self) -> int:
        """How many kernels were launched since the last call."""
        return self._library.simt_launches()

    def call(self, name: str, *arguments: object) -> None:
        """A function of STEM.cpp."""
        function = getattr(self._library, f"simt_{name}")
        function.restype = c_char_p
        message = function(*arguments)
        if message is not None:
            raise SimtError(message.decode())


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers with a deviation of 4."""
    return (4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


class Guarded:
    """Tensors in buffers of their own, with values around them that no kernel may change.

    Args:
        shift: elements by which they miss a 16-byte boundary.
    """

    def __init__(self, shift: int = 0) -> None:
        self._shift = shift
        self._buffers: list[tuple[Tensor, int, int]] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        start = 16 + self._shift
        buffer = torch.full((tensor.numel() + 40,), 77, dtype=tensor.dtype)
        view = buffer[start : start + tensor.numel()].view(tensor.shape)
        self._buffers.append((buffer, start, tensor.numel()))
        return view.copy_(tensor)

    def list(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [self(tensor) for tensor in tensors]

    def check(self) -> None:
        for buffer, start, size in self._buffers:
            outside = torch.cat([buffer[:start], buffer[start + size :]])
            assert bool((outside == 77).all()), "write outside of a tensor"
