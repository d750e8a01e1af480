"""The part of `tools.gpu_check` that measures: bandwidth, arithmetic, launches, at users' sizes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import steps, transformer
from benchmarks.measure import Side, streams
from prograd_fast import backends
from tests.ops.calls import CALLS, Sizes
from tools.gpu_calls import OPERATORS, SMALL_TOWER, moved, prompt_step, tensors_in, use
from tools.gpu_work import Work


@dataclass(frozen=True)
class Timed:
    """A call to time, with the least bytes and the floating point operations that it takes."""

    make: Callable[[], Side]
    bytes: int
    operations: int = 0


def speed(work: Work) -> None:
    """Time the operators at users' sizes: bandwidth, arithmetic, launches of a prompt step."""
    fastest = 0.0
    for name, (side, moved_bytes) in streams(2**20 if work.fake else 2**27).items():
        case = f"bandwidth, {name}"
        work.case(case, partial(_bandwidth, side, moved_bytes, work.fake))
        fastest = max(fastest, work.record["figures"].get(case, {}).get("GB/s", 0.0))
    for backend in ("cuda", "triton"):
        if work.fake or backends.missing(backend) is None:
            use(work, backend)
            for name, timed in timings(work.device, work.fake).items():
                work.case(f"{name}, {backend}", partial(_timed, timed, work.fake, fastest))
    for classes, model in ((5, SMALL_TOWER),) if work.fake else ((10, {}), (100, {}), (1000, {})):
        work.case(f"prompt step, C={classes}", partial(_launches, classes, model, work.fake))


def timings(device: str, small: bool) -> dict[str, Timed]:
    """Calls at users' sizes, by name."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        note = str(dtype).removeprefix("torch.")
        for rows, columns in ((32, 1000),) if small else ((32, 1000), (256, 1000), (1024, 21841)):
            sizes = Sizes(rows=rows, classes=columns, width=512, dtype=dtype)
            operations = 8 * rows * columns * sizes.width
            for name, count in (("dual_loss_out", 0), ("linear_dual_loss_out", operations)):
                found[f"{name}, {rows}x{columns}, {note}"] = _of_call(name, sizes, device, count)
        for name, one in transformer.WORK.items() if not small else ():
            found[f"{name}, {transformer.PROMPTS} prompts, {note}"] = Timed(
                partial(one.ours, dtype), one.elements * dtype.itemsize, _arithmetic(name)
            )
    lists = {"context": steps.CONTEXT, "200 tensors": steps.MANY} | ({} if small else {"10 M": steps.LARGE})
    for name, shapes in lists.items():  # parameter and two moments read and written, two gradients read
        found[f"AdamW, {name}, float32"] = Timed(partial(steps.adamw_operator, shapes), 32 * steps.elements(shapes))
    return found


def _of_call(name: str, sizes: Sizes, device: str, operations: int) -> Timed:
    args, kwargs = CALLS[name](sizes)
    least = sum(t.numel() * t.element_size() for t in tensors_in([args, kwargs]))

    def make() -> Side:
        given, results = moved((args, kwargs), device)
        return lambda: getattr(OPERATORS, name)(*given, **results)

    return Timed(make, least, operations)


def _arithmetic(name: str) -> int:
    """Of the products of attention: queries with keys, weights with values; five products for each cotangent."""
    if not name.startswith("attention"):
        return 0
    lengths = transformer.lengths().double()
    pairs = transformer.PREFIX * lengths.sum() + (lengths * (lengths + 1) / 2).sum()
    return int(pairs) * 2 * transformer.WIDTH * (5 * transformer.COTANGENTS if "backward" in name else 2)


def _bandwidth(side: Side, moved_bytes: int, fake: bool) -> dict[str, float]:
    return {"GB/s": round(moved_bytes / seconds_of(side, fake) / 1e9, 1)}


def _timed(timed: Timed, fake: bool, bandwidth: float) -> dict[str, float]:
    seconds = seconds_of(timed.make(), fake)
    figures = {"us": round(1e6 * seconds, 2), "GB/s": round(timed.bytes / seconds / 1e9, 1)}
    if bandwidth:
        figures["of bandwidth"] = round(figures["GB/s"] / bandwidth, 3)
    return figures | ({"TFLOP/s": round(timed.operations / seconds / 1e12, 3)} if timed.operations else {})


def seconds_of(side: Side, fake: bool, samples: int = 5, shortest: float = 0.02) -> float:
    """Median seconds of one call: between CUDA events, on a CPU by the clock."""
    for _ in range(3):
        side()
    calls = max(1, int(shortest / max(_elapsed(side, 1, fake), 1e-6)))
    return statistics.median(_elapsed(side, calls, fake) for _ in range(samples))


def _elapsed(side: Side, calls: int, fake: bool) -> float:
    if fake:
        start = time.perf_counter()
        for _ in range(calls):
            side()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        side()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def _launches(classes: int, model: dict[str, Any], fake: bool) -> dict[str, float]:
    """What a prompt step puts on the device, by torch.profiler; its time, and that of the host alone."""
    step, _ = prompt_step(classes, model)
    seconds = seconds_of(step, fake, samples=3)
    activities = [torch.profiler.ProfilerActivity.CPU if fake else torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        if not fake:
            torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    start = time.perf_counter()
    step()
    host = time.perf_counter() - start
    return {"launches": len(on_device), "us": round(1e6 * seconds, 1), "us of the host": round(1e6 * host, 1)}
