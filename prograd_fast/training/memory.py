"""Peak memory of a piece of work."""

import ctypes
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes that the work inside a `with` block held at most beyond what was there before.

    On a GPU what PyTorch allocated; on a CPU what was resident in this process, which only Linux tells.

    Attributes:
        bytes: after the block; None where it cannot be told.
    """

    bytes: int | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: int | None = torch.cuda.memory_allocated(self._device)
        else:
            self._before = _start_again()
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is None:
            return
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if cuda else _resident("VmHWM")
        self.bytes = max(0, peak - self._before)


def _start_again() -> int | None:
    """Set the kernel's peak back to what is resident now, and tell it; None where that is not possible."""
    try:
        # what earlier work left in the allocator's pools would be used again without a trace
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")
        return _resident("VmRSS")
    except (OSError, AttributeError):  # no Linux, no glibc, no permission
        return None


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
