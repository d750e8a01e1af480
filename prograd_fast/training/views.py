"""Augmented views of pictures: the papers' random crop and flip, a function of the picture, the seed and a number."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

LEAST, RATIO = 0.08, (3 / 4, 4 / 3)  # torchvision's defaults, which CoOp and ProGrad train with


@dataclass(frozen=True)
class View:
    """One augmented view of every picture: RandomResizedCrop (bicubic) and a horizontal flip of every second one.

    Which crop it is depends on the picture's content, the size that it is decoded at, `seed` and `number` alone, not on
    a global random state, other pictures or the thread: a view can be stored, made ahead in the background, and made
    again after a restart.

    Attributes:
        seed: of the run.
        number: which view of each picture, 0, 1, ...
        size: pixels a side of the view, the model's input.
        least: the least part of a picture's area that a crop keeps; the most is all of it.
    """

    seed: int
    number: int
    size: int
    least: float = LEAST

    @property
    def name(self) -> bytes:
        """Tell this view from others, to be part of a key."""
        return f"crop {(self.least, 1.0)} {RATIO} flip {self.size} {self.seed} {self.number}".encode()

    @property
    def decoded_side(self) -> int:
        """Pixels that the shorter side of a picture needs, so that the smallest crop has `size` pixels a side."""
        return math.ceil(self.size / math.sqrt(self.least * RATIO[0]))

    def of(self, picture: Image.Image, key: bytes) -> Image.Image:
        """The view of a picture.

        Args:
            picture: RGB.
            key: a digest of the picture and `name`, from which crop and flip are drawn.
        """
        random = np.random.RandomState(np.frombuffer(key, np.uint32))
        top, left, height, width = random_crop(random, picture.height, picture.width, self.least)
        size = [self.size, self.size]
        view = F.resized_crop(picture, top, left, height, width, size, InterpolationMode.BICUBIC)
        return F.hflip(view) if random.random_sample() < 0.5 else view


def random_crop(
    random: np.random.RandomState, height: int, width: int, least: float = LEAST
) -> tuple[int, int, int, int]:
    """Top, left, height, width of torchvision's `RandomResizedCrop`, drawn from a generator of one's own.

    `RandomResizedCrop.get_params` draws from torch's global generator, which threads cannot share and keep the order.
    """
    for _ in range(10):
        area = height * width * random.uniform(least, 1.0)
        ratio = np.exp(random.uniform(*np.log(RATIO)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h + 1), random.randint(0, width - w + 1), h, w
    # the largest crop in the middle that has an allowed ratio
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w
