"""A set of labelled pictures, wherever they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


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
    """

    name: str
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    style: NDArray[np.str_]
    source: Sequence[bytes] | Sequence[Path]

    def __len__(self) -> int:
        """The number of pictures N."""
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        """Decodes one picture, RGB.

        Raises:
            ValueError: the picture is missing, damaged or of an unknown format; names the set and the file or index.
        """
        source = self.source[index]
        try:
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            which = f"picture {index}" if isinstance(source, bytes) else str(source)
            raise ValueError(f"{self.name}: cannot read {which}: {error}; replace or remove it") from error
