"""Image features: the frozen tower sees every picture once, whatever is trained on them afterwards."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from prograd_fast.data.pictures import PictureSet
from prograd_fast.data.splits import Rows
from prograd_fast.training.model import Clip

BATCH = 32  # pictures per forward; on a CPU larger ones fall out of its cache


@dataclass(frozen=True)
class Features:
    """Image features of some pictures of a set.

    Attributes:
        rows: (N,) sorted int64 indices into the set.
        values: (N, D) float32 unit rows.
    """

    rows: Rows
    values: Tensor

    def of(self, rows: Rows) -> Tensor:
        """(len(rows), D): the features of these pictures, all of which are in `self.rows`."""
        return self.values[torch.from_numpy(np.searchsorted(self.rows, rows))]


def encode_pictures(
    clip: Clip, pictures: PictureSet, rows: Rows, on_picture: Callable[[], None] = lambda: None
) -> Features:
    """Run the image tower over pictures of a set.

    Args:
        clip: The model.
        pictures: The set.
        rows: Indices of the pictures, in any order, repeated or not.
        on_picture: Called after each picture, for a progress bar.

    Returns:
        Their features, on the model's device.

    Raises:
        ValueError: no rows; or pictures that cannot be read: how many, and which are the first five. All are tried
            before.
    """
    rows = np.unique(rows)
    if not len(rows):
        raise ValueError(f"{pictures.name}: no pictures to look at; expected at least one row")
    bad: list[str] = []

    def load(row: int) -> Tensor | None:
        try:
            return clip.preprocess(pictures.open(row))
        except ValueError as error:
            bad.append(str(error))
            return None

    values = []
    with ThreadPoolExecutor() as pool, torch.no_grad():
        for start in range(0, len(rows), BATCH):
            images = [image for image in pool.map(load, rows[start : start + BATCH].tolist()) if image is not None]
            if not bad:  # once one is bad, only the list of the others is still of use
                values.append(normalize(clip.model.encode_image(torch.stack(images).to(clip.device)).float(), dim=-1))
            for _ in range(start, min(start + BATCH, len(rows))):
                on_picture()
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(f"{len(bad)} of {len(rows)} pictures cannot be read: {'; '.join(sorted(bad)[:5])}{more}")
    return Features(rows, torch.cat(values))
