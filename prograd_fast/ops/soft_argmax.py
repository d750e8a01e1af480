"""The local soft-argmax of heat maps: the largest value, and a softmax-weighted mean position around it."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_floating, check_positive
from prograd_fast.ops.common import accumulation_dtype, empty_like
from prograd_fast.ops.losses import goes_through_formula
from prograd_fast.ops.registry import LIBRARY, define

# ---- formulas


def local_soft_argmax_formula(maps: Tensor, window: int = 5, temperature: float = 10.0) -> Tensor:
    """Softmax-weighted mean position (x, y) around each map's largest value; see `local_soft_argmax`."""
    return _located(maps, window, temperature)[0]


def local_soft_argmax_backward(gradient: Tensor, maps: Tensor, window: int, temperature: float) -> Tensor:
    """The gradient in the maps, as these: τ·w_k·((x_k - x)·g_x + (y_k - y)·g_y) in the window, 0 elsewhere."""
    points, weights, places, columns, rows = _located(maps, window, temperature)
    offsets = torch.stack([columns, rows], 3).to(points.dtype) - points.unsqueeze(2)
    of_values = temperature * weights * (offsets * gradient.to(points.dtype).unsqueeze(2)).sum(3)
    height, width = maps.shape[2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    result = points.new_zeros(*maps.shape[:2], height * width)
    return result.scatter_add(2, places, of_values * inside).to(maps.dtype).view(maps.shape)


def _located(maps: Tensor, window: int, temperature: float) -> tuple[Tensor, ...]:
    """Points (B, N, 2); of the d·d pixels around each peak (B, N, d·d): weights, places in the map, columns, rows."""
    height, width = maps.shape[2:]
    flat = maps.flatten(2)
    peak = flat.detach().argmax(2, keepdim=True)
    steps = torch.arange(window, device=maps.device) - window // 2
    rows = peak // width + steps.repeat_interleave(window)
    columns = peak % width + steps.repeat(window)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    values = flat.gather(2, places).to(accumulation_dtype(maps)).where(inside, 0.0)
    weights = (temperature * values).softmax(2)
    points = torch.stack([(weights * columns).sum(2), (weights * rows).sum(2)], 2)
    return points, weights, places, columns, rows


# ---- operators
#
# local_soft_argmax_out           maps (B, N, H, W); points (B, N, 2) in the accumulation dtype
# local_soft_argmax_backward_out  gradient (B, N, 2), maps; d_maps as the maps


def _check_call(call: dict[str, Any]) -> tuple[Arguments, tuple[int, ...]]:
    maps, window = call["maps"], call["window"]
    arguments = Arguments(maps)
    batch, points, height, width = arguments.sizes("maps", maps, "batch, maps, height, width")
    if batch * points and not height * width:
        raise ValueError(f"maps: expected at least one pixel, got shape {tuple(maps.shape)}.")
    if not 0 < window < 64 or window % 2 == 0:
        raise ValueError(f"window: expected an odd number of pixels below 64, got {window}.")
    check_positive("temperature", call["temperature"])
    return arguments, (batch, points, 2)


def _check(call: dict[str, Any]) -> None:
    arguments, shape = _check_call(call)
    arguments.result("points", call.get("points"), shape)


def _check_backward(call: dict[str, Any]) -> None:
    arguments, shape = _check_call(call)
    arguments.floating("gradient", call["gradient"], shape)
    arguments.result("d_maps", call.get("d_maps"), tuple(call["maps"].shape))


def _kernel(maps: Tensor, window: int, temperature: float, *, points: Tensor) -> None:
    points.copy_(local_soft_argmax_formula(maps, window, temperature) if maps.numel() else points)


def _backward_kernel(gradient: Tensor, maps: Tensor, window: int, temperature: float, *, d_maps: Tensor) -> None:
    d_maps.copy_(local_soft_argmax_backward(gradient, maps, window, temperature) if maps.numel() else d_maps)


def _empty(maps: Tensor, window: int, temperature: float) -> Tensor:
    return maps.new_empty((*maps.shape[:2], 2), dtype=accumulation_dtype(maps))


def _empty_backward(gradient: Tensor, maps: Tensor, window: int, temperature: float) -> Tensor:
    return empty_like(maps)


def _local_soft_argmax(maps: Tensor, window: int, temperature: float) -> Tensor:
    points = _empty(maps, window, temperature)
    torch.ops.prograd_fast.local_soft_argmax_out(maps, window, temperature, points=points)
    return points


def _local_soft_argmax_backward(gradient: Tensor, maps: Tensor, window: int, temperature: float) -> Tensor:
    d_maps = _empty_backward(gradient, maps, window, temperature)
    torch.ops.prograd_fast.local_soft_argmax_backward_out(gradient, maps, window, temperature, d_maps=d_maps)
    return d_maps


define(
    "local_soft_argmax_out(Tensor maps, int window, float temperature, *, Tensor(a!) points) -> ()",
    reference=_kernel,
    check=_check,
)
define(
    "local_soft_argmax(Tensor maps, int window, float temperature) -> Tensor",
    reference=_local_soft_argmax,
    fake=_empty,
    check=_check,
)
define(
    "local_soft_argmax_backward_out(Tensor gradient, Tensor maps, int window, float temperature, *, "
    "Tensor(a!) d_maps) -> ()",
    reference=_backward_kernel,
    check=_check_backward,
)
define(
    "local_soft_argmax_backward(Tensor gradient, Tensor maps, int window, float temperature) -> Tensor",
    reference=_local_soft_argmax_backward,
    fake=_empty_backward,
    check=_check_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, *ctx.options = inputs
    ctx.save_for_backward(maps)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (maps,) = ctx.saved_tensors
    if torch.is_grad_enabled():  # with create_graph=True
        d_maps = local_soft_argmax_backward(gradient, maps, *ctx.options)
    else:
        d_maps = torch.ops.prograd_fast.local_soft_argmax_backward(gradient, maps, *ctx.options)
    return d_maps, None, None


def _one_by_one(info: Any, in_dims: tuple[int, ...], maps: Tensor, *options: Any) -> tuple[Tensor, int]:
    return torch.stack([torch.ops.prograd_fast.local_soft_argmax(m, *options) for m in maps.unbind(in_dims[0])]), 0


torch.library.register_autograd("prograd_fast::local_soft_argmax", _backward, setup_context=_keep, lib=LIBRARY)
torch.library.register_vmap("prograd_fast::local_soft_argmax", _one_by_one, lib=LIBRARY)

# ---- function


def local_soft_argmax(maps: Tensor, window: int = 5, temperature: float = 10.0) -> Tensor:
    """Softmax-weighted mean position in a window around the largest value of each heat map.

        (r, c) = argmax h,   w = softmax(τ·h) over the d·d window there,   (x, y) = Σ w·(column, row)

    The argmax is constant; differentiable otherwise, any number of times: ∂y/∂h_k = τ·w_k·(row_k - y). Pixels of the
    window outside of the map count with h = 0, as in landmarker; left out, the error near the border would be larger.
    Nothing of the map's size is made but the gradient. Of several largest values, the first.

    τ has to fit the height and the width of the peaks, see `docs/neighbours.md`. Source: Bulat et al., Subpixel Heatmap
    Regression (arXiv:2111.02360), in the reading of landmarker 0.4.1; there is no code of the authors.

    Args:
        maps: h, (B, N, H, W); float64, float32, bfloat16 or float16.
        window: d, odd, below 64 (default: 5, the paper's best).
        temperature: τ > 0 (default: 10.0, landmarker's).

    Returns:
        (B, N, 2) of (x, y), float32 or wider; the centre of the first pixel is (0, 0).

    Raises:
        TypeError: the maps are not floating point.
        ValueError: their shape is another, the window is even, or τ is not above 0.
    """
    check_floating("maps", maps)
    if maps.dim() != 4 or not maps.shape[2] or not maps.shape[3]:
        raise ValueError(f"maps: expected shape (batch, landmarks, height, width), got {tuple(maps.shape)}.")
    if not 0 < window < 64 or window % 2 == 0:
        raise ValueError(f"window: expected an odd number of pixels below 64, got {window}. Use 5 as the paper does.")
    if goes_through_formula():
        return local_soft_argmax_formula(maps, window, temperature)
    return torch.ops.prograd_fast.local_soft_argmax(maps, window, float(temperature))
