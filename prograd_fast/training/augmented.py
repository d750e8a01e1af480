"""Image features of augmented pictures, a new view of each at every epoch, made while the text step runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from PIL import Image
from torch import Tensor

from prograd_fast.clip import LoadedClip
from prograd_fast.data.pictures import PictureSet
from prograd_fast.data.splits import Rows
from prograd_fast.training.features import encode_pictures
from prograd_fast.training.views import LEAST, View


class AugmentedFeatures:
    """Features of some pictures, epoch by epoch; to be used as a context manager.

    A background thread looks at the pictures of the next epoch while the caller trains on those of this one. Every view
    goes through the image tower once.

    Args:
        clip: the model.
        pictures: the set.
        rows: (N,) indices of the pictures.
        seed: of the views.
        stored: K: K views of each picture take turns, and are kept in memory and in the cache. 0: views never repeat,
            and are not kept.
        cache: folder of a `FeatureCache`, or None.
        on_picture: called after each picture, for a progress bar.
        least: the least part of a picture's area that a crop keeps.
    """

    def __init__(
        self,
        clip: LoadedClip,
        pictures: PictureSet,
        rows: Rows,
        seed: int,
        stored: int,
        cache: Path | None = None,
        on_picture: Callable[[], None] = lambda: None,
        least: float = LEAST,
    ) -> None:
        if stored < 0:
            raise ValueError(f"stored views: expected 0 (never the same) or more, got {stored}")
        self._clip, self._pictures, self._rows = clip, pictures, rows
        self._seed, self._stored = seed, stored
        self._cache = cache if stored else None
        self._on_picture = on_picture
        self._size, self._least = looked_at(clip), least
        self._stream = torch.cuda.Stream(clip.device) if clip.device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1)
        self._views: dict[int, Future[Tensor]] = {}

    def __enter__(self) -> "AugmentedFeatures":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=kind is None, cancel_futures=True)  # who is interrupted does not wait for pictures

    def of_epoch(self, epoch: int) -> Tensor:
        """(N, D) features for epoch 0, 1, ..., on the model's device; begins with those of the epoch after it.

        Raises:
            ValueError: a picture cannot be read.
        """
        numbers = [self._number(epoch), self._number(epoch + 1)]
        for number in numbers:
            if number not in self._views:
                self._views[number] = self._worker.submit(self._encode, number)
        if not self._stored:
            self._views = {number: self._views[number] for number in numbers}
        return self._views[numbers[0]].result().to(self._clip.device)

    def _number(self, epoch: int) -> int:
        return epoch % self._stored if self._stored else epoch

    def _encode(self, number: int) -> Tensor:
        view = View(self._seed, number, self._size, self._least)
        with torch.cuda.stream(self._stream):  # beside the text step's stream; nothing on a CPU
            features = encode_pictures(
                self._clip, self._pictures, self._rows, self._on_picture, cache=self._cache, view=view
            )
            return features.of(self._rows).cpu()


def crops_of(
    clip: LoadedClip,
    pictures: PictureSet,
    rows: Rows,
    seed: int,
    number: int,
    least: float,
    cache: Path | None = None,
) -> Tensor:
    """(A, N, D) unit rows, on the model's device, of the first `number` stored views of some pictures.

    Args:
        clip: the model.
        pictures: the set.
        rows: (N,) indices of the pictures.
        seed: of the views.
        number: A.
        least: the least part of a picture's area that a crop keeps.
        cache: folder of a `FeatureCache`, or None.

    Raises:
        ValueError: a picture cannot be read.
    """
    size = looked_at(clip)
    views = (View(seed, i, size, least) for i in range(number))
    return torch.stack([encode_pictures(clip, pictures, rows, cache=cache, view=view).of(rows) for view in views])


def looked_at(clip: LoadedClip) -> int:
    """Pixels a side that a model looks at."""
    return int(clip.preprocess(Image.new("RGB", (8, 8))).shape[-1])
