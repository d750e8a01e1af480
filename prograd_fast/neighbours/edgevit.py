"""EdgeViT, a small vision transformer: local aggregation, attention among samples, local propagation.

Pan et al., "EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers" (arXiv:2205.03436).
Parameters have the names of the authors' `edgevit.py`, so that their weights load. It is trained as any network, from
scratch or by distillation; `examples/neighbours/edgevit.py` makes the teacher's gradient a constraint.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CONFIGURATIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {  # depths, widths, columns of a head
    "XXS": ((1, 1, 3, 2), (36, 72, 144, 288), 36),
    "XS": ((1, 1, 3, 1), (48, 96, 240, 384), 48),
    "S": ((1, 2, 5, 3), (48, 96, 240, 384), 48),
}
STRIDES, RATES = (4, 2, 2, 2), (4, 2, 2, 1)  # of the four stages


class Mlp(nn.Module):
    """Linear, GELU, linear; on tokens, or as 1x1 convolutions on a map."""

    def __init__(self, width: int, hidden: int, convolutional: bool = False) -> None:
        super().__init__()
        if convolutional:
            self.fc1: nn.Module = nn.Conv2d(width, hidden, 1)
            self.fc2: nn.Module = nn.Conv2d(hidden, width, 1)
        else:
            self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """To the same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class LocalAggregation(nn.Module):
    """Convolutions that bring each neighbourhood together, on a map x (B, C, H, W).

        x += dw3x3(x);  x += 1x1(dw5x5(1x1(bn(x))));  x += mlp(bn(x))

    Args:
        width: C.
        mlp_ratio: hidden channels over C.
    """

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = Mlp(width, int(width * mlp_ratio), convolutional=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class SparseAttention(nn.Module):
    """Attention among the top left token of each r x r cell, whose results are given back to all of the cell.

    Args:
        width: C.
        heads: which divide C.
        rate: r; 1 for plain attention.
    """

    def __init__(self, width: int, heads: int, rate: int) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        if rate > 1:
            self.LocalProp = nn.ConvTranspose2d(width, width, rate, rate, groups=width)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape.

        Raises:
            ValueError: r does not divide H and W.
        """
        _, h, w, _ = x.shape
        if h % self.rate or w % self.rate:
            raise ValueError(f"x: expected height and width divisible by {self.rate}, got {h} and {w}. Resize or pad.")
        sampled = x[:, :: self.rate, :: self.rate]
        q, k, v = self.qkv(sampled.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(sampled.shape)
        if self.rate > 1:
            y = self.norm(self.LocalProp(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        out: Tensor = self.proj(y)
        return out


class GlobalAttention(nn.Module):
    """Attention with its position and its MLP, on a map x (B, C, H, W).

        x += dw3x3(x);  x += attention(norm(x));  x += mlp(norm(x))

    Args:
        width: C.
        heads: which divide C.
        mlp_ratio: hidden channels over C.
        rate: see `SparseAttention`.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, rate: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = SparseAttention(width, heads, rate)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        tokens = (x + self.pos_embed(x)).permute(0, 2, 3, 1)
        tokens = tokens + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.permute(0, 3, 1, 2)


class LGLBlock(nn.Module):
    """Local, global, local: `LocalAggregation`, if the rate is above 1, then `GlobalAttention`.

    Args:
        width: C.
        heads: which divide C.
        mlp_ratio: hidden channels over C (default: 4).
        rate: r, of sampling (default: 1).

    Raises:
        ValueError: the heads do not divide the width, or the rate is below 1.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, rate: int = 1) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}.")
        if rate < 1:
            raise ValueError(f"rate: expected 1 or more, got {rate}.")
        self.LocalAgg = LocalAggregation(width, mlp_ratio) if rate > 1 else nn.Identity()
        self.SelfAttn = GlobalAttention(width, heads, mlp_ratio, rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y: Tensor = self.SelfAttn(self.LocalAgg(x))
        return y


class PatchEmbedding(nn.Module):
    """Square patches to channels, and their norm."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(channels, width, stride, stride), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width, H/stride, W/stride)."""
        y: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class EdgeViT(nn.Module):
    """Four stages of blocks, each behind a patch embedding, then batch norm, mean over the map, and a linear layer.

    Pictures of any size that is divisible by 32 fit; the authors' code takes 224 pixels alone.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        head_width: columns of an attention head; it divides the widths. The authors' default of 64 divides none of
            theirs, so there is none here.
        classes: number of logits (default: 1000).
        mlp_ratio: hidden channels over the width (default: 4).

    Raises:
        ValueError: `head_width` does not divide a width, or the stages are not four.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        head_width: int,
        classes: int = 1000,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or len(widths) != 4:
            raise ValueError(f"depths, widths: expected four stages, got {len(depths)} and {len(widths)}.")
        if head_width < 1 or any(width % head_width for width in widths):
            raise ValueError(f"head_width: expected a divisor of the widths {tuple(widths)}, got {head_width}.")
        inputs = [3, *widths]
        for i, (depth, width, stride, rate) in enumerate(zip(depths, widths, STRIDES, RATES, strict=True)):
            setattr(self, f"patch_embed{i + 1}", PatchEmbedding(inputs[i], width, stride))
            blocks = (LGLBlock(width, width // head_width, mlp_ratio, rate) for _ in range(depth))
            setattr(self, f"blocks{i + 1}", nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C): what the last layer is given.

        Raises:
            ValueError: the size of the pictures does not fit.
        """
        if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % 32 or x.shape[3] % 32:
            raise ValueError(f"x: expected pictures (B, 3, H, W), H and W divisible by 32, got {tuple(x.shape)}.")
        for i in range(4):
            x = getattr(self, f"blocks{i + 1}")(getattr(self, f"patch_embed{i + 1}")(x))
        features: Tensor = self.norm(x).mean((2, 3))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, classes)."""
        logits: Tensor = self.head(self.forward_features(x))
        return logits


def edgevit(name: str, classes: int = 1000) -> EdgeViT:
    """An EdgeViT of the paper, with random weights.

    Args:
        name: "XXS" (4.07 M parameters with 1000 classes), "XS" (6.77 M) or "S" (13.11 M).
        classes: number of logits (default: 1000).

    Raises:
        ValueError: there is none of that name.
    """
    if name not in CONFIGURATIONS:
        raise ValueError(f"name: expected one of {', '.join(CONFIGURATIONS)}, got {name!r}.")
    return EdgeViT(*CONFIGURATIONS[name], classes)
