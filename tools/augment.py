"""Random views of a drawing: moved, turned, mirrored, recoloured, on a coloured ground."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.clip.emoji_lite import IMAGE_SIZE, normalize


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of each picture, uint8 (B, 3, 64, 64) to float32 (B, 3, 112, 112), normalised for the tower."""
    batch = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    images = _on_coloured_ground(pictures.float() / 255, uniform(0.5, 1, 3, 1, 1), uniform(0, 1, 1, 1, 1) < 0.3)

    angle, scale = uniform(-0.3, 0.3), uniform(0.8, 1.3)  # radians; a scale above 1 shrinks the drawing
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = uniform(-0.15, 0.15, 2)
    rows = [torch.stack([cos * mirror, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [batch, 3, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    grey = images.mean(1, keepdim=True)
    saturation = uniform(0.3, 1.5, 1, 1, 1) * (uniform(0, 1, 1, 1, 1) > 0.25)  # a quarter has no colour at all
    images = grey + (images - grey) * saturation
    images = (images - 0.5) * uniform(0.6, 1.4, 1, 1, 1) + 0.5 + uniform(-0.15, 0.15, 1, 1, 1)
    return normalize(images.clamp(0, 1))


def _on_coloured_ground(images: Tensor, colour: Tensor, chosen: Tensor) -> Tensor:
    white = images.amin(1, keepdim=True) > 0.97
    return torch.where(white & chosen, colour, images)
