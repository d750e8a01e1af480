"""Tensors with a page right before and right behind them that nobody may touch, so that a load outside is seen too."""

import ctypes
import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
VECTOR = 16  # bytes of the widest access; within so many no GPU can fault
CANARY = 0x7F  # as float a number near the largest, which no sum and no maximum can hide
NO_ACCESS, READ_ONLY = 0, 1  # of mprotect
SIDES = ("below", "above")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def protect(address: int, size: int, access: int) -> None:
    """mprotect, or OSError."""
    if _libc.mprotect(address, size, access) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


@dataclass(frozen=True)
class Buffer:
    """One tensor between two pages; `bytes` are those between the pages."""

    name: str
    bytes: Tensor
    start: int  # of the tensor, within `bytes`
    size: int

    def where(self, address: int) -> str | None:
        """What lies at an address, if it is here: within the tensor, or so many bytes away from it."""
        low = self.bytes.data_ptr() - PAGE
        if not low <= address < self.bytes.data_ptr() + len(self.bytes) + PAGE:
            return None
        at = address - self.bytes.data_ptr() - self.start
        if at < 0:
            return f"{-at} bytes outside of {self.name}, before it"
        if at >= self.size:
            return f"{at - self.size} bytes outside of {self.name}, behind its end"
        return f"{at} bytes into {self.name}"

    def changed(self) -> bool:
        """Whether somebody wrote to what lies between the tensor and its pages."""
        outside = torch.cat([self.bytes[: self.start], self.bytes[self.start + self.size :]])
        return not bool((outside == CANARY).all())


class Guarded:
    """Puts tensors into pages of their own, against the page before or against the page behind.

    Args:
        shift: elements by which they miss a 16-byte boundary.

    Attributes:
        side: "below": the tensor begins at the page before it; "above": it ends at the page behind it, but for what the
            16-byte boundary takes. conftest.py runs each test with both.
    """

    side: ClassVar[str] = "above"
    _living: ClassVar["weakref.WeakSet[Guarded]"] = weakref.WeakSet()

    def __init__(self, shift: int = 0) -> None:
        self._shift = shift
        self._buffers: list[Buffer] = []
        self._living.add(self)

    def __call__(self, tensor: Tensor) -> Tensor:
        """A copy that kernels may write to."""
        size, item = tensor.numel() * tensor.element_size(), tensor.element_size()
        shift = self._shift * item % VECTOR
        inner = -(-(size + VECTOR) // PAGE) * PAGE
        memory = mmap.mmap(-1, inner + 2 * PAGE)
        inside = torch.frombuffer(memory, dtype=torch.uint8)[PAGE : PAGE + inner].fill_(CANARY)
        protect(inside.data_ptr() - PAGE, PAGE, NO_ACCESS)
        protect(inside.data_ptr() + inner, PAGE, NO_ACCESS)
        start = shift if self.side == "below" else (inner - size - shift) // VECTOR * VECTOR + shift
        name = f"tensor {len(self._buffers)}, {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        self._buffers.append(Buffer(name, inside, start, size))
        return inside[start : start + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def input(self, tensor: Tensor) -> Tensor:
        """A copy that nobody may write to."""
        copy = self(tensor)
        inside = self._buffers[-1].bytes
        protect(inside.data_ptr(), len(inside), READ_ONLY)
        return copy

    def list(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies that kernels may write to."""
        return [self(tensor) for tensor in tensors]

    def inputs(self, tensors: Sequence[Tensor]) -> "list[Tensor]":
        """Copies that nobody may write to."""
        return [self.input(tensor) for tensor in tensors]

    def check(self) -> None:
        """Fail where a kernel wrote beside a tensor, within its pages."""
        for buffer in self._buffers:
            assert not buffer.changed(), f"write outside of {buffer.name}"

    @classmethod
    def where(cls, address: int) -> str:
        """What a kernel touched at an address: which tensor, in the order in which they were made, and how far off."""
        for guarded in cls._living:
            for buffer in guarded._buffers:
                found = buffer.where(address)
                if found is not None:
                    return found
        return "at no tensor of the test"
