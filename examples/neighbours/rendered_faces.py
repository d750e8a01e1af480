"""Cartoon faces with 33 known landmarks: pose, expression, colours and an occluding emoji are drawn at random."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from prograd_fast.data import load_embedded

SIDE, FINER = 64, 3  # pixels of a picture; it is drawn so many times finer
N_LANDMARKS = 33  # 9 of the jaw, 2·3 of the brows, 2·4 of the eyes, 4 of the nose, 6 of the mouth
OUTER_CORNERS = (15, 19)  # of the eyes; their distance is the size of a face
Pair = tuple[float, float]


def landmarks(rng: np.random.Generator) -> np.ndarray:
    """(33, 2) pixels of one face; the centre of the first pixel is (0, 0)."""
    width, chin, smile, half = (rng.uniform(*r) for r in ((0.72, 0.92), (0.9, 1.1), (-0.15, 0.15), (0.24, 0.42)))
    gape, raised, lid = (rng.uniform(*r) for r in ((0.02, 0.28), (-0.1, 0.1), (0.05, 0.15)))
    points = [(width * math.cos(a), chin * math.sin(a), 0.0) for a in np.linspace(0.97, 0.03, 9) * math.pi]
    for side in (-1, 1):
        brow = ((0.6, 0.04), (0.38, -0.06), (0.16, 0.02))
        tilt = rng.uniform(-0.1, 0.1)
        points += [(side * x, -0.5 - raised + bend + tilt * (x - 0.38), 0.5) for x, bend in brow]
    for side in (-1, 1):  # outer corner, upper lid, inner corner, lower lid
        points += [(side * x, -0.22 + dy * lid, 0.45) for x, dy in ((0.54, 0), (0.36, -1), (0.18, 0), (0.36, 1))]
    points += [(0, -0.15, 0.6), (0, 0.15, 0.95), (-0.14, 0.22, 0.65), (0.14, 0.22, 0.65)]
    top, bottom, corner = 0.47 - gape / 4, 0.52 + gape, 0.52 - smile
    points += [(-half, corner, 0.45), (0, top, 0.65), (half, corner, 0.45), (0, bottom, 0.6)]
    points += [(-half / 2, (bottom + corner) / 2 + 0.03, 0.55), (half / 2, (bottom + corner) / 2 + 0.03, 0.55)]
    x, y, depth = np.array(points).T
    yaw, pitch, roll = (rng.uniform(-r, r) for r in (0.35, 0.2, 0.6))
    x, y = x * math.cos(yaw) + depth * math.sin(yaw), y * math.cos(pitch) + depth * math.sin(pitch)
    scale, cos, sin = SIDE * rng.uniform(0.3, 0.4), math.cos(roll), math.sin(roll)
    return np.stack([cos * x - sin * y, sin * x + cos * y], 1) * scale + SIDE / 2 + rng.uniform(-4, 4, 2)


def picture(points: np.ndarray, rng: np.random.Generator, cover: Image.Image | None = None) -> Image.Image:
    """The face that has these landmarks, with some thing of 64 by 64 pixels on white in front of it."""
    image = Image.new("RGB", (SIDE * FINER, SIDE * FINER), tuple(rng.integers(120, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    at = [(float(x), float(y)) for x, y in (points + 0.5) * FINER]
    skin, ink, lips, iris = (tuple(rng.integers(low, high).tolist()) for low, high in COLOURS)
    jaw, brows, eyes, nose, mouth = at[:9], at[9:15], at[15:23], at[23:27], at[27:33]
    draw.polygon(jaw + _crown(jaw), fill=skin, outline=ink)
    for i in (0, 3):
        draw.line(brows[i : i + 3], fill=ink, width=2 * FINER, joint="curve")
    for i in (0, 4):
        lid = eyes[i : i + 4]
        draw.polygon(lid, fill="white", outline=ink)
        (x, y), r = np.mean(lid, axis=0), 1.1 * FINER
        draw.ellipse((x - r, y - r, x + r, y + r), fill=iris)
    draw.line([nose[0], nose[1], nose[2]], fill=ink, width=FINER)
    draw.line([nose[2], nose[3]], fill=ink, width=FINER)
    draw.polygon([mouth[0], mouth[1], mouth[2], mouth[5], mouth[3], mouth[4]], fill=lips, outline=ink)
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    if cover is not None:
        side = int(rng.integers(18, 32))
        small = cover.resize((side, side))
        mask = Image.fromarray(((np.asarray(small).min(2) < 245) * 255).astype(np.uint8))
        x, y = (points[rng.integers(len(points))] - side / 2).astype(int).tolist()
        image.paste(small, (x, y), mask)
    return image


# from, and up to: skin, lines, lips, iris
COLOURS = (
    ((170, 120, 70), (255, 220, 180)),
    ((10, 10, 10), (80, 60, 50)),
    ((150, 30, 40), (220, 90, 110)),
    ((0, 0, 0), (90, 90, 120)),
)


def _crown(jaw: Sequence[Pair]) -> list[Pair]:
    """The upper half of the head, from the jaw's last point back to its first."""
    first, last, chin = (np.array(jaw[i]) for i in (0, -1, 4))
    centre, angles = (first + last) / 2, np.linspace(0, math.pi, 16)[1:-1, None]
    curve = centre + np.cos(angles) * (last - first) / 2 - np.sin(angles) * (chin - centre) * 0.95
    return [(float(x), float(y)) for x, y in curve]


def render(count: int, seed: int, occluded: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (count, 3, 64, 64) in 0 ... 1, landmarks (count, 33, 2), and the faces' sizes (count,)."""
    rng, emoji = np.random.default_rng(seed), load_embedded("emoji")
    points = np.stack([landmarks(rng) for _ in range(count)])
    covers = [emoji.open(int(rng.integers(len(emoji)))) if rng.random() < occluded else None for _ in range(count)]
    drawn = [np.asarray(picture(p, rng, cover)) for p, cover in zip(points, covers, strict=True)]
    pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2) / 255
    targets = torch.from_numpy(points).float()
    return pictures, targets, (targets[:, OUTER_CORNERS[0]] - targets[:, OUTER_CORNERS[1]]).norm(dim=1)
