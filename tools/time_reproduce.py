"""Time the parts of `reproduce` at ImageNet's size, with random weights: CLIP RN50, 1000 classes, 50,000 test pictures.

    python -m tools.time_reproduce

Each part is measured for a few pictures or steps in seconds of processor time, one thread, which other work on the
machine disturbs less than a clock. `docs/reproduce.md` computes a whole table from them.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn.functional import normalize

from prograd_fast.clip import LoadedClip
from prograd_fast.clip.feature_cache import FeatureCache
from prograd_fast.data import PictureSet
from prograd_fast.methods import ProGradCoOp, Task
from prograd_fast.reproduce import published_settings
from prograd_fast.training.evaluate import rank
from prograd_fast.training.features import encode_pictures
from prograd_fast.training.update import update
from prograd_fast.training.views import View

PICTURES, TEST, STEPS = 64, 50_000, 2
SIZE = (500, 375)  # ImageNet's most frequent


def main() -> None:
    """Print a line for each part."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("RN50", pretrained=None)
    model.eval().requires_grad_(False)
    clip = LoadedClip("RN50", None, model, open_clip.get_tokenizer("RN50"), preprocess, torch.device("cpu"))
    names = tuple(open_clip.IMAGENET_CLASSNAMES)

    with tempfile.TemporaryDirectory() as folder:
        pictures = _pictures(Path(folder))
        rows = np.arange(PICTURES)
        seconds = _seconds(lambda: encode_pictures(clip, pictures, rows))
        _tell(f"a picture as it is: {seconds / PICTURES:.4f} s")
        seconds = _seconds(lambda: encode_pictures(clip, pictures, rows, view=View(0, 0, 224)))
        _tell(f"a random crop of a picture: {seconds / PICTURES:.4f} s")

        features = normalize(torch.randn(TEST, 1024), dim=1)
        keys = [hashlib.sha256(str(i).encode()).digest() for i in range(TEST)]
        cache = FeatureCache(Path(folder) / "cache", {"tower": "random"}, 1024)
        for start in range(0, TEST, 4096):
            cache.put(keys[start : start + 4096], features[start : start + 4096])
        _tell(f"{TEST} features from the cache: {_seconds(lambda: cache.get(keys)):.2f} s")
        content = bytes(64 << 20)
        _tell(f"the digest of 1 GB of pictures: {_seconds(lambda: hashlib.sha256(content)) / len(content) * 1e9:.2f} s")

    method = published_settings(ProGradCoOp, "few-shot", "imagenet", 16, "RN50").method
    labels = torch.arange(1000).repeat_interleave(16)
    trained = normalize(torch.randn(16_000, 1024), dim=1)
    learner = method.start(Task(model, clip.tokenizer, names, trained, labels, 1))
    batch = trained[::500], labels[::500]  # 32 pictures
    update(learner, batch)  # the teacher's class features are encoded before the first
    seconds = _seconds(lambda: [update(learner, batch) for _ in range(STEPS)])
    _tell(f"a training step of ProGrad, 1000 classes, 32 pictures: {seconds / STEPS:.2f} s")
    scores = learner.scores(names)  # the class features, once
    _tell(f"the class features: {_seconds(lambda: learner.scores(names)):.2f} s")
    _tell(f"{TEST} test pictures from their features: {_seconds(lambda: rank(scores, features, 10)):.2f} s")


def _pictures(folder: Path) -> PictureSet:
    """Photographs' sizes, smooth enough to have photographs' bytes."""
    random = np.random.RandomState(0)
    files = []
    for i in range(PICTURES):
        coarse = Image.fromarray(random.randint(0, 256, (12, 16, 3), np.uint8))
        fine = Image.fromarray(random.randint(0, 256, (SIZE[1], SIZE[0], 3), np.uint8))
        files.append(folder / f"{i}.jpg")
        Image.blend(coarse.resize(SIZE, Image.Resampling.BICUBIC), fine, 0.15).save(files[-1], quality=90)
    n = len(files)
    return PictureSet("made", ("a", "b"), np.arange(n) % 2, np.array(["test"] * n), np.array([""] * n), files)


def _tell(line: str) -> None:
    print(line, flush=True)


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
