"""Peak memory of one call, beyond what was there before it: one process for each side.

`python -m benchmarks.peak_memory MODULE:NAME [ARGUMENTS] [ARGUMENTS]` prints bytes. NAME makes a side from arguments (a
JSON list, or object of keywords), or is a dictionary of such functions, NAME:KEY. Its first arguments are those of a
call before the measurement, after which threads, libraries and what is computed once are there; without a second, the
same side is called again.
"""

import ctypes
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import DEVICE, Side


def peak_memory(side: str, warm: Any, arguments: Any = None) -> int:
    """Bytes that one call adds at its worst, results included, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", side, json.dumps(warm), json.dumps(arguments)]
    root = Path(__file__).parent.parent
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split()[-1])


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status: expected a line {field}. Peak memory on a CPU is measured on Linux only.")


def _made(side: str, arguments: Any) -> Side:
    module, name, *key = side.split(":", 2)
    make = getattr(importlib.import_module(module), name)
    make = make[key[0]] if key else make
    made: Side = make(**arguments) if isinstance(arguments, dict) else make(*arguments)
    return made


def _measure(side: str, warm: Any, arguments: Any) -> int:
    call = _made(side, warm)
    call()
    if arguments is not None:
        call = _made(side, arguments)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        peak = torch.cuda.max_memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what the first call has freed is not there for the second
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        before = _status("VmRSS")
        kept = call()
        peak = _status("VmHWM")
    del kept
    return peak - before


if __name__ == "__main__":
    print(_measure(sys.argv[1], *(json.loads(one) for one in sys.argv[2:])))
