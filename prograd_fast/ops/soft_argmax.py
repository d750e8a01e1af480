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
    return _located(maps, _peaks(maps), window, temperature)[0]


def local_soft_argmax_backward(
    gradient: Tensor, maps: Tensor, peaks: Tensor, window: int, temperature: float
) -> Tensor:
    """The gradient in the maps, as these: τ·w_k·((x_k - x)·g_x + (y_k - y)·g_y) in the window, 0 elsewhere."""
    points, weights, places, columns, rows = _located(maps, peaks, window, temperature)
    offsets = torch.stack([columns, rows], 3).to(points.dtype) - points.unsqueeze(2)
    of_values = temperature * weights * (offsets * gradient.to(points.dtype).unsqueeze(2)).sum(3)
    height, width = maps.shape[2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    result = points.new_zeros(*maps.shape[:2], height * width)
    return result.scatter_add(2, places, of_values * inside).to(maps.dtype).view(maps.shape)


def _peaks(maps: Tensor) -> Tensor:
    """The place of each map's largest value, (B, N)."""
    return maps.detach().flatten(2).argmax(2)


def _located(maps: Tensor, peaks: Tensor, window: int, temperature: float) -> tuple[Tensor, ...]:
    """Points (B, N, 2); of the d·d pixels around each peak (B, N, d·d): weights, places in the map, columns, rows."""
    height, width = maps.shape[2:]
    flat, peak = maps.flatten(2), peaks.unsqueeze(2)
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
# local_soft_argmax_out           maps (B, N, H, W); points (B, N, 2) in the accumulation dtype; peaks (B, N), the place
#                                 r·W + c of each map's largest value, so that the backward reads the window alone
# local_soft_argmax_backward_out  gradient (B, N, 2), maps, peaks; d_maps as the maps


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
    arguments.integer_result("peaks", call.get("peaks"), shape[:2])


def _check_backward(call: dict[str, Any]) -> None:
    arguments, shape = _check_call(call)
    arguments.floating("gradient", call["gradient"], shape)
    arguments.integers("peaks", call["peaks"], shape[:2])
    arguments.result("d_maps", call.get("d_maps"), tuple(call["maps"].shape))


def _kernel(maps: Tensor, window: int, temperature: float, *, points: Tensor, peaks: Tensor) -> None:
    if maps.numel():
        peaks.copy_(_peaks(maps))
        points.copy_(_located(maps, peaks, window, temperature)[0])


def _backward_kernel(
    gradient: Tensor, maps: Tensor, peaks: Tensor, window: int, temperature: float, *, d_maps: Tensor
) -> None:
    if maps.numel():
        d_maps.copy_(local_soft_argmax_backward(gradient, maps, peaks, window, temperature))


def _empty(maps: Tensor, window: int, temperature: float) -> tuple[Tensor, Tensor]:
    each = maps.shape[:2]
    return maps.new_empty((*each, 2), dtype=accumulation_dtype(maps)), maps.new_empty(each, dtype=torch.int64)


def _empty_backward(gradient: Tensor, maps: Tensor, peaks: Tensor, window: int, temperature: float) -> Tensor:
    return empty_like(maps)


def _local_soft_argmax(maps: Tensor, window: int, temperature: float) -> tuple[Tensor, Tensor]:
    points, peaks = _empty(maps, window, temperature)
    torch.ops.prograd_fast.local_soft_argmax_out(maps, window, temperature, points=points, peaks=peaks)
    return points, peaks


def _local_soft_argmax_backward(
    gradient: Tensor, maps: Tensor, peaks: Tensor, window: int, temperature: float
) -> Tensor:
    d_maps = _empty_backward(gradient, maps, peaks, window, temperature)
    torch.ops.prograd_fast.local_soft_argmax_backward_out(gradient, maps, peaks, window, temperature, d_maps=d_maps)
    return d_maps


_INPUTS, _GIVEN = "Tensor maps, int window, float temperature", "Tensor gradient, Tensor maps, Tensor peaks"
define(
    f"local_soft_argmax_out({_INPUTS}, *, Tensor(a!) points, Tensor(b!) peaks) -> ()",
    reference=_kernel,
    check=_check,
)
define(
    f"local_soft_argmax({_INPUTS}) -> (Tensor points, Tensor peaks)",
    reference=_local_soft_argmax,
    fake=_empty,
    check=_check,
)
define(
    f"local_soft_argmax_backward_out({_GIVEN}, int window, float temperature, *, Tensor(a!) d_maps) -> ()",
    reference=_backward_kernel,
    check=_check_backward,
)
define(
    f"local_soft_argmax_backward({_GIVEN}, int window, float temperature) -> Tensor",
    reference=_local_soft_argmax_backward,
    fake=_empty_backward,
    check=_check_backward,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    maps, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(maps, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    maps, peaks = ctx.saved_tensors
    if torch.is_grad_enabled():  # with create_graph=True
        d_maps = local_soft_argmax_backward(gradient, maps, peaks, *ctx.options)
    else:
        d_maps = torch.ops.prograd_fast.local_soft_argmax_backward(gradient, maps, peaks, *ctx.options)
    return d_maps, None, None


def _one_by_one(
    info: Any, in_dims: tuple[int, ...], maps: Tensor, *options: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    each = [torch.ops.prograd_fast.local_soft_argmax(m, *options) for m in maps.unbind(in_dims[0])]
    return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0, 0)


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
    points, _ = torch.ops.prograd_fast.local_soft_argmax(maps, window, float(temperature))
    return points
