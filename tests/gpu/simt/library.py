"""The CUDA kernels on the CPU: compiles csrc/cuda with g++ through simt.h, and calls the result with torch tensors.

A family's test has a subclass of `Library` with the operators of `prograd_fast.ops` as methods, with the same names and
arguments.
"""

import ctypes
import re
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint64
from pathlib import Path

import torch
from torch import Tensor

from tests.gpu.simt.build import compile_cpp
from tests.gpu.simt.guarded import Guarded as Guarded  # for the tests of the families
from tests.paths import REPOSITORY

ORDERS = ("random", "greedy", "reverse")
SCHEDULES = [(order, seed) for seed, order in enumerate(ORDERS)]
# for small tests of determinism: the fixed orders alone gave one result for a sum in another order
MANY_SCHEDULES = [*SCHEDULES, *(("random", seed) for seed in range(3, 13))]
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

    def last_blocks(self, blocks: int) -> None:
        """Run no more than so many blocks at the end of a grid, until the next `schedule`."""
        self._library.simt_last_blocks(c_uint(blocks))

    def shared_limit(self, n_bytes: int) -> None:
        """What a block may have of shared memory, until the next `schedule`."""
        self._library.simt_shared_limit(c_size_t(n_bytes))

    def launches(self) -> int:
        """How many kernels were launched since the last call, with what clears memory."""
        return self._library.simt_launches()

    def call(self, name: str, *arguments: object) -> None:
        """A function of STEM.cpp."""
        function = getattr(self._library, f"simt_{name}")
        function.restype = c_char_p
        message = function(*arguments)
        if message is not None:
            raise SimtError(_with_tensor(message.decode()))


def _with_tensor(message: str) -> str:
    """The message, with the tensor in the place of an address."""
    return re.sub(r"at address (\d+)", lambda found: Guarded.where(int(found[1])), message)


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers with a deviation of 4."""
    return (4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)
