"""The bandwidth of this machine, once for a run, and how a benchmark reports what it moves."""

from collections.abc import Callable

import pytest

from benchmarks.measure import Side, interleaved, streams, synchronize


@pytest.fixture(scope="session")
def bandwidth() -> float:
    """Bytes per second: the best of copy, triad, and triad in place."""
    sides = streams()
    timings = interleaved({name: side for name, (side, _) in sides.items()}, rounds=9)
    return max(moved / timings[name].median for name, (_, moved) in sides.items())


@pytest.fixture
def timed(benchmark, bandwidth) -> Callable[[str, Side, int], None]:
    """Run a side in a group of the report; `moved` are the bytes it must move at least."""

    def run(group: str, side: Side, moved: int) -> None:
        def call() -> None:
            side()
            synchronize()

        benchmark.group = group
        call()  # compiles, allocates and starts threads
        benchmark(call)
        if benchmark.stats is not None:  # None with --benchmark-disable
            rate = moved / benchmark.stats.stats.median
            gigabytes = {"GB/s": round(rate / 1e9, 2), "bandwidth GB/s": round(bandwidth / 1e9, 2)}
            benchmark.extra_info |= {"bytes": moved, "share of bandwidth": round(rate / bandwidth, 3)} | gigabytes

    return run
