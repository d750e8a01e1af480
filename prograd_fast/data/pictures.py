"""A set of labelled pictures. A file may come from a stranger, and is read with care."""

import ctypes
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging

# Pillow reads a file only as one of these, whatever its suffix. It knows more formats, and starts programs for some.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MOST_BYTES = 256 * 2**20  # of a file
# Pixels to decode at most, 356 MB. An A3 page at 600 dots per inch has 70 million. A JPEG may have twice as many,
# because it can be decoded at half its size.
MOST_PIXELS = 89_000_000
STRIP = 2**22  # pixels that `on_white` converts at once

_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_pillow_limit = threading.Lock()

# Libtiff writes its complaints to stderr. Pillow raises an exception as well, which is shown with the file's name.
for _handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
    with suppress(OSError, AttributeError):  # a pillow without libtiff, or with one that is out of reach
        getattr(ctypes.CDLL(_imaging.__file__), _handler)(None)


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
        folder: the absolute path of a user's own pictures; None for other sets.

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

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("labels", "split", "style", "source")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.name}: expected one of each for every picture, got {lengths}")
        if not np.isin(self.labels, range(len(self.class_names))).all():
            raise ValueError(f"{self.name}: expected labels from 0 to {len(self.class_names) - 1}, got others")

    def __len__(self) -> int:
        """The number of pictures N."""
        return len(self.labels)

    def content(self, index: int) -> bytes:
        """One picture as it is stored, not decoded.

        Raises:
            ValueError: the file is missing, cannot be read, is no regular file, empty, or larger than `MOST_BYTES`.
        """
        source = self.source[index]
        try:
            return source if isinstance(source, bytes) else _read(source)
        except (OSError, ValueError) as error:
            raise self._unreadable(index, error) from error

    def digest(self, index: int) -> str:
        """SHA-256 of one picture as it is stored, 64 hex signs; computed once. ValueError as `content`."""
        if index not in self._digests:
            self._digests[index] = hashlib.sha256(self.content(index)).hexdigest()
        return self._digests[index]

    @cached_property
    def _digests(self) -> dict[int, str]:
        return {}

    def fingerprint(self, rows: Iterable[int] | None = None) -> str:
        """SHA-256 over the class names and each picture's class, split and content, whatever the files are called.

        Args:
            rows: of these pictures alone; None: of all.
        """
        chosen = range(len(self)) if rows is None else rows
        facts = sorted((int(self.labels[i]), str(self.split[i]), self.digest(int(i))) for i in chosen)
        return hashlib.sha256(repr((self.class_names, facts)).encode()).hexdigest()

    def open(self, index: int) -> Image.Image:
        """Decode one picture: RGB, upright (EXIF orientation), on white where it is transparent.

        A file of several pictures gives its first. A JPEG of more than `MOST_PIXELS` comes at half its size.

        Raises:
            ValueError: the picture is missing, damaged, too large, or not of one of the `FORMATS`; names the set and
                the file or index.
        """
        content = self.content(index)
        try:
            return _decode(content)
        except Exception as error:  # pillow's decoders raise whatever comes up in them
            raise self._unreadable(index, error) from error

    def _unreadable(self, index: int, error: Exception) -> ValueError:
        source = self.source[index]
        which = f"picture {index}" if isinstance(source, bytes) else str(source)
        if isinstance(error, UnidentifiedImageError):
            reason = f"not a known picture format ({', '.join(FORMATS)})"
        elif isinstance(error, OSError):
            reason = error.strerror or str(error)
        else:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return ValueError(f"{self.name}: cannot read {which}: {reason}; replace or remove it")


def _read(file: Path) -> bytes:
    """The content of a regular file. The kind of file is checked first: a pipe would never end."""
    # O_NONBLOCK: opening a pipe must not wait for a writer
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if not found.st_size:  # also the files of /proc, which can have no end
            raise ValueError("the file is empty")
        content = opened.read(MOST_BYTES + 1) if found.st_size <= MOST_BYTES else b""
    if not 0 < len(content) <= MOST_BYTES:
        raise ValueError(f"{found.st_size} bytes; expected {MOST_BYTES} at most")
    return content


def _decode(content: bytes) -> Image.Image:
    with _any_size():
        image = Image.open(BytesIO(content), formats=FORMATS)
    with image:
        pixels = image.width * image.height
        if MOST_PIXELS < pixels <= 2 * MOST_PIXELS and image.format == "JPEG" and "progressive" not in image.info:
            image.draft(None, (image.width // 2, image.height // 2))  # a progressive one is decoded whole even so
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels; expected {MOST_PIXELS} at most; make it smaller")
        image.load()
        way = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        # ImageOps.exif_transpose writes the EXIF data again, and fails on odd entries
        return on_white(image if way is None else image.transpose(way))


@contextmanager
def _any_size() -> Iterator[None]:
    """Replace pillow's own limit, which first warns on stderr, by ours."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def on_white(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, white where it is transparent; 16-bit grey is scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.convert("RGB")
    white = Image.new("RGB", image.size)
    rows = max(1, STRIP // max(1, image.width))
    for top in range(0, image.height, rows):  # four copies of a large picture would not fit in memory
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        if strip.mode.startswith("I"):  # 16-bit grey, which pillow's own conversion cuts off at 255
            strip = Image.fromarray((np.asarray(strip).clip(0, 65535) // 257).astype(np.uint8))
        ground = Image.new("RGBA", strip.size, "white")
        ground.alpha_composite(strip.convert("RGBA"))
        white.paste(ground.convert("RGB"), (0, top))
    return white
