"""Image-tower features of every emoji drawing, once: the tower is frozen, so pretraining needs no pictures."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from prograd_fast.clip import emoji_lite
from tools import WORK, emojis
from tools.augment import augment
from tools.build_emoji import PICTURES, SEEN_STYLES
from tools.config import CONFIG
from tools.emojis import PRETRAINING

FEATURES = WORK / "features.pt"
VIEWS = 4  # augmented views of every drawing that pretraining sees
BATCH = 64
# A worker's task: pictures (B, 64, 64, 3), and what seeds their augmentation, a view and a row, or None for none.
Job = tuple[NDArray[np.uint8], tuple[int, int] | None]


@dataclass(frozen=True)
class Features:
    """Features of N drawings, 1,280 each.

    Attributes:
        clean: (N, 1280) fp16, of the drawings as they are.
        views: (VIEWS, P, 1280) fp16, of augmented views of the P drawings that pretraining sees.
        seen: (P,) which of the N drawings those are.
        emoji: (N,) index into the emoji records.
        style: (N,) index into `tools.build_emoji.STYLES`, where the seen styles come first.
    """

    clean: Tensor
    views: Tensor
    seen: Tensor
    emoji: Tensor
    style: Tensor

    @classmethod
    def load(cls) -> "Features":
        """Reads what `compute_features` saved."""
        return cls(**torch.load(FEATURES, weights_only=True))


def compute_features() -> None:
    """Saves the features of all drawings; in two processes of one thread each, so that every run sums alike."""
    records = emojis.load()
    with np.load(PICTURES) as archive:
        pictures, emoji, style = archive["pictures"], archive["emoji"], archive["style"]
    pretraining = np.array([records[i].split == PRETRAINING for i in emoji])
    seen = np.flatnonzero(pretraining & (style < len(SEEN_STYLES)))
    clean: list[Job] = [(pictures[rows], None) for rows in _batches(np.arange(len(pictures)))]
    views: list[Job] = [(pictures[rows], (view, int(rows[0]))) for view in range(VIEWS) for rows in _batches(seen)]
    jobs = clean + views
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), _start_worker) as pool:
        done = list(track(pool.map(_features, jobs), "image features", len(jobs)))
    features = torch.from_numpy(np.concatenate(done))
    result = Features(
        clean=features[: len(pictures)],
        views=features[len(pictures) :].view(VIEWS, len(seen), -1),
        seen=torch.from_numpy(seen),
        emoji=torch.from_numpy(emoji),
        style=torch.from_numpy(style),
    )
    torch.save({name: tensor.clone() for name, tensor in asdict(result).items()}, FEATURES)


def _batches(rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return np.split(rows, range(BATCH, len(rows), BATCH))


_tower: nn.Module


def _start_worker() -> None:
    global _tower
    torch.set_num_threads(1)
    model = emoji_lite.build_model(CONFIG)
    model.load_state_dict(emoji_lite.tower_state(model), strict=False)
    _tower = model.visual.trunk.eval()


@torch.inference_mode()
def _features(job: Job) -> NDArray[np.float16]:
    pictures = torch.from_numpy(job[0]).permute(0, 3, 1, 2)
    if job[1] is None:
        images = emoji_lite.enlarge(pictures)
    else:
        view, first = job[1]
        images = augment(pictures, torch.Generator().manual_seed(view * 100_000 + first))
    features: Tensor = _tower(images.contiguous(memory_format=torch.channels_last))
    return features.half().numpy()


if __name__ == "__main__":
    compute_features()
