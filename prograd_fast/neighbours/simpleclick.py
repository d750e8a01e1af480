"""SimpleClick: an object is cut out by clicks, with a plain vision transformer.

Liu et al., SimpleClick: Interactive Image Segmentation with Simple Vision Transformers (arXiv:2210.11006);
`uncbiag/SimpleClick` at f33112e (MIT), built on RITM. The picture, and a map of clicks with the previous mask, have a
patch embedding each; both are added. Blocks attend within windows, every few over the whole picture. A simple pyramid
and head make a logit for each pixel. `functional.normalised_focal_loss` trains it; `simulate_clicks` counts clicks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-6  # of LayerNorm
THRESHOLD = 0.49  # of the probability, above which a pixel is of the object in evaluation


def click_maps(clicks: Tensor, size: tuple[int, int], radius: float = 5.0, *, disk: bool = True) -> Tensor:
    """Maps of the positive and of the negative clicks: 1 where the nearest is at most r away, or tanh(2·distance / r).

    Args:
        clicks: (B, 2P, 2 or more) rows (row, column, ...): P positive, then P negative; a negative row means no click.
        size: height and width.
        radius: r, pixels (default: 5).
        disk: the first of both (default: True, the authors').

    Returns (B, 2, H, W) in the clicks' dtype. ValueError where the clicks are not in two halves.
    """
    if clicks.dim() != 3 or clicks.shape[1] % 2 or clicks.shape[2] < 2:
        raise ValueError(f"clicks: expected shape (batch, 2·clicks, 2 or more), got {tuple(clicks.shape)}.")
    nearest = clicks.new_full((len(clicks), 2, *size), 1e6)
    rows, columns = (torch.arange(side, device=clicks.device, dtype=clicks.dtype) for side in size)
    for click in clicks.unflatten(1, (2, -1)).unbind(2):  # (B, 2, ...): one positive and one negative
        row, column = click[..., 0, None, None], click[..., 1, None, None]
        squared = (rows[:, None] - row).square() + (columns - column).square()
        nearest = torch.minimum(nearest, squared.where((row >= 0) & (column >= 0), 1e6))
    return (nearest <= radius**2).to(clicks.dtype) if disk else (2 * nearest.sqrt() / radius).tanh()


class _Attention(nn.Module):
    """Attention over a grid (B, h, w, D) of tokens; within windows unless `window` is None."""

    def __init__(self, width: int, heads: int, window: int | None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, grid: Tensor) -> Tensor:
        rows, columns = grid.shape[1:3] if self.window is None else (self.window, self.window)
        windows = grid.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3)
        tokens = windows.flatten(3, 4).flatten(0, 2)  # (windows, tokens, D)
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        return out.view(windows.shape).transpose(2, 3).reshape(grid.shape)


class _Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, window: int | None) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, _EPS), _Attention(width, heads, window)
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, grid: Tensor) -> Tensor:
        grid = grid + self.attn(self.norm1(grid))
        return grid + self.mlp(self.norm2(grid))


class PlainViT(nn.Module):
    """Blocks on a grid of tokens: windows, and the whole grid in each (depth/4)-th block, in each 6th of 12 blocks.

    Args:
        width: D.
        depth: blocks; a multiple of 4 above 4.
        heads: of the attention, a divisor of the width.
        grid: tokens a side.
        window: tokens a side of a window, a divisor of the grid (default: 14).
        mlp_ratio: hidden over outer width (default: 4).

    Raises:
        ValueError: depth, heads or window do not fit.
    """

    def __init__(self, width: int, depth: int, heads: int, grid: int, window: int = 14, mlp_ratio: int = 4) -> None:
        super().__init__()
        if depth % 4 or depth <= 4:
            raise ValueError(f"depth: expected a multiple of 4 above 4, got {depth}.")
        if heads < 1 or width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}.")
        if window < 1 or grid % window:
            raise ValueError(f"window: expected a divisor of the {grid} tokens a side, got {window}.")
        whole = 6 if depth == 12 else depth // 4
        # the authors' has an entry for a class token in front, which is never used
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, grid * grid, width), std=0.02))
        self.blocks = nn.Sequential(
            *(_Block(width, heads, mlp_ratio, None if i % whole == 0 else window) for i in range(1, depth + 1))
        )

    def forward(self, picture: Tensor, clicks: Tensor) -> Tensor:
        """Tokens of the picture and of the click map, (B, h·w, D) each → (B, D, h, w)."""
        tokens = picture + clicks + self.position
        side = int(tokens.shape[1] ** 0.5)
        grid: Tensor = self.blocks(tokens.unflatten(1, (side, side)))
        return grid.permute(0, 3, 1, 2)


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 2, 2), nn.GroupNorm(1, outputs)]


def _last(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1), nn.GroupNorm(1, outputs), nn.GELU()]


class SimplePyramid(nn.Module):
    """Maps of `widths` channels at 4, 2, 1 and ½ times the resolution of one map of `width` channels."""

    def __init__(self, width: int, widths: tuple[int, int, int, int] = (128, 256, 512, 1024)) -> None:
        super().__init__()
        a, b, c, d = widths
        middle, half, double = max(2 * a, width // 2), max(b, width // 2), max(d, 2 * width)
        self.levels = nn.ModuleList(
            nn.Sequential(*layers)
            for layers in (
                [*_up(width, middle), nn.GELU(), *_up(middle, middle // 2), *_last(middle // 2, a)],
                [*_up(width, half), *_last(half, b)],
                _last(width, c),
                [nn.Conv2d(width, double, 2, 2), nn.GroupNorm(1, double), *_last(double, d)],
            )
        )

    def forward(self, feature_map: Tensor) -> list[Tensor]:
        """(B, width, h, w) → four maps, the finest first."""
        return [level(feature_map) for level in self.levels]


class MaskHead(nn.Module):
    """One logit for each pixel of the finest map, or of one 2 or 4 times as fine.

    Args:
        widths: channels of the pyramid.
        channels: of the last map; the authors' are 256, 128, 64 for `upsample` 1, 2, 4 (default: 256).
        upsample: 1, 2 or 4 (default: 1).
    """

    def __init__(self, widths: tuple[int, int, int, int], channels: int = 256, upsample: int = 1) -> None:
        super().__init__()
        if upsample not in (1, 2, 4):
            raise ValueError(f"upsample: expected 1, 2 or 4, got {upsample}.")
        inner = channels * upsample
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(width, inner, 1), nn.ReLU()) for width in widths)
        self.fusion = nn.Sequential(nn.Conv2d(4 * inner, inner, 1), nn.ReLU())
        self.finer = nn.Sequential()
        while inner > channels:
            self.finer.extend([*_up(inner, inner // 2), *_last(inner // 2, inner // 2)])
            inner //= 2
        self.dropout, self.logit = nn.Dropout2d(0.1), nn.Conv2d(channels, 1, 1)
        nn.init.normal_(self.logit.weight, std=0.01)
        nn.init.zeros_(self.logit.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps → (B, 1, H, W) logits."""
        mix, bias = self.fusion.parameters()  # 1×1: it may come before the interpolation, where maps are smaller
        parts = zip(self.convs, maps, mix.chunk(len(maps), 1), strict=True)
        alike = (F.interpolate(F.conv2d(conv(m), part), maps[0].shape[2:], mode="bilinear") for conv, m, part in parts)
        logits: Tensor = self.logit(self.dropout(self.finer(sum(alike, bias[:, None, None]).relu())))
        return logits


class SimpleClick(nn.Module):
    """The whole network; the defaults are the authors' ViT-B of 448 pixels.

    Args:
        width, depth, heads, window: of `PlainViT`, whose grid has side / patch tokens a side.
        side: pixels of a square picture.
        patch: pixels of a patch.
        widths: of the pyramid.
        channels, upsample: of the `MaskHead`.
        radius: of a click's disk, pixels.

    Raises:
        ValueError: a size does not fit.
    """

    def __init__(
        self,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        side: int = 448,
        patch: int = 16,
        window: int = 14,
        widths: tuple[int, int, int, int] = (128, 256, 512, 1024),
        channels: int = 256,
        upsample: int = 1,
        radius: float = 5.0,
    ) -> None:
        super().__init__()
        if side % patch:
            raise ValueError(f"patch: expected a divisor of the side {side}, got {patch}.")
        self.side, self.radius = side, radius
        self.embed_picture, self.embed_clicks = (nn.Conv2d(3, width, patch, patch) for _ in range(2))
        self.backbone = PlainViT(width, depth, heads, side // patch, window)
        self.pyramid = SimplePyramid(width, widths)
        self.head = MaskHead(widths, channels, upsample)

    def forward(self, pictures: Tensor, clicks: Tensor, previous: Tensor) -> Tensor:
        """Logits (B, 1, H, W).

        Args:
            pictures: (B, 3, H, W), normalised.
            clicks: (B, 2P, 2 or more), see `click_maps`.
            previous: (B, 1, H, W) probabilities of the mask before; zeros at first.

        ValueError where the shapes are others, or H or W is not the side.
        """
        batch, size = len(pictures), (self.side, self.side)
        shapes = tuple(pictures.shape), len(clicks), tuple(previous.shape)
        wanted = (batch, 3, *size), batch, (batch, 1, *size)
        if shapes != wanted:
            raise ValueError(f"pictures, lists of clicks, previous: expected {wanted}, got {shapes}.")
        maps = torch.cat([previous, click_maps(clicks, size, self.radius).to(previous.dtype)], 1)
        tokens = (x.flatten(2).transpose(1, 2) for x in (self.embed_picture(pictures), self.embed_clicks(maps)))
        return F.interpolate(self.head(self.pyramid(self.backbone(*tokens))), size, mode="bilinear", align_corners=True)


def distance_to_outside(masks: Tensor) -> Tensor:
    """The distance of each pixel of a mask to the nearest that is not of it, or beyond the border.

    (B, H, W) bool → (B, H, W) float32; 0 outside of the mask.
    """
    padded = F.pad(masks, (1, 1, 1, 1))
    rows, columns = (torch.arange(n, device=masks.device, dtype=torch.float32) for n in padded.shape[1:])
    above = (rows[:, None] - padded * 1e6).cummax(1).values  # the last row up to here that is not of the mask
    below = (rows[:, None] + padded * 1e6).flip(1).cummin(1).values.flip(1)
    vertical = torch.minimum(rows[:, None] - above, below - rows[:, None]).square()
    across = (columns[:, None] - columns).square()
    return torch.stack([(m[:, None] + across).amin(2).sqrt()[1:-1, 1:-1] for m in vertical])


def next_clicks(masks: Tensor, truth: Tensor, clicked: Tensor) -> tuple[Tensor, Tensor]:
    """The click that a person would make: in the middle of the largest part that is missing, or too much.

    Args:
        masks: (B, H, W) bool, predicted.
        truth: (B, H, W): 1, 0, or -1 for ignored.
        clicked: (B, H, W) bool, where clicks were made before; there are no further ones.

    Returns:
        (B, 2) int64 row and column, and (B,) bool whether it is positive. The first of several equal places.
    """
    missing, surplus = (distance_to_outside(m) * ~clicked for m in ((truth == 1) & ~masks, (truth == 0) & masks))
    far = torch.stack([surplus.flatten(1).amax(1), missing.flatten(1).amax(1)])
    positive = far[1] > far[0]
    place = missing.where(positive[:, None, None], surplus).flatten(1).argmax(1)
    return torch.stack([place // truth.shape[2], place % truth.shape[2]], 1), positive


@torch.no_grad()
def simulate_clicks(
    predict: Callable[[Tensor, Tensor], Tensor], truth: Tensor, most: int = 20, threshold: float = THRESHOLD
) -> Tensor:
    """The IoU after each click, for each picture.

    Args:
        predict: clicks (B, 2·most, 3) and the previous probabilities (B, 1, H, W) → probabilities (B, 1, H, W).
        truth: (B, H, W): 1, 0, or -1 for ignored.
        most: clicks (default: 20).
        threshold: of the probability (default: 0.49).

    Returns:
        (B, most).

    ValueError where there are no pictures or no clicks.
    """
    if truth.dim() != 3 or not len(truth) or most < 1:
        raise ValueError(f"expected truth (B, H, W), B and clicks above 0, got {tuple(truth.shape)} and {most}.")
    batch = len(truth)
    clicks = torch.full((batch, 2 * most, 3), -1.0, device=truth.device)
    clicked = torch.zeros_like(truth, dtype=torch.bool)
    probabilities = torch.zeros_like(truth, dtype=torch.float32).unsqueeze(1)
    masks, every, ious = torch.zeros_like(clicked), torch.arange(batch, device=truth.device), []
    for k in range(most):
        places, positive = next_clicks(masks, truth, clicked)
        clicked[every, places[:, 0], places[:, 1]] = True
        clicks[every, k + most * (~positive)] = F.pad(places, (0, 1), value=k).float()
        probabilities = predict(clicks, probabilities)
        masks = probabilities[:, 0] > threshold
        inside, counts = truth == 1, truth != -1
        ious.append((masks & inside).sum((1, 2)) / ((masks | inside) & counts).sum((1, 2)).clamp(min=1))
    return torch.stack(ious, 1)


def clicks_needed(ious: Tensor, target: float) -> Tensor:
    """NoC@target of each picture: the clicks until the IoU is reached, or all of them where it never is; (B,)."""
    reached = ious >= target
    return torch.where(reached.any(1), reached.int().argmax(1) + 1, ious.shape[1])
