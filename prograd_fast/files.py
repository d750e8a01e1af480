"""Files that are there whole or not at all, and that run no code when they are read."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it if all goes well, so that `path` never holds half of a file."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix stays: it tells writers the format
    try:
        yield temporary
        with temporary.open("rb+") as file:  # the name must not reach the disk before the content does
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def safetensors_package() -> ModuleType:
    """The package safetensors, or what to install."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'tensors on disk need safetensors, which is not installed: pip install "prograd-fast[clip]"',
            name=error.name,
        ) from error
    return safetensors


def digest(*tensors: Tensor) -> str:
    """SHA-256 of dtypes, shapes and values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
