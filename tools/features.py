"""Image-tower features of every drawing, once: the tower is frozen, so pretraining needs no pictures."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from prograd_fast.clip import emoji_lite
from tools import WORK, emojis
from tools.augment import augment
from tools.build_drawings import load_drawings
from tools.build_emoji import PICTURES, SEEN_STYLES
from tools.config import CONFIG

FEATURES = WORK / "features.pt"
EMOJI_VIEWS, ICON_VIEWS = 2, 1  # augmented views of every drawing that pretraining sees
BATCH = 16
# A worker's task: pictures (B, 64, 64, 3), and what seeds their augmentation, a view and a row, or None for none.
Job = tuple[NDArray[np.uint8], tuple[int, int] | None]


@dataclass(frozen=True)
class Features:
    """What the head reads, in fp16: W = 2,896 numbers of a drawing.

    Attributes:
        emojis: (1 + EMOJI_VIEWS, E, W), of the E pretraining drawings of emojis: as they are, then augmented.
        icons: (ICON_VIEWS, I, W), of augmented views of the I icons, which follow the emojis in the drawings.
        held_out: (N, W), of the pool and validation pictures of the seen styles, which choose between seeds.
        held_out_emoji: (N,) the emoji of each.
    """

    emojis: Tensor
    icons: Tensor
    held_out: Tensor
    held_out_emoji: Tensor

    @classmethod
    def load(cls) -> "Features":
        """Reads what `compute_features` saved."""
        return cls(**torch.load(FEATURES, weights_only=True))


def compute_features() -> None:
    """Saves the features of all drawings; in two processes of one thread each, so that every run sums alike."""
    records = emojis.load()
    with np.load(PICTURES) as archive:
        pictures, emoji, style = archive["pictures"], archive["emoji"], archive["style"]
    split = np.array([record.split for record in records])[emoji]
    chosen = np.flatnonzero(np.isin(split, ("pool", "validation")) & (style < len(SEEN_STYLES)))
    drawings, shown = load_drawings()
    n_emojis = sum(drawing.emoji is not None for drawing in shown)
    rows = _batches(np.arange(n_emojis)), _batches(np.arange(n_emojis, len(shown)))
    held_out: list[Job] = [(pictures[some], None) for some in _batches(chosen)]
    as_is: list[Job] = [(drawings[some], None) for some in rows[0]]
    views: list[Job] = [
        (drawings[some], (view, int(some[0])))
        for batches, n_views in zip(rows, (EMOJI_VIEWS, ICON_VIEWS), strict=True)
        for view in range(n_views)
        for some in batches
    ]
    jobs = [*held_out, *as_is, *views]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), _start_worker) as pool:
        done = list(track(pool.map(_features, jobs, chunksize=16), "image features", len(jobs)))
    features = torch.from_numpy(np.concatenate(done))
    lengths = (len(chosen), (1 + EMOJI_VIEWS) * n_emojis, ICON_VIEWS * (len(shown) - n_emojis))
    of_held_out, of_emojis, of_icons = features.split(lengths)
    result = Features(
        emojis=of_emojis.view(1 + EMOJI_VIEWS, n_emojis, -1),
        icons=of_icons.view(ICON_VIEWS, len(shown) - n_emojis, -1),
        held_out=of_held_out,
        held_out_emoji=torch.from_numpy(emoji[chosen]),
    )
    torch.save({name: tensor.clone() for name, tensor in asdict(result).items()}, FEATURES)


def _batches(rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return np.split(rows, range(BATCH, len(rows), BATCH))


_tower: emoji_lite.ImageTower


def _start_worker() -> None:
    global _tower
    torch.set_num_threads(1)
    model = emoji_lite.build_model(CONFIG)
    model.load_state_dict(emoji_lite.tower_state(model), strict=False)
    _tower = model.visual.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def _features(job: Job) -> NDArray[np.float16]:
    pictures = torch.from_numpy(job[0]).permute(0, 3, 1, 2)
    if job[1] is None:
        images = emoji_lite.enlarge(pictures)
    else:
        view, first = job[1]
        images = augment(pictures, torch.Generator().manual_seed(view * 100_000 + first))
    return _tower.pooled(images.contiguous(memory_format=torch.channels_last)).half().numpy()


if __name__ == "__main__":
    compute_features()
