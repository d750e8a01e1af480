"""Tests on several ranks of `torch.distributed`: processes that each run all cases, and hand back what each found.

A module has its cases in `CASES`, by name: functions of the rank, whose results can be pickled.
"""

import datetime
import importlib
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.paths import REPOSITORY


def found_on_ranks(module: str, ranks: int, folder: Path) -> dict[str, list[Any]]:
    """What every case of a module returned on each rank, or its traceback.

    In processes that begin anew: autograd cannot go on in a fork of one that has used its threads.
    """
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.on_ranks", module, str(rank), str(ranks), folder],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert all(child.returncode == 0 for child in children), errors
    every = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
    return {name: [found[name] for found in every] for name in every[0]}


def folder_of_ranks() -> Path:
    """The folder that `found_on_ranks` was given, in one of its processes."""
    return Path(sys.argv[4])


def _run(cases: Mapping[str, Callable[[int], Any]], rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=ranks, timeout=timeout)
    found: dict[str, Any] = {}
    for name, case in cases.items():
        try:
            found[name] = case(rank)
        except Exception:
            found[name] = "".join(traceback.format_exc())
        torch.save(found, folder / f"{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _run(importlib.import_module(sys.argv[1]).CASES, int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
