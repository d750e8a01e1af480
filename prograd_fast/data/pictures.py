"""A set of labelled pictures."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from prograd_fast.data.decode import FORMATS, decode, memory, memory_to_decode, open_picture

MOST_BYTES = 256 * 2**20  # of a file


@dataclass(frozen=True)
class PictureSet:
    """Labelled pictures with a fixed split.

    Attributes:
        name: The name of the set.
        class_names: C readable names, as they go into a prompt.
        labels: (N,) int64, indices into `class_names`.
        split: (N,) str, "pool" (few-shot training pictures are drawn from it), "validation" or "test".
        style: (N,) str, the drawing style; "" where a set has none.
        source: N encoded pictures, or the N files that hold them.
        folder: the absolute path of a user's own pictures, or the root of the benchmark; None for embedded sets.
        ignored: how many files of the folder were left out, by suffix, system folder, or another reason.
        split_by: the options of `load_folder` that gave the split, where they are not the usual ones.
        published: whether it is a set of the benchmark, whose names and test stay as they were published.

    Raises:
        ValueError: the lengths differ, or a label is not an index into `class_names`.
    """

    name: str
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    style: NDArray[np.str_]
    source: Sequence[bytes] | Sequence[Path]
    folder: Path | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)
    split_by: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False
    # by source, so that a copy with fewer pictures or another split may share them
    known_digests: dict[bytes | Path, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("labels", "split", "style", "source")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: expected one of each for every picture, got {lengths}")
        if not np.isin(self.labels, range(len(self.class_names))).all():
            raise ValueError(f"{self.name}: expected labels from 0 to {len(self.class_names) - 1}, got others")

    def __len__(self) -> int:
        """The number of pictures N."""
        return len(self.labels)

    def only(self, rows: Sequence[int]) -> "PictureSet":
        """The set with these pictures alone, in this order."""
        return replace(
            self,
            labels=self.labels[rows],
            split=self.split[rows],
            style=self.style[rows],
            source=cast("Sequence[bytes] | Sequence[Path]", [self.source[row] for row in rows]),
        )

    def content(self, index: int) -> bytes:
        """One picture as it is stored, not decoded.

        Raises:
            ValueError: the file is missing, cannot be read, is no regular file, empty, or larger than `MOST_BYTES`.
        """
        with self._named(index), self._stream(index) as (file, size):
            return _whole(file, size)

    def digest(self, index: int, salt: bytes = b"") -> str:
        """SHA-256 of the stored content of one picture, 64 hexadecimal digits; read once, whatever is asked later.

        Args:
            index: of the picture.
            salt: what is hashed behind the content; with it, the file is read each time.

        Raises:
            ValueError: as `content`.
        """
        source = self.source[index]
        if salt or source not in self.known_digests:
            with self._named(index), self._stream(index) as (file, size):
                sha, length = hashlib.sha256(), 0
                for chunk in iter(lambda: file.read(2**20), b""):
                    sha.update(chunk)
                    length += len(chunk)
                    _check_size(length, size)  # it may grow without end
                _check_size(length, size)
            if salt:
                sha.update(salt)
                return sha.hexdigest()
            self.known_digests[source] = sha.hexdigest()
        return self.known_digests[source]

    def read_digests(
        self,
        on_picture: Callable[[], object] = lambda: None,
        unreadable: list[str] | None = None,
        rows: Iterable[int] | None = None,
    ) -> list[str | None]:
        """The digests of pictures, read by several threads at once.

        Args:
            on_picture: called after each picture, for a progress bar.
            unreadable: gets a line for each picture that cannot be read, whose digest is then None.
            rows: indices of the pictures; None: all.

        Raises:
            ValueError: pictures cannot be read, and there is no list for them: how many, and which are the first five.
        """
        bad: list[str] = []

        def one(index: int) -> str | None:
            try:
                return self.digest(index)
            except ValueError as error:
                bad.append(str(error))
                return None
            finally:
                on_picture()

        with ThreadPoolExecutor() as pool:
            found = list(pool.map(one, range(len(self)) if rows is None else rows))
        if unreadable is None:
            refuse_unreadable(bad, len(found))
        else:
            unreadable += sorted(bad)
        return found

    def fingerprint(self, rows: Sequence[int] | NDArray[np.int64] | None = None) -> str:
        """SHA-256 of what the set holds: class names, and label, part and content of each picture.

        Names of files, the folder, and the order of pictures and classes have no influence.

        Args:
            rows: indices of the pictures that count; None: all.

        Raises:
            ValueError: a picture cannot be read.
        """
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        digests = self.read_digests(rows=chosen.tolist())
        columns = zip(self.labels[chosen].tolist(), self.split[chosen].tolist(), digests, strict=True)
        pictures = sorted((self.class_names[label], split, digest) for label, split, digest in columns)
        return hashlib.sha256(json.dumps([sorted(self.class_names), pictures]).encode()).hexdigest()

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of one picture as it is stored, before it is turned upright; it is not decoded.

        Raises:
            ValueError: as `open`, as far as the head of the file tells.
        """
        with self._named(index), self._stream(index) as (file, size), memory.reserved(size):
            return open_picture(file, self._suffix(index)).size

    def open(self, index: int, side: int | None = None) -> Image.Image:
        """Decode one picture: RGB, upright (EXIF orientation), on white where it is transparent.

        A file of several pictures gives its first.

        Args:
            index: of the picture.
            side: a JPEG may come at 1/2, 1/4 or 1/8 of its size, with so many pixels of its shorter side at least.
                None: at its own size, if the memory suffices.

        Raises:
            ValueError: the picture is missing, damaged, too large (see `prograd_fast.data.decode.memory_limit`),
                changed since its digest was taken, or not of one of the `FORMATS`; names the set and the file or index.
        """
        with self.opened(index, side) as image:
            return image

    @contextmanager
    def opened(self, index: int, side: int | None = None) -> Iterator[Image.Image]:
        """`open` for a block, in which the picture's memory counts among that of the pictures in decoding.

        An exception in the block names the picture, too.
        """
        suffix = self._suffix(index)
        with self._named(index):
            with self._stream(index) as (file, size), memory.reserved(size):
                needed = memory_to_decode(file, size, suffix, side) + 2 * size  # some decoders copy the content
            with memory.reserved(needed):
                yield decode(self._unchanged(index), suffix, side)

    def _unchanged(self, index: int) -> bytes:
        """The content, which must have its digest if that is known: other things depend on it."""
        with self._stream(index) as (file, size):
            content = _whole(file, size)
        known = self.known_digests.get(self.source[index])
        if known is not None and hashlib.sha256(content).hexdigest() != known:
            raise ValueError("the file changed while it was in use; run the command again")
        return content

    def _suffix(self, index: int) -> str:
        source = self.source[index]
        return "" if isinstance(source, bytes) else source.suffix.lower()

    @contextmanager
    def _stream(self, index: int) -> Iterator[tuple[BinaryIO, int]]:
        """The open picture, and its size in bytes."""
        source = self.source[index]
        if isinstance(source, bytes):
            yield BytesIO(source), len(source)
        else:
            with _open_regular(source) as file:
                yield file, os.fstat(file.fileno()).st_size

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """Turn every exception of the block into a ValueError that names the picture."""
        try:
            yield
        except Exception as error:  # pillow's decoders raise whatever comes up in them
            source = self.source[index]
            which = f"picture {index} of {self.name}" if isinstance(source, bytes) else str(source)
            raise ValueError(f"cannot read {which}: {_reason(error)}; replace or remove it") from error


def refuse_unreadable(bad: Iterable[str], n: int) -> None:
    """ValueError if there are lines of pictures that cannot be read: how many of `n`, and the first five."""
    lines = sorted(bad)
    if lines:
        more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise ValueError(
            f"{len(lines)} of {n} pictures cannot be read: {'; '.join(lines[:5])}{more}. `prograd-fast data check` "
            "lists all that cannot be read"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not a known picture format ({', '.join(FORMATS)})"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


@contextmanager
def _open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file of some bytes. The kind of file is checked first: a pipe would never end."""
    # O_NONBLOCK: opening a pipe must not wait for a writer
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if not found.st_size:  # also the files of /proc, which can have no end
            raise ValueError("the file is empty")
        _check_size(found.st_size, found.st_size)
        yield file


def _whole(file: BinaryIO, size: int) -> bytes:
    content = file.read(MOST_BYTES + 1)
    _check_size(len(content), size)
    return content


def _check_size(read: int, size: int) -> None:
    if not 0 < read <= MOST_BYTES:
        raise ValueError(f"{size} bytes; expected {MOST_BYTES} at most")
