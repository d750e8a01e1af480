"""AU-ViT: expression recognition that learns from the action units of other pictures.

Mao et al., AU-Aware Vision Transformers for Biased Facial Expression Recognition (arXiv:2211.06609);
`msy1412/AU-ViT` at f2bccd8, models/IR_RVT_AU_plus_patch.py. A convolutional trunk makes a map of 14 by 14 tokens. After
a first stage of transformer blocks, patches of the map tell action units; after a second, the mean of the tokens tells
the expression. Each half of a batch has labels for one of the heads only.

The authors train CE + ρ·BCE. With the projection there is no ρ; the action units' head has no expression gradient and
would never move, so it has an optimizer of its own:

    heads = torch.optim.AdamW(model.au_head.parameters())
    opt = prograd_fast.ProGradAdamW([p for n, p in model.named_parameters() if not n.startswith("au_head.")])
    ce, au = two_head_losses(*model(pictures), labels, units)
    au.backward(inputs=list(model.au_head.parameters()), retain_graph=True)
    opt.backward(ce, au)
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prograd_fast.ops.checks import check_labels

SIDE = 14  # of the map that the patches are cut from
N_UNITS = 21
_EPS = 1e-6


class Patch(NamedTuple):
    """A window of the map, and which of the 21 action units are told from it."""

    rows: slice
    columns: slice
    units: tuple[int, ...]


def _patch(rows: tuple[int, int], columns: tuple[int, int], units: tuple[int, ...]) -> Patch:
    return Patch(slice(*rows), slice(*columns), units)


# The authors' patches by their number; they overlap. A unit of two patches, left and right, takes the larger logit.
PATCHES = {
    2: (
        _patch((0, 8), (0, SIDE), tuple(range(7))),  # upper face
        _patch((6, SIDE), (0, SIDE), tuple(range(7, N_UNITS))),
    ),
    7: (
        _patch((0, 7), (0, 7), (0, 1, 3, 5)),  # left eye
        _patch((0, 7), (4, 10), (2,)),  # between the eyes
        _patch((0, 7), (7, SIDE), (0, 1, 3, 5)),  # right eye
        _patch((5, 12), (0, 6), (4,)),  # left cheek
        _patch((4, 10), (4, 10), (6,)),  # nose
        _patch((5, 12), (8, SIDE), (4,)),  # right cheek
        _patch((6, SIDE), (0, SIDE), tuple(range(7, N_UNITS))),  # lower face
    ),
}


class ActionUnitHead(nn.Module):
    """Action units from the means of patches: LayerNorm and Linear of each, the larger logit of left and right.

    Args:
        width: D, channels of the map.
        patches: 2 or 7, the authors' for RAF-DB and AffectNet (default: 7).

    Raises:
        ValueError: another number of patches.
    """

    def __init__(self, width: int, patches: int = 7) -> None:
        super().__init__()
        if patches not in PATCHES:
            raise ValueError(f"patches: expected 2 or 7, got {patches}. Their other variants (1, 3, 5) are not here.")
        self.patches = PATCHES[patches]
        self.norms = nn.ModuleList(nn.LayerNorm(width, _EPS) for _ in self.patches)
        self.heads = nn.ModuleList(nn.Linear(width, len(patch.units)) for patch in self.patches)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Logits (B, 21) of a map (B, D, 14, 14)."""
        told: list[list[Tensor]] = [[] for _ in range(N_UNITS)]
        for patch, norm, head in zip(self.patches, self.norms, self.heads, strict=True):
            logits = head(norm(feature_map[:, :, patch.rows, patch.columns].mean((2, 3))))
            for unit, logit in zip(patch.units, logits.unbind(1), strict=True):
                told[unit].append(logit)
        return torch.stack([torch.stack(logits).amax(0) for logits in told], 1)


class _ConvolutionalMLP(nn.Module):
    """1×1, depthwise 3×3 and 1×1 convolutions on the map of tokens, BatchNorm after each, GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden)
        self.dwconv, self.bn2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.BatchNorm2d(hidden)
        self.fc2, self.bn3 = nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width)

    def forward(self, tokens: Tensor) -> Tensor:
        y = tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        y = F.gelu(self.bn1(self.fc1(y)))
        y = F.gelu(self.bn2(self.dwconv(y)))
        return self.bn3(self.fc2(y)).flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """Pre-norm attention and MLP on (B, 196, D) tokens."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, convolutional: bool) -> None:
        super().__init__()
        hidden = mlp_ratio * width
        self.norm1, self.attn = nn.LayerNorm(width, _EPS), _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = (
            _ConvolutionalMLP(width, hidden)
            if convolutional
            else nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class AUViT(nn.Module):
    """Both heads on one trunk. The defaults are the authors'.

    Args:
        trunk: pictures → (B, width, 14, 14); theirs is an IR-50 face network without its last stage, which makes
            256 channels of 112×112 pixels, and a 3×3 convolution to 512.
        width: D (default: 512).
        n_expressions: classes (default: 7).
        depth: blocks of the first and the second stage (default: (4, 2)).
        heads: of the attention (default: 16).
        mlp_ratio: hidden over outer width of the MLP (default: 4).
        patches: 2 or 7, see `ActionUnitHead` (default: 7).
        convolutional_mlp: depthwise convolutions in the MLP (default: False). The authors' code takes them without a
            word whenever the width is not 512.

    Raises:
        ValueError: the width is no multiple of the heads; or another number of patches.
    """

    def __init__(
        self,
        trunk: nn.Module,
        width: int = 512,
        n_expressions: int = 7,
        depth: tuple[int, int] = (4, 2),
        heads: int = 16,
        mlp_ratio: int = 4,
        patches: int = 7,
        convolutional_mlp: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width: expected a multiple of the {heads} heads, got {width}.")
        self.trunk = trunk
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, SIDE * SIDE, width), std=0.02))
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(width, heads, mlp_ratio, convolutional_mlp) for _ in range(blocks)))
            for blocks in depth
        )
        self.au_head = ActionUnitHead(width, patches)
        self.norm, self.head = nn.LayerNorm(width, _EPS), nn.Linear(width, n_expressions)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the expressions (B, classes) and of the action units (B, 21).

        Raises:
            ValueError: the trunk's map is not (B, width, 14, 14).
        """
        feature_map = self.trunk(pictures)
        expected = (len(pictures), self.position.shape[2], SIDE, SIDE)
        if feature_map.shape != expected:
            raise ValueError(f"trunk: expected a map of shape {expected}, got {tuple(feature_map.shape)}.")
        tokens = self.stages[0](feature_map.flatten(2).transpose(1, 2) + self.position)
        units = self.au_head(tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE)))
        return self.head(self.norm(self.stages[1](tokens).mean(1))), units


def two_head_losses(
    expression_logits: Tensor, unit_logits: Tensor, labels: Tensor, units: Tensor, pos_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the first pictures and binary cross-entropy of the others' action units; one batch of both.

    Args:
        expression_logits: (A + U, classes) of A pictures with an expression, then U with action units.
        unit_logits: (A + U, 21) of the same.
        labels: (A,) integers.
        units: (U, 21), 0 or 1.
        pos_weight: (21,), of a unit that is there; the authors use absent over present of their AU set (default: 1).

    Returns:
        Two 0-d losses, means over pictures, and over pictures and units. The authors' is their sum, the second times ρ
        (1 for RAF-DB, 0.5 for AffectNet).

    Raises:
        TypeError: labels are not integers.
        ValueError: the batch is not made of both parts.
    """
    n = len(labels)
    check_labels(labels, n)
    for name, logits in (("expression_logits", expression_logits), ("unit_logits", unit_logits)):
        if len(logits) != n + len(units) or not n or not len(units):
            raise ValueError(
                f"{name}: expected a row for each of {n} labels and {len(units)} rows of units, both of them above 0, "
                f"got {len(logits)}."
            )
    if units.shape[1:] != unit_logits.shape[1:]:
        raise ValueError(f"units: expected a column for each of {unit_logits.shape[1]}, got {tuple(units.shape)}.")
    return (
        F.cross_entropy(expression_logits[:n], labels),
        F.binary_cross_entropy_with_logits(unit_logits[n:], units.to(unit_logits.dtype), pos_weight=pos_weight),
    )
