"""Thumbnails of a run's test pictures: from its folder, where they still are, or from an embedded set."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prograd_fast.data import EMBEDDED, PictureSet, load_embedded
from prograd_fast.report.html import Html, tag
from prograd_fast.report.page_charts import data_uri

SIDE = 112  # pixels at most; shown at half of it on a sharp screen
MOST = 400  # thumbnails of a page, of 4 kB each or so


class Thumbnails:
    """Makes thumbnails, `MOST` at most, and counts those that could not be made."""

    def __init__(self) -> None:
        self._left = MOST

    def of(self, data: Mapping[str, Any]) -> Callable[[str], Html | None]:
        """From the name of a picture in a record to its thumbnail; None where it is gone, or is no picture.

        Args:
            data: "data" of the record: "folder" of the pictures, or "name" of an embedded set.
        """
        folder = data.get("folder")
        if isinstance(folder, str):
            return lambda name: self._thumbnail(_in_folder(Path(folder), name), 0)
        if data.get("name") in EMBEDDED:
            pictures = load_embedded(data["name"])
            return lambda name: self._thumbnail(pictures, int(name)) if name.isdecimal() else None
        return lambda name: None

    def _thumbnail(self, pictures: PictureSet | None, index: int) -> Html | None:
        if pictures is None or not self._left or index >= len(pictures):
            return None
        try:
            picture = pictures.open(index, SIDE)
        except ValueError:  # it has gone, or changed
            return None
        self._left -= 1
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return tag("img", src=data_uri(picture, "JPEG", quality=80), alt="")


def _in_folder(folder: Path, name: str) -> PictureSet | None:
    """One file as a set; None where its name leads out of the folder: records may come from strangers."""
    try:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            return None
    except (OSError, ValueError, RuntimeError):  # no name that a file can have; a loop of links
        return None
    return PictureSet("report", ("",), np.zeros(1, np.int64), np.array(["test"]), np.array([""]), [file])
