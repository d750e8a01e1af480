"""Image features are those of the image tower, and a picture that cannot be read is named."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from prograd_fast.data import PictureSet
from prograd_fast.training import encode_pictures
from tests.conftest import draw


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
