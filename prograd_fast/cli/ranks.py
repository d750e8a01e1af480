"""The command `train` as torchrun starts it, in several processes.

    torchrun --nproc-per-node 4 -m -- prograd_fast train --data my_pictures --out runs/mine --log runs/log

The lone "--" keeps torchrun from reading options behind it: it takes `--log` for one of its own.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from prograd_fast.terminal import output

if TYPE_CHECKING:
    import torch

TIMEOUT = timedelta(minutes=10)  # until a process that waits for the others gives up


def several() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() and "RANK" in os.environ else 1


def begin(arguments: list[str]) -> None:
    """Let one of the processes of torchrun speak for all: the others print errors alone.

    Raises:
        ValueError: it has started a command that runs in one process.
    """
    if several() == 1:
        return
    if arguments[:1] != ["train"]:
        raise ValueError(
            f"{' '.join(arguments[:1]) or 'this command'} runs in one process, and torchrun started {several()}. Only "
            "train shares its work"
        )
    if os.environ["RANK"] != "0":
        output.muted = True
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  to the end of the process


def device_of_rank(device: str | None) -> str | None:
    """The device to compute on: each process on a machine takes a GPU of its own."""
    import torch

    if several() == 1 or (device or "cuda") != "cuda" or not torch.cuda.is_available():
        return device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


@contextmanager
def joined(out: Path, device: "torch.device") -> Iterator[Path]:
    """Join the other processes of torchrun, if there are any.

    Args:
        out: the folder of the run.
        device: where this process computes.

    Yields:
        The folder that this process writes to: `out` for the first one. The others write to a folder that begins as a
        copy of the files in `out` and in its folds, and vanishes at the end.

    Raises:
        ConnectionError: another process has ended, or does not answer.
    """
    if several() == 1:
        yield out
        return
    import torch
    import torch.distributed as dist

    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
    # torchrun keeps its store when it begins all anew: the addresses in it are those of processes that have died
    attempt = f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        if dist.get_rank() == 0:
            dist.barrier()  # the others have copied what this one may replace
            yield out
            return
        with tempfile.TemporaryDirectory() as folder:
            own = Path(folder) / "run"
            if out.is_dir():
                shutil.copytree(out, own, ignore=_other_folders)
            dist.barrier()
            yield own
    except (RuntimeError, ConnectionError) as error:
        cause = error.__cause__ if isinstance(error, ConnectionError) else error  # an optimizer says it too
        if not isinstance(cause, dist.DistError) and "gloo" not in str(cause):
            raise
        raise ConnectionError(
            "another process of this run has ended, or did not answer for "
            f"{TIMEOUT.seconds // 60} minutes; start all of them again with --resume ({str(cause).splitlines()[0]})"
        ) from error
    finally:
        dist.destroy_process_group()


def _other_folders(folder: str, names: list[str]) -> list[str]:
    """The folders that are no folds of `train --folds`: whatever else a user keeps there."""
    return [name for name in names if (Path(folder) / name).is_dir() and not re.fullmatch(r"fold\d+", name)]
