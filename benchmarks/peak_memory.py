"""Peak memory of one call, beyond what was there before it: one process for each side.

`python -m benchmarks.peak_memory SIDE B C D` prints the bytes for one side of `benchmarks.losses.LINEAR_DUAL_LOSSES`.
"""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.losses import LINEAR_DUAL_LOSSES
from benchmarks.measure import DEVICE


def peak_memory(side: str, rows: int, classes: int, width: int) -> int:
    """Bytes that one call adds at its worst, results included, measured in a process of its own."""
    sizes = [str(n) for n in (rows, classes, width)]
    command = [sys.executable, "-m", "benchmarks.peak_memory", side, *sizes]
    root = Path(__file__).parent.parent
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status: expected a line {field}. Peak memory on a CPU is measured on Linux only.")


def _measure(side: str, rows: int, classes: int, width: int) -> int:
    LINEAR_DUAL_LOSSES[side](8, 64, width)()  # threads, libraries and their buffers
    call = LINEAR_DUAL_LOSSES[side](rows, classes, width)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        peak = torch.cuda.max_memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        before = _status("VmRSS")
        kept = call()
        peak = _status("VmHWM")
    del kept
    return peak - before


if __name__ == "__main__":
    print(_measure(sys.argv[1], *(int(size) for size in sys.argv[2:])))
