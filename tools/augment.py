"""Random views of a drawing: tinted, moved, turned, mirrored, recoloured, on a coloured ground."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.clip.emoji_lite import IMAGE_SIZE, normalize


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """One random view of each picture, uint8 (B, 3, 64, 64) to float32 (B, 3, 128, 128), normalised for the tower."""
    batch = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    images = pictures.float() / 255
    ink, ground = uniform(0, 0.6, 3, 1, 1), uniform(0.6, 1, 3, 1, 1)
    tinted = _tinted(images, ink, ground, uniform(0, 1, 1, 1, 1) < 0.15)
    images = torch.where(_colourless(images) & (uniform(0, 1, 1, 1, 1) < 0.5), tinted, images)
    images = _on_coloured_ground(images, uniform(0.5, 1, 3, 1, 1), uniform(0, 1, 1, 1, 1) < 0.3)

    angle, scale = uniform(-0.3, 0.3), uniform(0.75, 1.35)  # radians; a scale above 1 shrinks the drawing
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) * uniform(0.87, 1.15)  # and squeezes or widens it
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


def _colourless(images: Tensor) -> Tensor:
    return (images - images.mean(1, keepdim=True)).abs().amax((1, 2, 3), keepdim=True) < 0.02


def _tinted(images: Tensor, ink: Tensor, ground: Tensor, negative: Tensor) -> Tensor:
    """A dark drawing on white with another ink, on another ground; where `negative`, light on dark."""
    dark, light = torch.where(negative, ground, ink), torch.where(negative, ink, ground)
    return dark + (light - dark) * images.mean(1, keepdim=True)


def _on_coloured_ground(images: Tensor, colour: Tensor, chosen: Tensor) -> Tensor:
    white = images.amin(1, keepdim=True) > 0.97
    return torch.where(white & chosen, colour, images)
