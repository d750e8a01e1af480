"""Image features are those of the image tower, whatever their batch; a picture that cannot be read is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from prograd_fast.data import PictureSet
from prograd_fast.training import encode_pictures
from prograd_fast.training.features import BATCH
from prograd_fast.training.views import View
from tests.conftest import draw
from tests.tolerances import assert_close


def test_features_are_the_image_tower_s(clip, shapes):
    rows = np.array([7, 3, 3, 11])  # out of order, one twice
    seen = []
    features = encode_pictures(clip, shapes, rows, lambda: seen.append(1))
    images = torch.stack([clip.preprocess(shapes.open(int(row))) for row in rows])
    expected = normalize(clip.model.encode_image(images), dim=-1)
    torch.testing.assert_close(features.of(rows), expected)
    assert len(seen) == 3
    assert not features.values.requires_grad


def test_no_pictures(clip, shapes):
    with pytest.raises(ValueError, match="shapes: no pictures to look at"):
        encode_pictures(clip, shapes, np.array([], dtype=np.int64))


def test_unreadable_pictures_are_all_named_before_training(clip, tmp_path):
    files = []
    for i in range(80):  # more than one batch: the second one is looked at too
        files.append(tmp_path / f"{i:02}.png")
        draw("red_circle", i).save(files[-1])
    for i in (1, 2, 3, 70, 71, 72):
        files[i].write_bytes(files[i].read_bytes()[:60])
    pictures = PictureSet("cut", ("a",), np.zeros(80, int), np.array(["test"] * 80), np.array([""] * 80), files)
    with pytest.raises(ValueError, match="6 of 80 pictures cannot be read") as caught:
        encode_pictures(clip, pictures, np.arange(80))
    message = str(caught.value)
    assert all(f"{i:02}.png" in message for i in (1, 2, 3, 70, 71))
    assert "72.png" not in message
    assert "and 1 more" in message


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 32])
def test_few_pictures_cost_few_forwards_and_have_the_same_features(clip, shapes, monkeypatch, n):
    """Up to rounding, as those from full batches. The last batch of many pictures is full: their bits never change."""
    expected = encode_pictures(clip, shapes, np.arange(len(shapes))).of(np.arange(n))
    encode, sizes = clip.model.encode_image, []

    def encode_image(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return encode(images)

    monkeypatch.setattr(clip.model, "encode_image", encode_image)
    assert_close(encode_pictures(clip, shapes, np.arange(n)).values, expected, "tower", torch.float32)
    encode_pictures(clip, shapes, np.arange(BATCH + 1))
    assert sizes[1:] == [BATCH, BATCH]
    assert n <= sizes[0] < 2 * n


def photo(file: Path, seed: int, size: tuple[int, int] = (1600, 1200)) -> Path:
    """Structure from the size of the picture to that of a pixel, and noise."""
    random = np.random.RandomState(seed)
    layers = [
        np.asarray(Image.fromarray(random.randint(0, 256, (n, n, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC))
        for n in (3, 10, 40, 200)
    ]
    noisy = np.mean(layers, axis=0) + random.randn(size[1], size[0], 1) * 6
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=92)
    return file


@pytest.mark.parametrize("view", [None, View(0, 0, 16)], ids=["whole", "view"])
def test_a_photo_decoded_at_reduced_size_has_nearly_the_same_features(clip, tmp_path, monkeypatch, view):
    files = [photo(tmp_path / f"{i}.jpg", i) for i in range(3)]
    pictures = PictureSet("photos", ("a",), np.zeros(3, int), np.array(["test"] * 3), np.array([""] * 3), files)
    sizes = []
    opened = PictureSet.opened

    def encode(reduced: bool) -> torch.Tensor:
        def open_at(self, index, side=None):
            sizes.append(opened(self, index, side).__enter__().size)
            return opened(self, index, side if reduced else None)

        monkeypatch.setattr(PictureSet, "opened", open_at)
        return encode_pictures(clip, pictures, np.arange(3), view=view).values

    reduced = encode(True)
    assert max(max(size) for size in sizes) == 200
    if view is None:  # a view of another size is another crop
        assert (encode(False) * reduced).sum(dim=1).min() > 1 - 1e-3


def test_features_of_embedded_pictures_are_what_they_were(clip):
    """The demo's and the study's pictures are PNGs of 64 pixels: never reduced, and always in whole batches."""
    from prograd_fast.data import load_embedded

    emoji = load_embedded("emoji")
    rows = np.arange(BATCH + 3)
    images = torch.stack([clip.preprocess(emoji.open(int(row))) for row in rows])
    last = torch.cat([images[BATCH:], images[BATCH : BATCH + 1].expand(BATCH - 3, -1, -1, -1)])
    with torch.no_grad():
        whole = [normalize(clip.model.encode_image(batch), dim=-1) for batch in (images[:BATCH], last)]
    assert torch.equal(encode_pictures(clip, emoji, rows).values, torch.cat([whole[0], whole[1][:3]]))


def test_one_picture_too_long_for_the_transform_is_named(clip, tmp_path):
    Image.new("RGB", (1, 3000)).save(tmp_path / "line.png")
    source = [tmp_path / "line.png"]
    pictures = PictureSet("lines", ("a",), np.zeros(1, int), np.array(["test"]), np.array([""]), source)
    with pytest.raises(ValueError, match=r"1 of 1 pictures cannot be read: .*line\.png: 1 x 3000 pixels; expected"):
        encode_pictures(clip, pictures, np.arange(1))


def test_batches_are_the_rows_one_after_the_other(clip, shapes, tmp_path):
    features = encode_pictures(clip, shapes, np.arange(len(shapes)), cache=tmp_path)
    rows = np.array([7, 0, 31, 8, 9])
    batches = list(encode_pictures(clip, shapes, np.arange(len(shapes)), cache=tmp_path).batches(rows, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), features.values[rows])
