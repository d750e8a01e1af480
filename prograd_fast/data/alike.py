"""Pictures that look alike: a perceptual signature, which scaling, compression and exposure hardly change."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16  # pixels of a signature, each way
ALIKE = 0.98  # correlation from which two pictures count as near duplicates
_BLOCK = 2048  # rows compared at once, which bounds the memory

Signatures = NDArray[np.float32]


def signature(image: Image.Image) -> Signatures:
    """The (768,) pixels of a small RGB copy, the mean of each colour 0, the length 1; zeros for one colour alone."""
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    pixels = (small - small.mean(axis=(0, 1))).reshape(-1)
    length = float(np.linalg.norm(pixels))
    return pixels / length if length > SIDE else np.zeros_like(pixels)  # less than one grey level a pixel is noise


def alike_pairs(one: Signatures, other: Signatures) -> list[tuple[int, int]]:
    """(i, j) of all near duplicates between (N, 768) and (M, 768) signatures: their correlation is `ALIKE` or more."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(one), _BLOCK):
        close = np.argwhere(one[start : start + _BLOCK] @ other.T >= ALIKE)
        found += [(start + int(i), int(j)) for i, j in close]
    return found
