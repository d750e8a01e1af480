"""Times of several sides in turn, and what is needed to read them: bandwidth, noise, the machine."""

import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prograd_fast import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Side = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median: over the rounds.
        noise: interquartile range over the median.
        rounds: how many samples.
        calls: per sample.
        others: cores that other processes kept busy during these rounds, on average; NaN where the system does not say.
    """

    median: float
    noise: float
    rounds: int
    calls: int
    others: float


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def interleaved(
    sides: dict[str, Side], rounds: int, shortest: float = 5e-3, patience: float = 0.0
) -> dict[str, Timing]:
    """Time the sides in turn, so that whatever else the machine does meets all of them alike.

    Two threads that wait for each other take a thousand times longer where a third wants a core. So a round waits until
    other processes are quiet, is run again if they were not, and the quietest are kept: whole rounds, whatever the
    sides took in them.

    Args:
        sides: what to call, by name.
        rounds: samples of each side; every round starts with another side.
        shortest: seconds that a sample lasts at least, by calling again.
        patience: seconds after which nothing waits for quiet any more (default: 0).

    Returns:
        The timing of each side.
    """
    calls = {name: max(1, round(shortest / _warm(side))) for name, side in sides.items()}
    measured: list[tuple[float, dict[str, float]]] = []
    names = list(sides)
    deadline = time.monotonic() + patience
    gc.collect()
    gc.disable()
    try:
        while len(measured) < rounds or (
            sum(others < _QUIET for others, _ in measured) < rounds and time.monotonic() < deadline
        ):
            _wait_for_quiet(deadline)
            first = len(measured) % len(names)
            before = _clocks()
            samples = {name: _seconds(sides[name], calls[name]) for name in names[first:] + names[:first]}
            measured.append((_others(before, _clocks()), samples))
    finally:
        gc.enable()
    kept = sorted(measured, key=lambda one: one[0])[:rounds]
    others = statistics.fmean(one for one, _ in kept)
    return {name: _timing([samples[name] for _, samples in kept], calls[name], others) for name in names}


_QUIET = 0.1  # cores


def _warm(side: Side) -> float:
    """Seconds of a call after some that compile, allocate and start threads; one is enough where it takes seconds."""
    times: list[float] = []
    while len(times) < 4 and sum(times) < 2:
        times.append(_seconds(side, 1))
    return min(times)


def _seconds(side: Side, calls: int) -> float:
    # of one thread what the processor gives to it: other processes in between do not count
    clock = time.process_time if DEVICE == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    synchronize()
    start = clock()
    for _ in range(calls):
        side()
    synchronize()
    return (clock() - start) / calls


def _timing(samples: list[float], calls: int, others: float) -> Timing:
    median = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else (median,) * 3
    return Timing(median, (high - low) / median, len(samples), calls, others)


def _clocks() -> tuple[float, float, float]:
    """Seconds of the wall, of all processes on all cores, of this process on all cores."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return time.perf_counter(), math.nan, time.process_time()
    user, nice, system, _, _, irq, softirq, steal = (int(x) for x in stat.read_text().split()[1:9])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, time.process_time()


def _wait_for_quiet(deadline: float) -> None:
    others = math.inf
    while others >= _QUIET and time.monotonic() < deadline:
        before = _clocks()
        time.sleep(0.2)
        others = _others(before, _clocks())


def _others(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    wall, busy, own = (b - a for a, b in zip(before, after, strict=True))
    return max(busy - own, 0.0) / wall  # in this order NaN stays NaN


# ---- bandwidth


OUT_OF_PLACE, IN_PLACE = ("copy", "triad"), "triad in place"
STREAMS = (*OUT_OF_PLACE, IN_PLACE)


def streams(elements: int = 2**25) -> dict[str, tuple[Side, int]]:
    """Copy and triad as in STREAM, by torch on its threads: name -> (side, bytes that it moves).

    A CPU may fetch what an ordinary store overwrites, which STREAM does not count. The triad in place has no such
    store; STREAM has no such triad.

    Args:
        elements: of each float32 array; 128 MiB by default, beyond the caches.
    """
    a, b, c = (torch.ones(elements, device=DEVICE) for _ in range(3))
    return {
        "copy": (lambda: a.copy_(b), 8 * elements),
        "triad": (lambda: torch.add(b, c, alpha=3.0, out=a), 12 * elements),
        IN_PLACE: (lambda: a.add_(b, alpha=1e-3), 12 * elements),
    }


# ---- the machine


def machine() -> dict[str, Any]:
    """The facts that the figures depend on."""
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if DEVICE == "cuda" else {}
    return gpu | {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "backends": backends.active(),
        "scheduling": _scheduling(),
    }


def _scheduling() -> str:
    """Whether other processes could take the cores: not from one of real-time priority."""
    if not hasattr(os, "sched_getscheduler"):
        return "unknown"
    return "normal" if os.sched_getscheduler(0) == os.SCHED_OTHER else "real time"


def load() -> list[float]:
    """The load average over 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name", platform.processor())
    # a virtual machine often hides the model's number behind a family's name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name
