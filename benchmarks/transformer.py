"""Sides of the prompt encoder's operators: ours, and eager PyTorch with its autograd.

Sizes are those of CLIP's text tower with 1000 prompts: rows packed without their shared prefix, which for PyTorch's own
attention is repeated in front of every prompt, all padded to the longest.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import DEVICE, Side
from prograd_fast.ops.common import accumulation_dtype

PROMPTS, PREFIX, WIDTH, HEADS, HIDDEN, COTANGENTS = 1000, 17, 512, 8, 2048, 2
_operators = torch.ops.prograd_fast


def lengths() -> Tensor:
    """Rows of each prompt after the prefix: 2 to 10, 4.2 on average."""
    generator = torch.Generator().manual_seed(0)
    return 2 + torch.poisson(torch.full((PROMPTS,), 2.19), generator).long().clamp(max=12)


ROWS = int(lengths().sum())


def _normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(DEVICE, dtype)


class Work(NamedTuple):
    """One operator: both sides, by dtype, and the elements of that dtype which it must read or write."""

    ours: Callable[[torch.dtype], Side]
    eager: Callable[[torch.dtype], Side]
    elements: int


# ---- attention


def _offsets() -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths().cumsum(0)]).to(DEVICE)


def _packed(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, int, Tensor, int, float, bool]:
    rows = _normal(1, ROWS, 3 * WIDTH, dtype=dtype)
    prefix = _normal(1, PREFIX, 2 * WIDTH, dtype=dtype)
    return rows[..., :WIDTH], rows[..., WIDTH:], prefix, 0, _offsets(), HEADS, (HEADS / WIDTH) ** 0.5, False


def _attention(dtype: torch.dtype) -> Side:
    given = _packed(dtype)
    out = torch.empty(1, ROWS, WIDTH, device=DEVICE, dtype=dtype)
    return lambda: _operators.shared_prefix_attention_out(*given, out=out)


def _attention_backward(dtype: torch.dtype) -> Side:
    given = _packed(dtype)
    gradient = _normal(COTANGENTS, 1, ROWS, WIDTH, dtype=dtype)
    d_rows = torch.empty(COTANGENTS, 1, ROWS, 3 * WIDTH, device=DEVICE, dtype=dtype)
    d_prefix = torch.empty(COTANGENTS, 1, PREFIX, 2 * WIDTH, device=DEVICE, dtype=dtype)
    d_query, d_key_value = d_rows.split([WIDTH, 2 * WIDTH], -1)
    return lambda: _operators.shared_prefix_attention_backward_out(
        gradient, *given, d_query=d_query, d_key_value=d_key_value, d_prefix=d_prefix
    )


def _padded(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (prompts, heads, prefix and longest, columns) as the tower without packing has them."""
    rows = PREFIX + int(lengths().max())
    query, key, value = _normal(3, PROMPTS, HEADS, rows, WIDTH // HEADS, dtype=dtype)
    return query, key, value


def _sdpa(dtype: torch.dtype) -> Side:
    given = _padded(dtype)
    return lambda: F.scaled_dot_product_attention(*given, is_causal=True)


def _sdpa_backward(dtype: torch.dtype) -> Side:
    given = tuple(x.requires_grad_() for x in _padded(dtype))
    out = F.scaled_dot_product_attention(*given, is_causal=True)
    return _cotangents(out, given)


def _cotangents(out: Tensor, inputs: tuple[Tensor, ...]) -> Side:
    gradients = _normal(COTANGENTS, *out.shape, dtype=out.dtype)
    return lambda: [torch.autograd.grad(out, inputs, one, retain_graph=True) for one in gradients]


# ---- norm


def _affine(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = torch.ones(WIDTH, device=DEVICE, dtype=dtype)
    return weight, torch.zeros_like(weight)


def _norm(dtype: torch.dtype) -> Side:
    x, branch = _normal(2, ROWS, WIDTH, dtype=dtype)
    weight, bias = _affine(accumulation_dtype(x))
    total, normed = torch.empty_like(x), torch.empty_like(x)
    statistics = torch.empty(ROWS, 2, device=DEVICE, dtype=weight.dtype)
    written = {"total": total, "normed": normed, "statistics": statistics}
    return lambda: _operators.add_layer_norm_out(x, branch, weight, bias, 1e-5, **written)


def _norm_backward(dtype: torch.dtype) -> Side:
    total = _normal(ROWS, WIDTH, dtype=dtype)
    d_total, d_normed = _normal(2, COTANGENTS, ROWS, WIDTH, dtype=dtype)
    weight, _ = _affine(accumulation_dtype(total))
    statistics = torch.ones(ROWS, 2, device=DEVICE, dtype=weight.dtype)
    return lambda: _operators.layer_norm_backward_(d_total, d_normed, total, statistics, weight)


def _eager_norm(dtype: torch.dtype) -> Side:
    x, branch = _normal(2, ROWS, WIDTH, dtype=dtype)
    weight, bias = _affine(dtype)

    def both() -> tuple[Tensor, Tensor]:
        total = x + branch
        return total, F.layer_norm(total, (WIDTH,), weight, bias)

    return both


def _eager_norm_backward(dtype: torch.dtype) -> Side:
    total = _normal(ROWS, WIDTH, dtype=dtype).requires_grad_()
    out = F.layer_norm(total, (WIDTH,), *_affine(dtype))
    through = _cotangents(out, (total,))
    d_total = _normal(COTANGENTS, ROWS, WIDTH, dtype=dtype)
    return lambda: [d.add_(g) for d, (g,) in zip(d_total, through(), strict=True)]


# ---- GELU


def _gelu(dtype: torch.dtype) -> Side:
    x = _normal(ROWS, HIDDEN, dtype=dtype)
    out = torch.empty_like(x)
    return lambda: _operators.gelu_out(x, 0, out=out)


def _gelu_backward(dtype: torch.dtype) -> Side:
    x = _normal(ROWS, HIDDEN, dtype=dtype)
    gradient = torch.ones(COTANGENTS, ROWS, HIDDEN, device=DEVICE, dtype=dtype)
    return lambda: _operators.gelu_backward_(gradient, x, 0)


def _eager_gelu(dtype: torch.dtype) -> Side:
    x = _normal(ROWS, HIDDEN, dtype=dtype)
    return lambda: F.gelu(x)


def _eager_gelu_backward(dtype: torch.dtype) -> Side:
    x = _normal(ROWS, HIDDEN, dtype=dtype).requires_grad_()
    return _cotangents(F.gelu(x), (x,))


_ELEMENTS = ROWS * WIDTH
WORK: dict[str, Work] = {
    "attention": Work(_attention, _sdpa, 4 * _ELEMENTS),
    "attention backward": Work(_attention_backward, _sdpa_backward, (3 + 4 * COTANGENTS) * _ELEMENTS),
    "add and norm": Work(_norm, _eager_norm, 4 * _ELEMENTS),
    "norm backward": Work(_norm_backward, _eager_norm_backward, (1 + 3 * COTANGENTS) * _ELEMENTS),
    "GELU": Work(_gelu, _eager_gelu, 2 * ROWS * HIDDEN),
    "GELU backward": Work(_gelu_backward, _eager_gelu_backward, (1 + 2 * COTANGENTS) * ROWS * HIDDEN),
}
