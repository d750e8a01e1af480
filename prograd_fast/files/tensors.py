"""Tensors on disk, as safetensors with text in the header: nothing is pickled, and reading runs no code."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from prograd_fast.files.reading import check_regular
from prograd_fast.files.writing import replacing
from prograd_fast.installation import to_install

MAX_TENSORS = 4 << 30  # bytes of a file


def _safetensors_package() -> ModuleType:
    """The package safetensors, or what to install."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"tensors on disk need safetensors, which is not installed: {to_install('clip')}",
            name=error.name,
        ) from error
    return safetensors


@contextmanager
def open_tensors(path: Path, key: str) -> Iterator[tuple[Mapping[str, str], Any]]:
    """A safetensors file that has text under `key` in its header: the header's texts by name, and the open file.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is not such a file; also in place of anything that the block raises: what a file from anybody
            holds can fail in any way.
    """
    package = _safetensors_package()
    check_regular(path, MAX_TENSORS)
    try:
        with package.safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            if key not in texts:
                raise ValueError(f"its header has no {key!r}")
            yield texts, file
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def write_tensors(path: Path, texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, and texts by name into the header, as safetensors, all of it or nothing.

    Raises:
        OSError: the file cannot be written.
        ModuleNotFoundError: safetensors is not installed.
    """
    content = _safetensors_package().torch.save(dict(tensors), dict(texts))
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_sealed(path: Path, key: str, text: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and a text with `write_tensors`, with a digest of both in the header."""
    write_tensors(path, {key: text, "digest": _digest_of(text, tensors)}, tensors)


def read_sealed(path: Path, key: str) -> tuple[str, dict[str, Tensor]]:
    """The text and the tensors that `write_sealed` wrote.

    Raises:
        OSError: the file is not there, or cannot be read.
        ValueError: it is damaged or something else.
    """
    with open_tensors(path, key) as (texts, file):
        text, tensors = texts[key], {name: file.get_tensor(name) for name in sorted(file.keys())}
        if texts.get("digest") != _digest_of(text, tensors):
            raise ValueError("its digest differs" if "digest" in texts else "it has no digest")
    return text, tensors


def _digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{text}\0{tensors_digest(tensors)}".encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: of names, dtypes, shapes and values."""
    names = sorted(tensors)
    text = f"{json.dumps(names)}\0{digest(*(tensors[name] for name in names))}"
    return hashlib.sha256(text.encode()).hexdigest()


def digest(*tensors: Tensor) -> str:
    """SHA-256 of dtypes, shapes and values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
