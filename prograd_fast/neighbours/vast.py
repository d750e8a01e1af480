"""Affine-shift networks for pictures and clips, after VAST.

Bulat, Martinez, Tzimiropoulos, "Efficient Attention-free Video Shift Transformers" (arXiv:2208.11108): attention is
replaced by a shift of channel groups, a scale and a bias. The authors have published no code, and the form of the scale
and of the bias could not be read: they are partly ours, as the docstrings say. The shift is
`prograd_fast.functional.affine_shift`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from prograd_fast.ops.affine_shift import affine_shift


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, *positions)."""

    def forward(self, x: Tensor) -> Tensor:
        """To the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class PointwiseLinear(nn.Linear):
    """A linear layer on the channels of a map (B, C, *positions)."""

    def forward(self, x: Tensor) -> Tensor:
        """To (B, out, *positions)."""
        y = self.weight @ x.flatten(2)
        return (y if self.bias is None else y + self.bias[:, None]).unflatten(2, x.shape[2:])


class AffineShift(nn.Module):
    """The mixing of neighbours: v = linear(x), then scale·shift(v) + bias, then a second linear layer.

    1/div of the channels moves to each side of each axis. Ours: the scale is 2·sigmoid(mlp(mean of v over the
    positions)), one number per channel that is 1 at the start, and the bias is a depthwise 3x3 convolution of v, frame
    by frame.

    Args:
        width: C.
        axes: of positions: 2 for pictures (H, W), 3 for clips (T, H, W).
        div: (default: 8).
        shifted_axes: along which channels move, of 1 ... axes; None (default) for all. The others keep their channels.

    Raises:
        ValueError: an axis does not exist, div is below 1, or C/div channels for each side are more than there are.
    """

    def __init__(self, width: int, axes: int, div: int = 8, shifted_axes: tuple[int, ...] | None = None) -> None:
        super().__init__()
        chosen = tuple(range(1, axes + 1)) if shifted_axes is None else shifted_axes
        if div < 1:
            raise ValueError(f"div: expected 1 or more, got {div}.")
        if axes not in (2, 3) or any(not 1 <= axis <= axes for axis in chosen):
            raise ValueError(f"axes: expected 2 or 3, and shifted_axes among 1 ... axes, got {axes} and {chosen}.")
        sides = [sign * axis for axis in chosen for sign in (1, -1)]
        rest = width - len(sides) * (width // div)
        if rest < 0:
            raise ValueError(f"div: expected {len(sides)} or more for shifts along {chosen}, got {div}.")
        self.groups, self.directions = [width // div] * len(sides) + [rest], [*sides, 0]
        self.value, self.output = PointwiseLinear(width, width), PointwiseLinear(width, width)
        hidden = max(1, width // 4)
        last = nn.Linear(hidden, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.scale = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)
        self.bias: nn.Module = nn.Conv2d(width, width, 3, padding=1, groups=width)
        if axes == 3:
            self.bias = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1), groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *positions) to the same shape."""
        v = self.value(x)
        scale = 2 * self.scale(v.flatten(2).mean(2)).sigmoid()
        mixed: Tensor = self.output(affine_shift(v, scale, self.bias(v), self.groups, self.directions))
        return mixed


class AffineShiftBlock(nn.Module):
    """x += affine_shift(norm(x)); x += mlp(norm(x)).

    Args:
        width: C.
        axes: see `AffineShift`.
        div: see `AffineShift`.
        shifted_axes: see `AffineShift`.
        mlp_ratio: hidden channels over C (default: 4).
    """

    def __init__(
        self,
        width: int,
        axes: int,
        div: int = 8,
        shifted_axes: tuple[int, ...] | None = None,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.shift = AffineShift(width, axes, div, shifted_axes)
        hidden = int(width * mlp_ratio)
        self.fc1, self.fc2 = PointwiseLinear(width, hidden), PointwiseLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *positions) to the same shape."""
        x = x + self.shift(self.norm1(x))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return y


class AffineShiftNet(nn.Module):
    """Square patches, blocks, norm, mean over the positions, a linear layer: a plain network of this block, ours.

    Args:
        classes: number of logits.
        axes: 2 for pictures (B, 3, H, W), 3 for clips (B, 3, T, H, W); patches are within a frame.
        width: C (default: 192).
        depth: blocks (default: 12).
        patch: side of a patch in pixels (default: 16).
        div: see `AffineShift`.
        shifted_axes: see `AffineShift`.
    """

    def __init__(
        self,
        classes: int,
        axes: int = 2,
        width: int = 192,
        depth: int = 12,
        patch: int = 16,
        div: int = 8,
        shifted_axes: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.axes, self.patch = axes, patch
        self.embed = PointwiseLinear(3 * patch * patch, width)
        self.blocks = nn.Sequential(*(AffineShiftBlock(width, axes, div, shifted_axes) for _ in range(depth)))
        self.norm = ChannelNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures or clips to logits (B, classes).

        Raises:
            ValueError: the input has another number of axes, or its size is no multiple of the patch.
        """
        if x.dim() != self.axes + 2 or x.shape[1] != 3 or any(side % self.patch for side in x.shape[-2:]):
            positions = "T, H, W" if self.axes == 3 else "H, W"
            raise ValueError(
                f"x: expected (B, 3, {positions}), H and W multiples of {self.patch}, got {tuple(x.shape)}."
            )
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(self._patches(x)))).flatten(2).mean(2))
        return logits

    def _patches(self, x: Tensor) -> Tensor:
        """(B, 3, ..., H, W) to (B, 3·patch², ..., H/patch, W/patch)."""
        cut = x.unflatten(-1, (-1, self.patch)).unflatten(-3, (-1, self.patch))  # ..., H', patch, W', patch
        cut = cut.movedim((-3, -1), (2, 3))
        return cut.flatten(1, 3)
