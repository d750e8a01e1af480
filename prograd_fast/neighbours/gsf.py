"""GSF, gate-shift-fuse: a module that lets a 2-D network see motion.

Sudhakaran, Escalera, Lanz, "Gate-Shift-Fuse for Video Action Recognition" (arXiv:2203.08897). Channels are split by a
learned gate: what is let through moves to the next or the previous frame, the rest stays, and learned weights fuse the
two. Parameters have the names of the authors' `gsf.py`, so that their weights load.
"""

import torch
from torch import Tensor, nn

from prograd_fast.ops.gate_shift_fuse import gate_shift_fuse

CONVOLUTIONS = ("conv1", "conv2", "conv3")  # of a residual block, in order


class GSF(nn.Module):
    """Gate, shift and fuse the first channels of every frame; the others pass.

    With v (B, f, T, H, W) the f channels, in two groups of f/2 channels u each, one moved to each side in time:

        gate_k = tanh(conv3x3x3_k(relu(batch_norm(v))))      y = shift(gate_k·u)      r = u - gate_k·u
        φ = sigmoid(conv3x3_k([mean_hw y, mean_hw r]))       over channels and time
        out = φ·y + (1 - φ)·r                                channels (2, f/4) interleaved to (f/4, 2)

    The first group takes y from the next frame, the second from the previous one, and zero outside of the clip.

    Args:
        channels: C of the input.
        frames: T of a clip; frames of one clip are adjacent in the batch.
        ratio: per cent of the channels that are used (default: 100, the authors'), rounded down, then up to an even f.

    Raises:
        ValueError: f is not divisible by 4, where the authors' code fails at the first input, or a size is wrong.
    """

    def __init__(self, channels: int, frames: int, ratio: int = 100) -> None:
        super().__init__()
        if frames < 1 or not 0 < ratio <= 100:
            raise ValueError(f"frames, ratio: expected frames above 0 and a ratio of 1 ... 100, got {frames}, {ratio}.")
        used = channels * ratio // 100
        used += used % 2
        if used == 0 or used % 4:
            raise ValueError(
                f"ratio: expected a number of used channels that 4 divides, got {used} of {channels} at {ratio} %. "
                "Choose a ratio that gives a multiple of 4."
            )
        self.channels, self.frames, self.used = channels, frames, used
        self.bn = nn.BatchNorm3d(used)
        self.conv3D = nn.Conv3d(used, 2, 3, padding=1, groups=2)
        self.channel_conv1 = nn.Conv2d(2, 1, 3, padding=1)
        self.channel_conv2 = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B·T, C, H, W) to the same shape.

        Raises:
            ValueError: it is no map of frames, the batch no whole number of clips, or the channels are others.
        """
        n, c = x.shape[:2]
        if x.dim() != 4 or n % self.frames or c != self.channels:
            raise ValueError(
                f"x: expected (clips·{self.frames} frames, {self.channels} channels, H, W), got {tuple(x.shape)}."
            )
        clips = x.unflatten(0, (-1, self.frames))
        gate = self.conv3D(self.bn(clips[:, :, : self.used].transpose(1, 2)).relu()).tanh()
        convolutions = self.channel_conv1, self.channel_conv2
        weight, bias = (torch.cat([getattr(c, name) for c in convolutions]) for name in ("weight", "bias"))
        return gate_shift_fuse(clips, gate, weight, bias, self.used).flatten(0, 1)


class Clips(nn.Module):
    """An image network on clips: every frame by itself, then the mean of the frames' logits.

    Args:
        network: takes (B·T, C, H, W), frames of one clip adjacent.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Tensor:
        """(B, T, C, H, W) to logits (B, classes); ValueError for another number of dimensions."""
        if clips.dim() != 5:
            raise ValueError(f"clips: expected (B, T, C, H, W), got {tuple(clips.shape)}.")
        logits: Tensor = self.network(clips.flatten(0, 1))
        return logits.unflatten(0, clips.shape[:2]).mean(1)


def insert_gsf(resnet: nn.Module, frames: int, ratio: int = 100) -> Clips:
    """Put a GSF behind the last convolution of every residual block, before its norm, as the authors do.

    Works for ResNets of torchvision and timm; changes the network. They do it for blocks with three convolutions; for
    blocks with two it is our choice.

    Args:
        resnet: has blocks with `conv3`, or `conv1` and `conv2`, that are convolutions.
        frames: T of a clip.
        ratio: see `GSF`.

    Returns:
        The network for clips (B, T, C, H, W).

    Raises:
        ValueError: there is no such block, or a width does not fit.
    """
    blocks = []
    for block in resnet.modules():
        convolutions = [name for name in CONVOLUTIONS if isinstance(getattr(block, name, None), nn.Conv2d)]
        if len(convolutions) >= 2:
            blocks.append((block, convolutions[-1]))
    if not blocks:
        raise ValueError(f"resnet: expected blocks with conv2 or conv3, got a {type(resnet).__name__} without.")
    for block, name in blocks:
        convolution = getattr(block, name)
        setattr(block, name, nn.Sequential(convolution, GSF(convolution.out_channels, frames, ratio)))
    return Clips(resnet)
