"""A set of labelled pictures, wherever they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError


@dataclass(frozen=True)
class PictureSet:
    """Labelled pictures with a fixed split.

    Attributes:
        name: What the set is called.
        class_names: C readable names, as they go into a prompt.
        labels: (N,) int64, indices into `class_names`.
        split: (N,) str, "pool" (few-shot training pictures are drawn from it), "validation" or "test".
        style: (N,) str, the drawing style; "" where a set has none.
        source: N encoded pictures, or the N files that hold them.
        folder: where a user's own pictures are, absolute; None for other sets.

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
            ValueError: the file is missing or cannot be read.
        """
        source = self.source[index]
        try:
            return source if isinstance(source, bytes) else source.read_bytes()
        except OSError as error:
            raise self._unreadable(index, error) from error

    def open(self, index: int) -> Image.Image:
        """Decodes one picture: RGB, upright (EXIF orientation), on white where it is transparent.

        Raises:
            ValueError: the picture is missing, damaged or of an unknown format; names the set and the file or index.
        """
        content = self.content(index)
        try:
            with Image.open(BytesIO(content)) as image:
                return on_white(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise self._unreadable(index, error) from error

    def _unreadable(self, index: int, error: Exception) -> ValueError:
        source = self.source[index]
        which = f"picture {index}" if isinstance(source, bytes) else str(source)
        reason = "not a known picture format" if isinstance(error, UnidentifiedImageError) else error
        return ValueError(f"{self.name}: cannot read {which}: {reason}; replace or remove it")


def on_white(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, white where it is transparent; 16-bit grey is scaled to 8 bits."""
    if image.mode.startswith("I"):  # 16-bit grey, which pillow's own conversion cuts off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")
