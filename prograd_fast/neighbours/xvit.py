"""XViT, a video transformer whose keys and values come from three frames at the price of one.

Bulat, Perez-Rua, Sudhakaran, Martinez, Tzimiropoulos, "Space-time Mixing Attention for Video Transformer"
(arXiv:2106.05968). Some channels of the keys and values are those of the next and of the previous frame; the attention
itself stays within a frame. Parameters have the names of the authors' code, so that their weights load.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prograd_fast.ops.affine_shift import affine_shift


def shift_heads(x: Tensor, frames: int, div: int) -> Tensor:
    """Channels of a frame's keys or values from the next and from the previous frame, zero outside of the clip.

    Heads and columns are h·d channels, head by head; the first ⌊h·d/div⌋ come from the next frame, as many from the
    previous one, the rest stays.

    Args:
        x: (B·frames, h, N, d), frames of one clip adjacent.
        frames: of a clip.
        div: the share of the channels, 2 or more.

    Returns:
        As `x`.

    Raises:
        ValueError: the batch is no whole number of clips, or div is below 2.
    """
    if x.dim() != 4 or frames < 1 or len(x) % frames or div < 2:
        got = f"{tuple(x.shape)}, frames {frames} and div {div}"
        raise ValueError(f"x: expected (clips·frames, heads, tokens, columns) and div of 2 or more, got {got}.")
    h, d = x.shape[1], x.shape[3]
    moved = h * d // div
    channels = x.unflatten(0, (-1, frames)).permute(0, 2, 4, 1, 3).flatten(1, 2)  # (B, h·d, frames, N)
    shifted = affine_shift(channels, None, None, (moved, moved, h * d - 2 * moved), (-1, 1, 0))
    return shifted.unflatten(1, (h, d)).permute(0, 3, 1, 4, 2).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention of the tokens of a frame, with keys and values that `shift_heads` has mixed.

    Args:
        width: D.
        heads: h, which divides D.
        frames: of a clip; None (default) for no shift.
        div: see `shift_heads`.
        qkv_bias: whether queries, keys and values have one.
    """

    def __init__(self, width: int, heads: int, frames: int | None = None, div: int = 8, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}.")
        if div < 2:
            raise ValueError(f"div: expected 2 or more, since two parts are moved, got {div}.")
        self.heads, self.frames, self.div = heads, frames, div
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B·T, N, D) to the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.frames is not None:
            k, v = (shift_heads(part, self.frames, self.div) for part in (k, v))
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)).

    Args:
        width: D.
        heads: see `Attention`.
        mlp_ratio: hidden units of the MLP over D.
        eps: of the norms.
        frames: see `Attention`.
        div: see `shift_heads`.
        qkv_bias: see `Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        frames: int | None = None,
        div: int = 8,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads, frames, div, qkv_bias)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B·T, N, D) to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Trunk(nn.Module):
    """A ViT on single frames, joined in time by its shifted keys and values.

    Args:
        tokens: N of a frame, without the class token.
        width: D (default: 768, of ViT-B).
        depth: blocks (default: 12).
        heads: (default: 12).
        frames: T of a clip.
        div: 1/div of the channels comes from each side: 8 (default) for Kinetics, 4 for Something-Something v2.
        segment: frames after which the positions in time begin again and beyond which nothing is shifted. None
            (default): T. The authors' model factory never passes the number of frames on, so that their models have 8
            for every T; give 8 to compute what their longer models do.
        patch: (default: 16) and
        channels: (default: 3) of the pictures; see `embed`.
        mlp_ratio: see `Block`.

    Raises:
        ValueError: `segment` does not divide `frames`.
    """

    def __init__(
        self,
        tokens: int,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        frames: int = 8,
        div: int = 8,
        segment: int | None = None,
        patch: int = 16,
        channels: int = 3,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        segment = frames if segment is None else segment
        if segment < 1 or frames % segment:
            raise ValueError(f"segment: expected a divisor of the {frames} frames, got {segment}.")
        self.frames, self.segment = frames, segment
        self.patch_embed = nn.Conv2d(channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, segment, 1, width))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, mlp_ratio, frames=segment, div=div) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, 1e-6)

    def embed(self, clips: Tensor) -> Tensor:
        """Tokens (B·T, N, D) of clips (B, T, C, H, W): a linear map of square patches.

        Raises:
            ValueError: the clips have another number of frames or of patches.
        """
        tokens: Tensor = self.patch_embed(clips.flatten(0, 1)).flatten(2).transpose(1, 2)
        expected = self.pos_embed.shape[1] - 1
        if clips.shape[1] != self.frames or tokens.shape[1] != expected:
            got = f"{clips.shape[1]} of {tokens.shape[1]}"
            raise ValueError(f"clips: expected {self.frames} frames of {expected} patches, got {got}.")
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Class features (B·T, D) of tokens (B·T, N, D); ValueError for others, or no whole number of clips."""
        n, width = self.pos_embed.shape[1] - 1, self.pos_embed.shape[2]
        if tokens.shape[1:] != (n, width) or len(tokens) % self.frames:
            raise ValueError(f"tokens: expected (clips·{self.frames}, {n}, {width}), got {tuple(tokens.shape)}.")
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        x = (x.unflatten(0, (-1, self.segment)) + self.temp_embed).flatten(0, 1)
        features: Tensor = self.norm(self.blocks(x))[:, 0]
        return features


class TemporalHead(nn.Module):
    """One block over the frames' class features and a token of its own, then an MLP on that token.

    Args:
        width: D.
        classes: number of logits.
        heads: of the block (default: 12).
        hidden: of the MLP (default: 768).
        dropout: before the last layer (default: 0.5).
    """

    def __init__(self, width: int, classes: int, heads: int = 12, hidden: int = 768, dropout: float = 0.5) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.temporal_encoder = nn.Sequential(Block(width, heads, eps=1e-5, qkv_bias=False))
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, classes)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of class features (B, T, D)."""
        x = torch.cat([self.cls_token.expand(len(features), -1, -1), features], 1)
        logits: Tensor = self.mlp_head(self.temporal_encoder(x)[:, 0])
        return logits


class XViT(nn.Module):
    """Trunk and head.

    Args:
        trunk: its `embed` and itself turn clips into class features of the frames.
        head: (B, T, D) to logits.
    """

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, classes) of clips (B, T, C, H, W)."""
        features = self.trunk(self.trunk.embed(clips))
        logits: Tensor = self.head(features.unflatten(0, clips.shape[:2]))
        return logits


def ensemble(logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted mean of several models' probabilities, as for EPIC-Kitchens (arXiv:2110.02902: GSF and XViT).

    The report combines scores of models with different strengths; the weights are ours.

    Args:
        logits: of each model, (B, classes).
        weights: one per model, not negative; None (default) for equal ones.

    Returns:
        Probabilities (B, classes).

    Raises:
        ValueError: there are no models, the weights do not fit, or the models' logits differ in shape.
    """
    if len({tuple(one.shape) for one in logits}) > 1:
        raise ValueError(f"logits: expected one shape, got {', '.join(str(tuple(one.shape)) for one in logits)}.")
    shares = [1.0] * len(logits) if weights is None else list(weights)
    if not logits or len(shares) != len(logits) or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"weights: expected {len(logits)} that are not negative, and one model or more, got {shares}.")
    total = sum(share * one.softmax(-1) for share, one in zip(shares, logits, strict=True))
    return torch.as_tensor(total) / sum(shares)
