"""A set of labelled pictures, wherever they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


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

    def open(self, index: int) -> Image.Image:
        """Decodes one picture: RGB, upright (EXIF orientation), on white where it is transparent.

        Raises:
            ValueError: the picture is missing, damaged or of an unknown format; names the set and the file or index.
        """
        source = self.source[index]
        try:
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
                return on_white(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            which = f"picture {index}" if isinstance(source, bytes) else str(source)
            raise ValueError(f"{self.name}: cannot read {which}: {error}; replace or remove it") from error


def on_white(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, white where it is transparent; 16-bit grey is scaled to 8 bits."""
    if image.mode.startswith("I"):  # 16-bit grey, which pillow's own conversion cuts off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")
