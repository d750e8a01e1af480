"""Writes a picture set as one uncompressed zip: `pictures.json` and lossless WebP files."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Picture:
    """One labelled picture of a set.

    Attributes:
        file: its name inside the archive.
        label: index into the set's class names.
        style: the drawing style, "" where the set has none.
        split: "pool", "validation" or "test".
        group: pictures of one group are on the same side of every split.
        title: what it shows, or where it comes from.
        pixels: RGB, (64, 64, 3).
    """

    file: str
    label: int
    style: str
    split: str
    group: str
    title: str
    pixels: NDArray[np.uint8]

    def metadata(self) -> dict[str, str | int]:
        """Everything but the pixels."""
        return {name: value for name, value in asdict(self).items() if name != "pixels"}


def write_archive(path: Path, class_names: list[str], pictures: Sequence[Picture], notice: str) -> None:
    """Writes the same bytes for the same pictures: entries in order, timestamps fixed."""
    entries = ",\n".join(json.dumps(picture.metadata(), ensure_ascii=False) for picture in pictures)
    head = json.dumps({"notice": notice, "class_names": class_names}, ensure_ascii=False, indent=1)
    metadata = f'{head[:-2]},\n "pictures": [\n{entries}\n]}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "pictures.json", metadata.encode())
        for picture in pictures:
            buffer = BytesIO()
            Image.fromarray(picture.pixels).save(buffer, "WEBP", lossless=True)
            _add(archive, picture.file, buffer.getvalue())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
