"""Features of 100,000 pictures, 512 wide, from the cache on disk: bytes per second and memory.

`python -m benchmarks.feature_cache` writes them in shards as runs do (205 MB) and reads all of them in batches of 100:
keys are looked up, every checksum is compared, every row is copied into its batch. First with pages that the system
dropped before, as far as it does so when it is asked, and then with those that it keeps. Each time beside it, in turn,
what the disk, or the system's memory, gives at most: the same files read one after the other into one buffer. Medians.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.measure import load, machine
from prograd_fast.clip.feature_cache import FeatureCache
from prograd_fast.training.evaluate import BATCH
from prograd_fast.training.features import STORE_EVERY

BUFFER = 1 << 20  # bytes of a plain read


class Read(NamedTuple):
    """Seconds of the wall and of the processor, and the bytes by which the process grew, mapped pages left out."""

    wall: float
    processor: float
    grown: int


def keys_of(n: int) -> list[bytes]:
    """N keys."""
    return [i.to_bytes(32, "little") for i in range(n)]


def write(folder: Path, n: int, width: int) -> None:
    """Store N rows of random numbers."""
    keys, g = keys_of(n), torch.Generator().manual_seed(0)
    cache = FeatureCache(folder, {"model": "made up"})
    for start in range(0, n, STORE_EVERY):
        some = keys[start : start + STORE_EVERY]
        cache.put(some, torch.randn(len(some), width, generator=g))


def drop_pages(folder: Path) -> None:
    """Ask the system to forget what it read of a folder's files."""
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(folder: Path, n: int) -> Read:
    """Read all rows in batches."""
    keys, before = keys_of(n), _anonymous()
    wall, processor, worst = time.perf_counter(), time.process_time(), 0
    table = FeatureCache(folder, {"model": "made up"}).get(keys).table(keys)
    for start in range(0, n, BATCH):
        table.take(np.arange(start, min(n, start + BATCH)))
        worst = max(worst, _anonymous()) if start % (n // 10) == 0 else worst
    return Read(time.perf_counter() - wall, time.process_time() - processor, worst - before)


def read_plainly(folder: Path) -> float:
    """Seconds that it takes to read the bytes of a folder's files, and to do nothing with them."""
    buffer, start = memoryview(bytearray(BUFFER)), time.perf_counter()
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - start


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Time the cache of image features.")
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="make the files here (default: the system's folder for such files)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts, size = machine(), 4 * options.pictures * options.width
    print(f"{facts['cpu']}, {facts['cores']} cores, 1 thread, load {load()}")
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        write(folder, options.pictures, options.width)
        for dropped in (True, False):
            found, plain = [], []
            for _ in range(options.rounds):
                if dropped:
                    drop_pages(folder)
                plain.append(read_plainly(folder))
                if dropped:
                    drop_pages(folder)
                found.append(read(folder, options.pictures))
            wall, processor = (statistics.median(took[i] for took in found) for i in range(2))
            disk = statistics.median(plain)
            print(
                f"{'dropped' if dropped else 'kept'} pages: {size / wall / 1e9:.2f} GB/s, {disk / wall:.0%} of the "
                f"{size / disk / 1e9:.2f} GB/s of a plain read; {size / processor / 1e9:.2f} GB per second of the "
                f"processor; {max(took.grown for took in found) / 1e6:.0f} MB of {size / 1e6:.0f} MB in memory"
            )


if __name__ == "__main__":
    main()
