"""Weights in the zip archives of torch.save and TorchScript, read without running anything that they hold.

A pickle names classes and functions and has them called. Here every name that it may give, but for those of tensors and
dictionaries, stands for an inert object that keeps what it is given and does nothing.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """An object of any class, which only holds what the pickle gives it."""

    state: Any = None

    def __new__(cls, *args: Any, **options: Any) -> "Inert":
        """Ignore the arguments, whatever they are."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def _ignore(self, *items: Any) -> None: ...

    __setitem__ = append = extend = add = _ignore


class _Entries(dict[Any, Any]):
    """A dictionary whose attributes a pickle cannot set."""

    def __setstate__(self, state: Any) -> None: ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in the file.

    Attributes:
        archive: the file.
        key: name of the numbers in it.
        dtype: of the numbers.
        offset: index of the tensor's first number among them.
        shape: of the tensor.
        strides: of the tensor, in numbers.
    """

    archive: "Archive"
    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor. ValueError if the file does not hold as many numbers."""
        numbers = self.archive.numbers(self.key, self.dtype)
        reach = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)) + 1
        inside = min((self.offset, *self.shape, *self.strides), default=0) >= 0 and reach <= len(numbers)
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        if not inside or math.prod(self.shape) > len(numbers):
            raise ValueError("a tensor is larger than the numbers that the file holds for it")
        return torch.as_strided(numbers, self.shape, self.strides, self.offset)


@dataclass
class Archive:
    """An open archive, whose tensors are read when they are asked for.

    Attributes:
        file: where it is.
        tree: what it holds: dictionaries, inert objects and `StoredTensor`.
        classes: names of all classes and functions that it gives.
        is_script: whether it is TorchScript.
    """

    file: Path
    tree: Any = None
    classes: frozenset[str] = frozenset()
    is_script: bool = False
    _numbers: dict[str, Tensor] = field(default_factory=dict)
    _root: str = ""

    @classmethod
    def open(cls, file: Path) -> "Archive":
        """Read all but the tensors. ValueError if there is nothing of torch in the zip, or it is damaged."""
        with zipfile.ZipFile(file) as content:
            pickles = [name for name in content.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError("it is a zip archive, but not one of torch.save or TorchScript")
            root = pickles[0].removesuffix("data.pkl")
            archive = cls(file, _root=root, is_script=f"{root}constants.pkl" in content.namelist())
            unpickler = _Unpickler(_stored(content, pickles[0]), archive)
            archive.tree = unpickler.load()
            archive.classes = frozenset(unpickler.names)
        return archive

    def numbers(self, key: str, dtype: torch.dtype) -> Tensor:
        """All numbers under a key, 1-d. They are read once, since tensors may share them."""
        if key not in self._numbers:
            with zipfile.ZipFile(self.file) as content:
                raw = bytearray(_stored(content, f"{self._root}data/{key}"))
            self._numbers[key] = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        raw_bytes = self._numbers[key]
        return raw_bytes[: len(raw_bytes) // dtype.itemsize * dtype.itemsize].view(dtype)


def _stored(content: zipfile.ZipFile, name: str) -> bytes:
    """An entry, which torch never compresses; a compressed one could be of any size."""
    entry = content.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > entry.compress_size:
        raise ValueError(f"{name} in it is compressed")
    return content.read(entry)


class _Unpickler(pickle._Unpickler):  # in Python: what C does cannot go wrong here
    """Builds dictionaries, inert objects and descriptions of tensors, and nothing else."""

    def __init__(self, content: bytes, archive: Archive) -> None:
        super().__init__(BytesIO(content))
        self.archive = archive
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        self.names.add(full)
        return _KNOWN.get(full) or type(name, (Inert,), {})

    def persistent_load(self, pid: Any) -> tuple[Archive, str, torch.dtype]:
        """Numbers of the archive, which a pickle names by type and key."""
        _, kind, key, *_ = pid
        return self.archive, str(key), _DTYPES[kind.__name__]


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    archive, key, dtype = storage
    return StoredTensor(archive, key, dtype, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _first(value: Any, *rest: Any) -> Any:
    return value


_KNOWN: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Entries,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
}
