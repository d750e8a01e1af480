"""Landmarks from heat maps, exact to a fraction of a pixel.

Bulat, Sanchez and Tzimiropoulos, Subpixel Heatmap Regression for Facial Landmark Localization (BMVC 2021,
arXiv:2111.02360). There is no code of the authors. Their decoder, `prograd_fast.functional.local_soft_argmax`, follows
a third party's reading (landmarker 0.4.1, MIT); σ, τ, the loss weights and the schedule are not known.
`quarter_offset`, `rounded_maps` and `crop_transform` are what users of `1adrianb/face-alignment` (at 608505f, BSD-3)
run today, to compare with.

Points are (x, y) in pixels of the map, and the centre of the first pixel is (0, 0).
"""

import torch
from torch import Tensor

from prograd_fast.ops.checks import check_floating, check_positive

# ---- encoding


def heatmap_loss(maps: Tensor, points: Tensor, sigma: float) -> Tensor:
    """Mean squared error against Gaussians at the unrounded points; the target maps are never stored.

        g(i, j) = exp(-((i - y)² + (j - x)²) / (2σ²)) = u(i)·v(j),   loss = mean (h - u vᵀ)²

    Args:
        maps: h, (B, N, H, W), of N landmarks.
        points: (B, N, 2); fixed.
        sigma: σ > 0, pixels.

    Returns:
        0-d, NaN without maps, as torch's mean of nothing; one tensor of the maps' size is kept for the backward.

    Raises:
        TypeError: the maps are not floating point.
        ValueError: shapes do not fit, or σ is not above 0.
    """
    _check_maps(maps)
    if points.shape != (*maps.shape[:2], 2):
        raise ValueError(f"points: expected shape {(*maps.shape[:2], 2)}, got {tuple(points.shape)}.")
    v, u = _gaussians(points, maps, sigma)
    residual = torch.baddbmm(maps.flatten(0, 1), u.flatten(0, 1).unsqueeze(2), v.flatten(0, 1).unsqueeze(1), alpha=-1)
    return residual.square().mean()


def gaussian_maps(points: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """The target maps themselves, (B, N, H, W); see `heatmap_loss`, which does not need them.

    Args:
        points: (B, N, 2).
        size: H, W.
        sigma: σ > 0, pixels.
    """
    v, u = _gaussians(points, points.new_empty(1, 1, *size), sigma)
    return u.unsqueeze(3) * v.unsqueeze(2)


def _gaussians(points: Tensor, maps: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The factors along x (B, N, W) and along y (B, N, H)."""
    check_positive("sigma", sigma)
    height, width = maps.shape[2:]
    sides = (torch.arange(side, device=maps.device, dtype=maps.dtype) for side in (width, height))
    x, y = ((side - p[..., None]).square() for side, p in zip(sides, points.to(maps.dtype).unbind(2), strict=True))
    return (x / (-2 * sigma**2)).exp(), (y / (-2 * sigma**2)).exp()


# ---- decoding


def integer_argmax(maps: Tensor) -> Tensor:
    """The pixel of the largest value, (B, N, 2) in the maps' dtype; the first of several."""
    return torch.stack(_peaks(maps)[::-1], 2).to(maps.dtype)


def log_parabola(maps: Tensor) -> Tensor:
    """The vertex of the parabola through the logarithms of the largest value and its neighbours, in x and in y.

    Exact for a clean Gaussian of any σ and height, since its logarithm is a parabola; the other decoders are not. A
    direction where a neighbour is missing or not above 0 keeps the pixel's centre. At most half a pixel from it.

    Args:
        maps: (B, N, H, W).

    Returns:
        (B, N, 2), in the maps' dtype.

    Raises:
        TypeError: the maps are not floating point.
        ValueError: their shape is another.
    """
    row, column = _peaks(maps)
    tiny = torch.finfo(maps.dtype).tiny
    moves = []
    for before, here, after in _neighbours(maps, row, column):
        known = (before > tiny) & (after > tiny) & (here > tiny)
        low, middle, high = (h.where(known, 1.0).log() for h in (before, here, after))
        bend = 2 * middle - low - high  # 0 for a plateau
        moves.append(((high - low) / 2 / bend.where(bend > 0, 1.0)).clamp(-0.5, 0.5))
    return torch.stack([column + moves[0], row + moves[1]], 2)


def quarter_offset(maps: Tensor) -> Tensor:
    """A quarter of a pixel from the largest value towards its larger neighbour, in x and in y; no move at the border.

    So decodes face-alignment, whose result is this plus (½, ½), and only for 64×64 maps.

    Args:
        maps: (B, N, H, W).

    Returns:
        (B, N, 2), in the maps' dtype.

    Raises:
        TypeError: the maps are not floating point.
        ValueError: their shape is another.
    """
    row, column = _peaks(maps)
    height, width = maps.shape[2:]
    inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    x, y = (((after - before).sign() * 0.25).where(inner, 0.0) for before, _, after in _neighbours(maps, row, column))
    return torch.stack([column + x, row + y], 2)


def _peaks(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of the largest value, (B, N) int64."""
    _check_maps(maps)
    place = maps.detach().flatten(2).argmax(2)
    return place // maps.shape[3], place % maps.shape[3]


def _neighbours(maps: Tensor, row: Tensor, column: Tensor) -> list[list[Tensor]]:
    """For x and for y: the values before the peak, on it and behind it; 0 outside of the map."""
    found = []
    for dx, dy in ((1, 0), (0, 1)):
        values = []
        for step in (-1, 0, 1):
            r, c = row + step * dy, column + step * dx
            inside = (r >= 0) & (r < maps.shape[2]) & (c >= 0) & (c < maps.shape[3])
            place = (r * maps.shape[3] + c).where(inside, 0)
            values.append(maps.flatten(2).gather(2, place[..., None])[..., 0].where(inside, 0.0))
        found.append(values)
    return found


def _check_maps(maps: Tensor) -> None:
    check_floating("maps", maps)
    if maps.dim() != 4 or not maps.shape[2] or not maps.shape[3]:
        raise ValueError(f"maps: expected shape (batch, landmarks, height, width), got {tuple(maps.shape)}.")


# ---- two views of a picture


def siamese_loss(points: Tensor, others: Tensor, maps_to: Tensor, maps_others_to: Tensor) -> Tensor:
    """Mean squared distance, in pixels of the picture, of points that two transformed copies of it give.

    The paper adds it to the heat-map loss of both copies; its weight is not known.

    Args:
        points: (B, N, 2) decoded in the first copy.
        others: (B, N, 2) decoded in the second copy.
        maps_to: (B, 2, 3), from the picture to the first copy: p' = A p + t.
        maps_others_to: the same of the second copy.

    Returns:
        0-d; both copies get gradients.

    Raises:
        ValueError: the shapes do not fit.
    """
    shapes = [tuple(x.shape) for x in (points, others, maps_to, maps_others_to)]
    if points.dim() != 3 or shapes[0] != shapes[1] or shapes[2:] != [(len(points), 2, 3)] * 2:
        raise ValueError(f"expected two (B, N, 2) and two (B, 2, 3), got {', '.join(map(str, shapes))}.")
    back = []
    for p, matrix in ((points, maps_to), (others, maps_others_to)):
        back.append(torch.linalg.solve(matrix[:, :, :2], (p - matrix[:, None, :, 2]).transpose(1, 2)))
    return (back[0] - back[1]).square().sum(1).mean()


# ---- face-alignment's own


def rounded_maps(points: Tensor, side: int = 64) -> Tensor:
    """The target maps of face-alignment: Gaussians of σ 3.25 on 13×13 pixels at whole 1-based points, added, at most 1.

    σ is 3.25 whatever its function is told. Left of or above the seventh pixel the Gaussian is moved by 1 or 2 pixels,
    as there; a landmark in such a place is learned where it is not.

    Args:
        points: (B, K, 2) int64, 1-based x and y; K points of one map.
        side: of the map (default: 64).

    Returns:
        (B, side, side) float32.

    Raises:
        TypeError: the points are not whole.
    """
    if points.is_floating_point():
        raise TypeError(f"points: expected integers, as face-alignment rounds them, got {points.dtype}.")
    first = points - 6
    shift = (-first).clamp(min=1) - first.clamp(min=1)
    pixels = torch.arange(1, side + 1, device=points.device)
    inside = (pixels >= first[..., None]) & (pixels <= points[..., None] + 6)
    reached = ((first <= side) & (points + 6 >= 1)).all(2)[..., None, None]
    v = (((pixels + shift[..., None] - 7).double() / 3.25).square() / -2).exp() * inside
    return (v[:, :, 1, :, None] * v[:, :, 0, None, :] * reached).float().sum(1).clamp(max=1)


def crop_transform(
    points: Tensor, centre: Tensor, scale: float, side: int = 64, *, back: bool = True, whole: bool = True
) -> Tensor:
    """Between a map and the picture that its crop was cut from, as face-alignment: h = 200·scale pixels wide.

        picture = (map - side/2)·h/side + centre

    Args:
        points: (..., 2), in the frame where the centre of the first pixel is (½, ½).
        centre: (2,) of the crop, pixels of the picture.
        scale: the crop's width over 200 pixels.
        side: of the map (default: 64).
        back: from the map to the picture (default: True), or the other way.
        whole: cut the result to whole numbers, as they do, which loses up to a pixel (default: True).

    Returns:
        As `points`.

    Raises:
        ValueError: the scale is not above 0.
    """
    check_positive("scale", scale)
    pixels = 200.0 * scale / side
    there = (points - side / 2) * pixels + centre if back else (points - centre) / pixels + side / 2
    return there.trunc() if whole else there
