"""Image features: the frozen tower sees every picture once, whatever is trained on them afterwards."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from prograd_fast.clip import LoadedClip
from prograd_fast.clip.feature_cache import FeatureCache, tower_identity
from prograd_fast.clip.rows import KeyedRows, RowTable
from prograd_fast.data.pictures import PictureSet, refuse_unreadable
from prograd_fast.data.splits import Rows
from prograd_fast.methods.base import Method, Teacher, feature_width, fingerprint
from prograd_fast.training.views import View

BATCH = 32  # pictures per forward; on a CPU larger ones fall out of its cache
# A JPEG keeps so many times the pixels that the model looks at, each way. Pillow's documentation calls a reduction to 3
# times the size indistinguishable from none in most cases.
REDUCING_GAP = 3
STORE_EVERY = 4096  # pictures: what a killed run loses at most
# Heights and widths of pictures that tell transforms apart: larger and smaller than any input, wide and tall.
_PROBES = ((401, 613, 3), (53, 37, 3))


@dataclass(frozen=True)
class Features:
    """Image features of some pictures of a set.

    Attributes:
        pictures: the set.
        rows: (N,) sorted int64 indices into the set.
        table: (N, D) float32 unit rows; of a cache, those on a CPU are mapped from its files.
    """

    pictures: PictureSet
    rows: Rows
    table: RowTable

    def of(self, rows: Rows) -> Tensor:
        """(len(rows), D): a copy of the features of these pictures, all of which are in `self.rows`."""
        return self.table.take(np.searchsorted(self.rows, rows))

    def batches(self, rows: Rows, size: int) -> Iterator[Tensor]:
        """The same in parts of `size` pictures, of which one at a time is in memory."""
        for start in range(0, len(rows), size):
            yield self.of(rows[start : start + size])

    @property
    def values(self) -> Tensor:
        """(N, D): a copy of all features."""
        return self.of(self.rows)


def seen_by(method: Method, clip: LoadedClip) -> LoadedClip:
    """The model whose image features a method takes: `clip`, or what its tower gives before the projection.

    Raises:
        ValueError: the tower has no projection, and the method needs one.
    """
    return clip.before_projection() if method.before_projection else clip


def fingerprint_of(pictures: PictureSet, rows: Rows) -> str:
    """The `fingerprint` of these pictures' contents, in their order; ValueError if one cannot be read."""
    return fingerprint(pictures.digest(row) for row in rows.tolist())


def teacher_of(
    clip: LoadedClip,
    pictures: PictureSet,
    rows: Rows,
    on_picture: Callable[[], None] = lambda: None,
    cache: Path | None = None,
) -> Teacher:
    """A model as the teacher of another one on these pictures, in this order, for `Task.teacher`.

    Args:
        clip: The teaching model.
        pictures: The set.
        rows: Indices of the pictures that the student learns from.
        on_picture: As for `encode_pictures`.
        cache: As for `encode_pictures`: each model has its own features there.

    Raises:
        ValueError: a picture cannot be read.
    """
    return taught(clip, encode_pictures(clip, pictures, rows, on_picture, cache), rows)


def taught(clip: LoadedClip, features: Features, rows: Rows) -> Teacher:
    """The same from the teaching model's features of these pictures and perhaps others."""
    return Teacher(clip.model, clip.tokenizer, features.of(rows), fingerprint_of(features.pictures, rows))


def encode_pictures(
    clip: LoadedClip,
    pictures: PictureSet,
    rows: Rows,
    on_picture: Callable[[], None] = lambda: None,
    cache: Path | None = None,
    view: View | None = None,
) -> Features:
    """Run the image tower over pictures of a set, or take their features from the cache.

    A picture's features do not depend on those that it is encoded with, so that those from the cache are the same, up
    to the last bits: kernels for another number of pictures may sum in another order (`_padded`).

    A large JPEG is decoded at a reduced size that keeps `REDUCING_GAP` times the pixels that the model needs.

    Args:
        clip: The model.
        pictures: The set.
        rows: Indices of the pictures, in any order, repeated or not.
        on_picture: Called after each picture, for a progress bar.
        cache: Folder of a `FeatureCache`; None: everything is encoded, and nothing kept.
        view: Which augmented view of each picture; None: the picture as it is.

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
    looked_at = max(clip.preprocess(Image.new("RGB", (8, 8))).shape[-2:])
    side = REDUCING_GAP * looked_at if view is None else view.decoded_side

    def digest(row: int) -> bytes:
        try:
            return bytes.fromhex(pictures.digest(row, b"" if view is None else view.name))
        except ValueError as error:
            bad.append(str(error))
            return b""

    def load(index: int) -> Tensor | None:
        try:
            with pictures.opened(int(rows[index]), side) as picture:
                return clip.preprocess(picture if view is None else view.of(picture, keys[index]))
        except ValueError as error:
            bad.append(str(error))
            return None

    with ThreadPoolExecutor() as pool:
        keys = list(pool.map(digest, rows.tolist()))
        width = feature_width(clip.model, clip.tokenizer)
        store = FeatureCache(cache, _identity(clip, side), width, clip.name) if cache else None
        known = store.get(keys) if store else KeyedRows(keys)
        new = [index for index, key in enumerate(keys) if key and key not in known]
        for _ in range(len(rows) - len(new)):
            on_picture()
        for start in range(0, len(new), STORE_EVERY):
            part, values = new[start : start + STORE_EVERY], []
            for images in _batches(pool, load, part):
                if not bad:  # once one is bad, only the list of the others is still of use
                    values.append(_encode(clip, images, BATCH if len(new) > BATCH else _padded(len(new))))
                for _ in images:
                    on_picture()
            if not bad:
                encoded, encoded_keys = torch.cat(values), [keys[index] for index in part]
                known.add(known.slots(encoded_keys), encoded)
                if store:
                    store.put(encoded_keys, encoded)
    refuse_unreadable(bad, len(rows))
    return Features(pictures, rows, known.table(keys).to(clip.device))


def _batches(
    pool: ThreadPoolExecutor, load: Callable[[int], Tensor | None], indices: Sequence[int]
) -> Iterator[list[Tensor | None]]:
    """Decoded pictures, `BATCH` at a time; meanwhile the next ones are decoded."""
    ahead = None
    for start in range(0, len(indices), BATCH):
        following = [pool.submit(load, index) for index in indices[start : start + BATCH]]
        if ahead is not None:
            yield [future.result() for future in ahead]
        ahead = following
    if ahead is not None:
        yield [future.result() for future in ahead]


def _padded(n: int) -> int:
    """The size of the batch for so few pictures, at most `BATCH`: the next power of two.

    Few sizes mean few ways of rounding. Features from a smaller batch differ by 1e-6 of a unit row at most, or not at
    all: that depends on processor and matrix library.
    """
    return min(BATCH, 1 << math.ceil(math.log2(n)))


@torch.no_grad()
def _encode(clip: LoadedClip, images: Sequence[Tensor | None], size: int) -> Tensor:
    """(n, D) float32 unit rows on the CPU of n pictures.

    The forward always has `size` pictures, copies of the first where there are fewer: kernels for another number of
    rows round otherwise.
    """
    batch = torch.stack([image for image in images if image is not None])
    padded = torch.cat([batch, batch[:1].expand(size - len(batch), -1, -1, -1)])
    return normalize(clip.model.encode_image(padded.to(clip.device)).float(), dim=-1)[: len(batch)].cpu()


def _identity(clip: LoadedClip, side: int) -> dict[str, str]:
    """The facts that decide a picture's features: weights, modules, where they run, decoding, and the transform."""
    tower = getattr(clip.model, "visual", clip.model)
    random = np.random.RandomState(0)
    seen = [clip.preprocess(Image.fromarray(random.randint(0, 256, size, np.uint8))) for size in _PROBES]
    transform = hashlib.sha256(b"".join(image.contiguous().numpy().tobytes() for image in seen)).hexdigest()
    precision = str(next(tower.parameters()).dtype)
    where = {"device": clip.device.type, "precision": precision}
    return {**tower_identity(tower), **where, "transform": transform, "decoded side": str(side)}
