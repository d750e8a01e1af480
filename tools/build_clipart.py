"""Packs a part of Open Clip Art as `clipart.zip`: 26 classes, named after folders, labels as the folders have them."""

import hashlib
import re
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.progress import track

from prograd_fast.clip.emoji_lite import square
from prograd_fast.data.decode import on_white
from tools import ASSETS
from tools.archive import Picture, write_archive
from tools.classes import CLIPART_CLASSES
from tools.emojis import split_groups

CLASS_LIMIT = 90  # pictures of one class
SERIES_LIMIT = 12  # pictures of one author's numbered series
NEAR_EQUAL = 0.95  # correlation of 32 x 32 grey thumbnails
BLANK = 3.0  # their standard deviation, of 256 grey levels
SPLIT_SHARES = {"pool": 0.55, "test": 0.3, "validation": 0.15}  # of the pictures of a class

NOTICE = (
    "Open Clip Art Library 0.18 (https://openclipart.org), by way of Debian's openclipart-png; dedicated to the public "
    "domain by its authors. `title` is the file's path there. Labels come from folders and were not cleaned. "
    "Cropped to the drawing, 64 px on white."
)


def build_clipart(packages: dict[str, Path]) -> None:
    """Writes the archive to the assets."""
    root = packages["openclipart"] / "usr/share/openclipart/png"
    labelled = [
        (path, label) for label, folders in enumerate(CLIPART_CLASSES.values()) for path in _files(root, folders)
    ]
    with ProcessPoolExecutor(2) as pool:
        drawn = list(track(pool.map(draw, [path for path, _ in labelled], chunksize=8), "clip art", len(labelled)))
    kept = [(path, label, pixels) for (path, label), pixels in zip(labelled, drawn, strict=True)]
    kept = [kept[i] for i in near_equals_dropped(np.stack([pixels for *_, pixels in kept]))]

    pictures: list[Picture] = []
    for label in range(len(CLIPART_CLASSES)):
        of_class = [(path, pixels) for path, other, pixels in kept if other == label]
        splits = split_groups(Counter(series(path) for path, _ in of_class), SPLIT_SHARES)
        for path, pixels in of_class:
            pictures.append(
                Picture(
                    file=f"{len(pictures):04}.webp",
                    label=label,
                    style="",
                    split=splits[series(path)],
                    group=series(path),
                    title=path.relative_to(root).as_posix(),
                    pixels=pixels,
                )
            )
    write_archive(ASSETS / "clipart.zip", list(CLIPART_CLASSES), pictures, NOTICE)


def series(path: Path) -> str:
    """The name that numbered and black-and-white variants of a picture share: without numbers and suffixes."""
    name = re.sub(r"(_bw|_colour|_lit|_notlit)(?=[_.]|$)", "", path.stem)
    return re.sub(r"(_[a-z]{0,2})?$", "", re.sub(r"\d+", "", name)).strip("_-")


def draw(path: Path) -> NDArray[np.uint8]:
    """The picture without its empty margin, (64, 64, 3) on white."""
    Image.MAX_IMAGE_PIXELS = None  # a few pages are larger than pillow's limit against hostile files
    with Image.open(path) as image:
        whole = on_white(image)
    return np.asarray(square(whole.crop(ImageOps.invert(whole).getbbox())))


def _files(root: Path, folders: tuple[str, ...]) -> list[Path]:
    """The files of one class, at most `SERIES_LIMIT` of a series; no links, which are pictures of another folder."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        pattern = "**/*.png" if folder.endswith("/*") else "*.png"
        for path in sorted((root / folder.removesuffix("/*")).glob(pattern)):
            if not path.is_symlink():
                found[series(path)].append(path)
    few = [path for paths in found.values() for path in paths[:SERIES_LIMIT]]
    return sorted(few, key=lambda path: hashlib.sha256(path.name.encode()).digest())[:CLASS_LIMIT]


def near_equals_dropped(pictures: NDArray[np.uint8]) -> list[int]:
    """Indices of the pictures that are not blank and not near an earlier one; in grey, as recolouring is common."""
    grey = pictures.mean(3).reshape(len(pictures), 32, 2, 32, 2).mean((2, 4)).reshape(len(pictures), 1024)
    contrast = grey.std(1)
    shape = (grey - grey.mean(1, keepdims=True)) / np.maximum(contrast, 1)[:, None]
    alike = shape @ shape.T / grey.shape[1]  # correlation
    kept: list[int] = []
    for i in range(len(pictures)):
        if contrast[i] > BLANK and not (alike[i, kept] > NEAR_EQUAL).any():
            kept.append(i)
    return kept
