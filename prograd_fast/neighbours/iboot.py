"""Self-supervised video models that subsume a frozen image model, after iBoot.

Bulat, Garcia Duran, Martinez, Tzimiropoulos, "iBoot: Image-bootstrapped Self-Supervised Video Representation Learning"
(arXiv:2206.08339): the target network of BYOL is a frozen, strong image model that sees frames; the online network is a
video model with a head that maps to the image model's embedding. There is no moving average and no trained target. The
authors have published no code, and how views are paired, the form of the head and the schedule could not be read: what
is here is our own reading of it, tested against formulas alone.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MappingHead(nn.Sequential):
    """From a video model's features to the image model's embedding: linear, batch norm, ReLU, linear.

    Ours: one prediction for each frame. What a clip predicts for its frames one by one, it knows in their order; with
    `frames` = 1 it predicts the mean alone, in which nothing moves.

    Args:
        width: of the video model's features.
        image_width: D, of the image model's.
        frames: T predictions of each clip (default: 1, which is compared with every frame).
        hidden: width between the linear layers (default: 4·width).
    """

    __call__: Callable[..., Tensor]

    def __init__(self, width: int, image_width: int, frames: int = 1, hidden: int | None = None) -> None:
        hidden = 4 * width if hidden is None else hidden
        super().__init__(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, frames * image_width),
            nn.Unflatten(1, (frames, image_width)),
        )


def subsume_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """The mean over clips and frames of 2 - 2·cos(prediction, target), which is ‖p/‖p‖ - t/‖t‖‖².

    Args:
        predicted: (B, T, D), or (B, 1, D): one prediction for all frames; of any length.
        targets: (B, T, D), the frozen image model's features of the frames; no gradient goes there.

    Returns:
        0-d, between 0 and 4; NaN without clips, as torch's mean of nothing.

    Raises:
        ValueError: the shapes do not fit.
    """
    clips, frames = targets.shape[:2]
    if predicted.ndim != 3 or predicted.shape not in ((clips, 1, *targets.shape[2:]), tuple(targets.shape)):
        raise ValueError(
            f"predicted: expected {tuple(targets.shape)}, as the targets, or {(clips, 1, *targets.shape[2:])}, got "
            f"{tuple(predicted.shape)}; build MappingHead with frames={frames} or 1."
        )
    return 2 - 2 * F.cosine_similarity(predicted, targets.detach(), dim=-1).mean()


@torch.no_grad()
def frame_targets(image_model: Callable[[Tensor], Tensor], clips: Tensor, batch: int = 64) -> Tensor:
    """The image model's view of every frame: (B, T, D) unit rows, without graph.

    Args:
        image_model: pictures (N, 3, H, W) to features (N, D), such as `encode_image` of a frozen CLIP model in
            evaluation mode.
        clips: (B, T, 3, H, W), as the image model expects its pictures.
        batch: frames at once (default: 64).
    """
    features = torch.cat([image_model(frames) for frames in clips.flatten(0, 1).split(batch)])
    return F.normalize(features, dim=-1).unflatten(0, clips.shape[:2])


def augmented(
    clips: Tensor, g: torch.Generator, scale: float = 0.7, contrast: float = 0.3, mirror: bool = False
) -> Tensor:
    """A view of each clip, the same for all of its frames, so that what moves goes on moving as it did.

    A square window of a share of the sides, at a random place, is brought back to the whole size (bilinear); then the
    difference to the clip's mean is multiplied, and left and right may change places. A pair of views is two calls.

    Args:
        clips: (B, T, C, H, W).
        g: source of the random numbers, on the CPU.
        scale: least share of the sides; it is uniform between this and 1 (default: 0.7).
        contrast: the factor is uniform in 1 ± this (default: 0.3).
        mirror: whether half of the clips are mirrored (default: False: right would become left).

    Raises:
        ValueError: `scale` is not above 0 and at most 1, or `contrast` not between 0 and 1.
    """
    if not 0 < scale <= 1 or not 0 <= contrast < 1:
        raise ValueError(f"expected a scale above 0 and at most 1, and a contrast in [0, 1), got {scale}, {contrast}.")
    count, frames = clips.shape[:2]
    draw = torch.rand(count, 5, generator=g).to(clips)
    side = scale + (1 - scale) * draw[:, 0]
    place = (1 - side)[:, None] * (2 * draw[:, 1:3] - 1)  # of the window's centre, so that it stays inside
    sign = 1 - 2 * (draw[:, 3] < 0.5).to(clips) if mirror else torch.ones_like(side)
    nothing = torch.zeros_like(side)
    rows = [torch.stack([side * sign, nothing, place[:, 0]], 1), torch.stack([nothing, side, place[:, 1]], 1)]
    flat = clips.flatten(1, 2)
    grid = F.affine_grid(torch.stack(rows, 1), list(flat.shape), align_corners=False)
    seen = F.grid_sample(flat, grid, padding_mode="border", align_corners=False).unflatten(1, (frames, -1))
    factor = (1 + contrast * (2 * draw[:, 4] - 1))[:, None, None, None, None]
    mean = seen.mean((1, 2, 3, 4), keepdim=True)
    return mean + factor * (seen - mean)
