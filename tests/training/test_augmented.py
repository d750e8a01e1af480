"""Guards augmented views: torchvision's crops, the same for the same seed, made ahead and stored once."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from prograd_fast.data import PictureSet
from prograd_fast.training import AugmentedFeatures, encode_pictures
from prograd_fast.training.views import View, random_crop
from tests.clip.support import Counted, shards
from tests.tolerances import assert_close, relative_error


@pytest.fixture
def counted(clip, monkeypatch) -> Counted:
    return Counted(clip, monkeypatch)


class TorchDraws:
    """torch's global generator behind the two methods that `random_crop` calls."""

    def uniform(self, low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high).item()

    def randint(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,)).item())


# square, wide, and so narrow that no draw fits and the middle is taken (both ways)
@pytest.mark.parametrize("size", [(64, 64), (97, 301), (40, 1), (1, 40), (2, 60), (60, 2)])
def test_crop_is_torchvisions(size):
    width, height = size
    picture = Image.new("RGB", size)
    for seed in range(30):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3])
            torch.manual_seed(seed)
            assert random_crop(TorchDraws(), height, width) == expected


def test_views_depend_on_picture_seed_and_number_alone(clip, shapes):
    def encode(seed: int, number: int, rows: list[int]) -> torch.Tensor:
        return encode_pictures(clip, shapes, np.array(rows), view=View(seed, number, 16)).values

    both = encode(0, 0, [3, 8])
    torch.manual_seed(1)  # has no influence
    # at another place in its batch: up to the order of a matrix library's sums
    assert_close(encode(0, 0, [8]), both[1:], "tower", torch.float32)
    assert relative_error(encode(0, 1, [8]), both[1:]) > 1e-3
    assert relative_error(encode(1, 0, [8]), both[1:]) > 1e-3


def test_stored_views_take_turns_and_are_encoded_once(clip, shapes, tmp_path, counted):
    rows = np.array([5, 2, 30])  # in the order of the shots, not sorted
    for _ in range(2):  # the second run takes them from the cache
        with AugmentedFeatures(clip, shapes, rows, seed=0, stored=2, cache=tmp_path) as views:
            epochs = [views.of_epoch(epoch) for epoch in range(4)]
        assert torch.equal(epochs[0], epochs[2])
        assert torch.equal(epochs[1], epochs[3])
        assert not torch.equal(epochs[0], epochs[1])
    assert counted.batches == 2
    view = View(0, 1, 16)
    assert torch.equal(encode_pictures(clip, shapes, rows, view=view).of(rows), epochs[1])


def test_online_views_never_repeat_and_are_not_kept(clip, shapes, tmp_path, counted):
    rows = np.array([5, 2, 30])
    with AugmentedFeatures(clip, shapes, rows, seed=0, stored=0, cache=tmp_path) as views:
        epochs = [views.of_epoch(epoch) for epoch in range(4)]
    assert len({epoch.numpy().tobytes() for epoch in epochs}) == 4
    assert not shards(tmp_path)
    assert counted.batches in (4, 5)  # one ahead, unless it was cancelled
    with AugmentedFeatures(clip, shapes, rows, seed=0, stored=0) as resumed:  # from the middle: the same views
        assert torch.equal(resumed.of_epoch(2), epochs[2])


def test_next_epoch_is_made_in_the_background(clip, shapes, monkeypatch):
    import threading

    encode, second = clip.model.encode_image, threading.Event()
    threads = []

    def encode_image(images: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread())
        if len(threads) == 2:
            second.set()
        return encode(images)

    monkeypatch.setattr(clip.model, "encode_image", encode_image)
    with AugmentedFeatures(clip, shapes, np.array([1, 2]), seed=0, stored=0) as views:
        views.of_epoch(0)
        assert second.wait(30)  # nobody asked for epoch 1 yet
    assert threading.main_thread() not in threads


def test_a_bad_picture_is_told_in_the_foreground(clip, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = PictureSet("bad", ("a",), np.zeros(1, int), np.array([""]), np.array([""]), [tmp_path / "bad.png"])
    with (
        AugmentedFeatures(clip, pictures, np.arange(1), seed=0, stored=0) as views,
        pytest.raises(ValueError, match="not a known picture format"),
    ):
        views.of_epoch(0)


@pytest.mark.parametrize("stored", [-1])
def test_wrong_number_of_views(clip, shapes, stored):
    with pytest.raises(ValueError, match=r"expected 0 .* got -1"):
        AugmentedFeatures(clip, shapes, np.arange(1), seed=0, stored=stored)
