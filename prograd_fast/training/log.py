"""Logs of training for TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prograd_fast.training.loop import Log


@contextmanager
def tensorboard(folder: Path) -> Iterator[Log]:
    """A log that writes losses, terms, cosine and rate of every step, to be looked at with `tensorboard --logdir`.

    A run that goes on from a checkpoint replaces what was logged after that checkpoint.

    Args:
        folder: for the event files.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'logs need tensorboard, which is not installed: pip install "prograd-fast[log]"', name=error.name
        ) from error
    writer = None

    def log(step: int, values: dict[str, float]) -> None:
        nonlocal writer
        writer = writer or SummaryWriter(str(folder), purge_step=step or None)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    try:
        yield log
    finally:
        if writer is not None:
            writer.close()
