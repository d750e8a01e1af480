"""Defensive tensorization: weights as low-rank tensors whose latent ranks are dropped at random.

Bulat, Kossaifi, Bhattacharya, Panagakis, Hospedales, Tzimiropoulos, Lane, Pantic, "Defensive Tensorization"
(arXiv:2110.13859). The paper has no repository; the operator and the names of the parameters are those of the same
authors' `tensorly/torch`. The unbiased scale and the low-rank context are ours.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scale = Literal["unbiased", "authors"]


def _factors(shapes: Sequence[Sequence[int]], std: float) -> nn.ParameterDict:
    return nn.ParameterDict({f"factor_{i}": nn.Parameter(std * torch.randn(*s)) for i, s in enumerate(shapes)})


class Factorization(nn.Module):
    """A tensor W that is stored as factors.

    Attributes:
        shape: of W.
        ranks: the latent ranks that can be dropped.
    """

    shape: tuple[int, ...]
    ranks: tuple[int, ...]

    def contract(self, keep: Sequence[Tensor | None]) -> Tensor:
        """W without the latent components whose mask is 0.

        Args:
            keep: for each of `ranks` a mask of 0 and 1, or None to keep all of it.
        """
        raise NotImplementedError

    def full(self) -> Tensor:
        """W."""
        return self.contract([None] * len(self.ranks))


class Tucker(Factorization):
    """W = G ×₁ U₁ ×₂ U₂ ... with a core G (R₁, R₂, ...) and factors Uₙ (size n, Rₙ).

    Args:
        shape: of W.
        ranks: R₁, R₂, ...
        std: of the elements of W at the start (default: 0.02).
    """

    def __init__(self, shape: Sequence[int], ranks: Sequence[int], std: float = 0.02) -> None:
        super().__init__()
        _check_ranks(ranks, len(shape))
        self.shape, self.ranks = tuple(shape), tuple(ranks)
        part = (std / math.sqrt(math.prod(ranks))) ** (1 / (len(shape) + 1))
        self.core = nn.Parameter(part * torch.randn(*ranks))
        self.factors = _factors(list(zip(shape, ranks, strict=True)), part)

    def contract(self, keep: Sequence[Tensor | None]) -> Tensor:
        """See `Factorization`."""
        w: Tensor = self.core
        for factor, mask in zip(self.factors.values(), keep, strict=True):
            w = torch.tensordot(w, _masked(factor, mask), dims=([0], [1]))  # the new dimension becomes the last
        return w


class CP(Factorization):
    """W = Σ_r λ_r u₁ᵣ ∘ u₂ᵣ ... with weights λ (R,) and factors (size n, R).

    Args:
        shape: of W.
        rank: R.
        std: of the elements of W at the start (default: 0.02).
    """

    def __init__(self, shape: Sequence[int], rank: int, std: float = 0.02) -> None:
        super().__init__()
        _check_ranks([rank], 1)
        self.shape, self.ranks = tuple(shape), (rank,)
        self.weights = nn.Parameter(torch.ones(rank))
        self.factors = _factors([(size, rank) for size in shape], (std / math.sqrt(rank)) ** (1 / len(shape)))

    def contract(self, keep: Sequence[Tensor | None]) -> Tensor:
        """See `Factorization`."""
        w = _masked(self.weights, keep[0]).unsqueeze(0)
        *first, last = self.factors.values()
        for factor in first:
            w = (w.unsqueeze(1) * factor).flatten(0, 1)
        return (w @ last.T).reshape(self.shape)


class TT(Factorization):
    """W[i, j, ...] = G₁[:, i, :] G₂[:, j, :] ..., a tensor train with cores Gₙ (rₙ₋₁, size n, rₙ) and r₀ = r_N = 1.

    Args:
        shape: of W.
        ranks: the N - 1 inner bonds.
        std: of the elements of W at the start (default: 0.02). The authors' start gives it divided by the root of the
            product of the bonds.
    """

    def __init__(self, shape: Sequence[int], ranks: Sequence[int], std: float = 0.02) -> None:
        super().__init__()
        _check_ranks(ranks, len(shape) - 1)
        self.shape, self.ranks = tuple(shape), tuple(ranks)
        part = (std / math.sqrt(math.prod(ranks))) ** (1 / len(shape))
        self.factors = _factors(list(zip([1, *ranks], shape, [*ranks, 1], strict=True)), part)

    def contract(self, keep: Sequence[Tensor | None]) -> Tensor:
        """See `Factorization`."""
        first, *others = self.factors.values()
        w = first[0]
        for core, mask in zip(others, keep, strict=True):
            w = _masked(w, mask) @ core.flatten(1)
            w = w.reshape(-1, core.shape[-1])
        return w.reshape(self.shape)


def _check_ranks(ranks: Sequence[int], count: int) -> None:
    if len(ranks) != count or min(ranks, default=1) < 1:
        raise ValueError(f"ranks: expected {count} of 1 or more, got {list(ranks)}.")


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """A tensor whose last dimension is a latent rank."""
    return x if mask is None else x * mask.to(x.dtype)


class TensorDropout(nn.Module):
    """Masks m ~ Bernoulli(1 - p) over the components of each latent rank: W' = scale·contract(m).

    A rank of `min_dim` or less is not dropped. Where a whole rank would be dropped, one component of it stays, chosen
    at random.

    Args:
        p: share that is dropped, 0 <= p < 1.
        min_dim: largest rank that stays whole (default: 3, the authors').
        scale: "unbiased" (default): (1 - p)^-(number of dropped ranks), so that the mean of W' is W but for the rule
            above; "authors": (1 - p)^-(number of ranks), dropped or not, and no scale in evaluation.
        drop_test: drop in evaluation too, as the defence asks for (default: False).

    Raises:
        ValueError: p is outside of its range.
    """

    def __init__(self, p: float, min_dim: int = 3, scale: Scale = "unbiased", drop_test: bool = False) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: expected 0 <= p < 1, got {p}.")
        if scale not in ("unbiased", "authors"):
            raise ValueError(f"scale: expected 'unbiased' or 'authors', got {scale!r}.")
        self.p, self.min_dim, self.scale, self.drop_test = p, min_dim, scale, drop_test

    def masks(self, tensor: Factorization) -> list[Tensor | None]:
        """Random masks of its ranks; None for a rank that stays whole.

        Raises:
            ValueError: its only rank stays whole, so that nothing would ever be dropped. The authors' code fails there.
        """
        if isinstance(tensor, CP) and tensor.ranks[0] <= self.min_dim:
            raise ValueError(
                f"rank: expected more than min_dim {self.min_dim}, got a CP rank of {tensor.ranks[0]}. Lower min_dim."
            )
        device = next(tensor.parameters()).device
        return [self.mask(rank, device) if rank > self.min_dim else None for rank in tensor.ranks]

    def mask(self, rank: int, device: torch.device) -> Tensor:
        """A random mask (rank,) that is not all False."""
        draws = torch.rand(rank, device=device)
        # the largest draw is kept whatever it is: one component at random where all are below p
        return (draws >= self.p) | (draws == draws.max())

    def forward(self, tensor: Factorization, masks: Sequence[Tensor | None] | None = None) -> Tensor:
        """W with dropped components, of the tensor's shape.

        Args:
            tensor: the factors of W.
            masks: for each rank 0 and 1, or None to keep all of it; default: random ones.

        Raises:
            ValueError: the masks are not those of the ranks; and as `masks`.
        """
        if self.p == 0 or not (self.training or self.drop_test):
            return tensor.full()
        masks = self.masks(tensor) if masks is None else masks
        sizes = [rank if mask is None else len(mask) for mask, rank in zip(masks, tensor.ranks, strict=False)]
        if len(masks) != len(tensor.ranks) or sizes != list(tensor.ranks):
            raise ValueError(f"masks: expected one for each of the ranks {tensor.ranks}, got {len(masks)} of {sizes}.")
        dropped = sum(mask is not None for mask in masks) if self.scale == "unbiased" else len(masks)
        if self.scale == "authors" and not self.training:
            dropped = 0
        return tensor.contract(masks) * (1 - self.p) ** -dropped


class FactorizedLinear(nn.Module):
    """A linear layer whose weight is a factorised tensor, read as (out, in).

    Args:
        weight: of any shape with so many elements, such as (4, 8, 4, 8) for 32 outputs and 32 inputs.
        out_features: outputs.
        dropout: of the weight's ranks; None (default) for none.

    Raises:
        ValueError: the weight's size is no multiple of the outputs.
    """

    def __init__(self, weight: Factorization, out_features: int, dropout: TensorDropout | None = None) -> None:
        super().__init__()
        if math.prod(weight.shape) % out_features:
            raise ValueError(f"out_features: expected a divisor of {math.prod(weight.shape)}, got {out_features}.")
        self.weight, self.dropout, self.out_features = weight, dropout, out_features
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, _weight(self.weight, self.dropout).reshape(self.out_features, -1), self.bias)


class FactorizedConv2d(nn.Module):
    """A convolution whose weight is a factorised tensor of shape (out, in, height, width).

    Args:
        weight: with four dimensions.
        stride: (default: 1) and
        padding: (default: 0) as of `torch.nn.Conv2d`.
        dropout: of the weight's ranks; None (default) for none.

    Raises:
        ValueError: the weight has not four dimensions.
    """

    def __init__(
        self, weight: Factorization, stride: int = 1, padding: int = 0, dropout: TensorDropout | None = None
    ) -> None:
        super().__init__()
        if len(weight.shape) != 4:
            raise ValueError(f"weight: expected shape (out, in, height, width), got {weight.shape}.")
        self.weight, self.dropout, self.stride, self.padding = weight, dropout, stride, padding
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        return F.conv2d(x, _weight(self.weight, self.dropout), self.bias, self.stride, self.padding)


def _weight(weight: Factorization, dropout: TensorDropout | None) -> Tensor:
    w: Tensor = weight.full() if dropout is None else dropout(weight)
    return w


class LowRankContext(nn.Module):
    """A prompt's context as a product of two factors, with rank dropout in training: a cheap regulariser, ours.

    A parametrization: `torch.nn.utils.parametrize.register_parametrization(net.prompt, "ctx", LowRankContext(4, 0.1))`
    replaces the context (M, d) of a `PromptedCLIP` by L (M, R) and N (R, d), which start at its best
    approximation of that rank; ctx = L·diag(m/(1 - p))·N.

    Args:
        rank: R.
        p: see `TensorDropout` (default: 0).

    Raises:
        ValueError: R or p is out of range.
    """

    def __init__(self, rank: int, p: float = 0.0) -> None:
        super().__init__()
        _check_ranks([rank], 1)
        self.rank, self.dropout = rank, TensorDropout(p, min_dim=0)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(M, R) and (R, d) to (M, d)."""
        if self.training and self.dropout.p > 0:
            left = _masked(left, self.dropout.mask(self.rank, left.device)) / (1 - self.dropout.p)
        return left @ right

    def right_inverse(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of a context's best approximation of this rank, their singular values shared.

        Raises:
            ValueError: the context has another number of dimensions, or fewer rows or columns than the rank.
        """
        if context.dim() != 2 or min(context.shape) < self.rank:
            raise ValueError(f"ctx: expected (M, d), both at least the rank {self.rank}, got {tuple(context.shape)}.")
        u, s, v = torch.linalg.svd(context.detach(), full_matrices=False)
        root = s[: self.rank].sqrt()
        return u[:, : self.rank] * root, root[:, None] * v[: self.rank]
