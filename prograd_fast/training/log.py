"""Logs of training for TensorBoard."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prograd_fast.installation import to_install
from prograd_fast.training.loop import Log

_LOG = logging.getLogger("prograd_fast")


@contextmanager
def tensorboard(folder: Path) -> Iterator[Log]:
    """A log of losses, terms, training accuracy, cosine and rate of every step, for `tensorboard --logdir`.

    A run that goes on from a checkpoint replaces what was logged after that checkpoint. Where the folder cannot be
    written, a warning is logged once, and training goes on without.

    Args:
        folder: for the event files.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"logs need tensorboard, which is not installed: {to_install('log')}", name=error.name
        ) from error
    writer = None
    broken = False

    def tried(write: Callable[[], None]) -> None:
        """The first failure becomes a warning, and nothing more is written: training goes on without its log."""
        nonlocal broken
        if not broken:
            try:
                write()
            except Exception as error:  # tensorboard's writing thread hands on what it met
                broken = True
                _LOG.warning("training goes on without the log in %s: %s", folder, error)

    def log(step: int, values: dict[str, float]) -> None:
        def write() -> None:
            nonlocal writer
            writer = writer or SummaryWriter(str(folder), purge_step=step or None)
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        tried(write)

    try:
        yield log
    finally:
        if writer is not None:
            tried(writer.close)
