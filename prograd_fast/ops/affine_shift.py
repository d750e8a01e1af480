"""Channel groups moved by one position along an axis, scaled and added to a bias, in one read and one write.

Video and image models mix neighbours with it: VAST (arXiv:2208.11108), XViT (arXiv:2106.05968) and GSF
(arXiv:2203.08897) move channels to the next or the previous frame, row or column.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import OneDtype, check_devices, check_floating
from prograd_fast.ops.common import accumulation_dtype, empty_like
from prograd_fast.ops.losses import goes_through_formula
from prograd_fast.ops.registry import LIBRARY, define

MOST_AXES = 3  # frames, rows, columns

# ---- formula


def affine_shift_formula(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, groups: Sequence[int], axes: Sequence[int]
) -> Tensor:
    """scale·shift(x) + bias, for any float dtype and any number of axes; see `affine_shift`."""
    dtype = accumulation_dtype(x)
    parts = x.to(dtype).split(list(groups), dim=1)
    y = torch.cat([_moved(part, axis) for part, axis in zip(parts, axes, strict=True)], dim=1)
    if scale is not None:
        y = y * _per_channel(scale.to(dtype), y)
    if bias is not None:
        y = y + bias.to(dtype)
    return y.to(x.dtype)


def _moved(x: Tensor, axis: int) -> Tensor:
    """One position further along an axis, zeros where nothing came from; see `affine_shift` for the axis."""
    dim, n = 1 + abs(axis), x.shape[1 + abs(axis)]
    if axis == 0 or n == 0:
        return x
    zero = torch.zeros_like(x.narrow(dim, 0, 1))
    return torch.cat([zero, x.narrow(dim, 0, n - 1)] if axis > 0 else [x.narrow(dim, 1, n - 1), zero], dim)


def _per_channel(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(*scale.shape, *[1] * (like.dim() - 2))


def _positions(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


# ---- operators, contiguous
#
# affine_shift_out           x, bias and out (B, C, *positions), scale (B, C)
# affine_shift_backward_out  h = gradient moved back: d_x = scale·h; d_scale (B, C) = Σ h·x over the positions
# affine_shift               allocates; can be differentiated


def _checked(call: dict[str, Any], first: str) -> OneDtype:
    arguments = OneDtype(first, call[first])
    count = len(arguments.shape) - 2
    if not 1 <= count <= MOST_AXES:
        raise ValueError(f"{first}: expected 3 to {2 + MOST_AXES} dimensions, got shape {arguments.shape}.")
    arguments.whole(first, call[first], arguments.shape)
    groups, axes = list(call["groups"]), list(call["axes"])
    if min(groups, default=0) < 0 or sum(groups) != arguments.shape[1]:
        raise ValueError(f"groups: expected sizes that add up to {arguments.shape[1]} channels, got {groups}.")
    if len(axes) != len(groups):
        raise ValueError(f"axes: expected {len(groups)}, one for each group, got {len(axes)}.")
    if any(abs(axis) > count for axis in axes):
        raise ValueError(f"axes: expected -{count} ... {count} for shape {arguments.shape}, got {axes}.")
    return arguments


def _check(call: dict[str, Any]) -> None:
    arguments = _checked(call, "x")
    if call["scale"] is not None:
        arguments.whole("scale", call["scale"], arguments.shape[:2], wide=True)
    for name in ("bias", "out"):
        if call.get(name) is not None:
            arguments.whole(name, call[name], arguments.shape)


def _check_backward(call: dict[str, Any]) -> None:
    arguments = _checked(call, "gradient")
    for name in ("x", "d_x"):
        arguments.whole(name, call[name], arguments.shape)
    for name in ("scale", "d_scale"):
        arguments.whole(name, call[name], arguments.shape[:2], wide=True)


def _kernel(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, groups: list[int], axes: list[int], *, out: Tensor
) -> None:
    out.copy_(affine_shift_formula(x, scale, bias, groups, axes))


def _backward_kernel(
    gradient: Tensor, x: Tensor, scale: Tensor, groups: list[int], axes: list[int], *, d_x: Tensor, d_scale: Tensor
) -> None:
    h = affine_shift_formula(gradient.to(scale.dtype), None, None, groups, _back(axes))
    d_scale.copy_((h * x).sum(_positions(x)))
    d_x.copy_(_per_channel(scale, h) * h)


def _back(axes: Sequence[int]) -> list[int]:
    return [-axis for axis in axes]


def _affine_shift(x: Tensor, scale: Tensor | None, bias: Tensor | None, groups: list[int], axes: list[int]) -> Tensor:
    out = torch.empty_like(x)
    torch.ops.prograd_fast.affine_shift_out(x, scale, bias, groups, axes, out=out)
    return out


def _fake(x: Tensor, scale: Tensor | None, bias: Tensor | None, groups: list[int], axes: list[int]) -> Tensor:
    return torch.empty_like(x)


_SHIFT = "int[] groups, int[] axes"
define(
    f"affine_shift_out(Tensor x, Tensor? scale, Tensor? bias, {_SHIFT}, *, Tensor(a!) out) -> ()",
    reference=_kernel,
    check=_check,
)
define(
    f"affine_shift_backward_out(Tensor gradient, Tensor x, Tensor scale, {_SHIFT}, *, Tensor(a!) d_x, "
    "Tensor(b!) d_scale) -> ()",
    reference=_backward_kernel,
    check=_check_backward,
)
define(
    f"affine_shift(Tensor x, Tensor? scale, Tensor? bias, {_SHIFT}) -> Tensor",
    reference=_affine_shift,
    fake=_fake,
    check=_check,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, _, ctx.groups, ctx.axes = inputs
    ctx.save_for_backward(None if scale is None else x, scale)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, scale = ctx.saved_tensors
    operators, back = torch.ops.prograd_fast, _back(ctx.axes)
    needs_x, needs_scale, needs_bias, *_ = ctx.needs_input_grad
    d_x = d_scale = None
    gradient = gradient.contiguous()
    if needs_x and needs_scale and not torch.is_grad_enabled():
        d_x, d_scale = empty_like(x), torch.empty_like(scale)
        operators.affine_shift_backward_out(gradient, x, scale, ctx.groups, ctx.axes, d_x=d_x, d_scale=d_scale)
    else:  # of operators that can be differentiated
        if needs_x:
            d_x = operators.affine_shift(gradient, scale, None, ctx.groups, back)
        if needs_scale:
            moved = operators.affine_shift(x, None, None, ctx.groups, ctx.axes)
            d_scale = (gradient.to(scale.dtype) * moved).sum(_positions(moved))
    return d_x, d_scale, gradient if needs_bias else None, None, None


def _one_by_one(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    def of(i: int) -> list[Any]:
        calls = (a if d is None else a.select(d, i) for a, d in zip(args[:3], in_dims[:3], strict=True))
        return [None if a is None else a.contiguous() for a in calls]

    return torch.stack([torch.ops.prograd_fast.affine_shift(*of(i), *args[3:]) for i in range(info.batch_size)]), 0


torch.library.register_autograd("prograd_fast::affine_shift", _backward, setup_context=_keep, lib=LIBRARY)
torch.library.register_vmap("prograd_fast::affine_shift", _one_by_one, lib=LIBRARY)


# ---- function


def affine_shift(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, groups: Sequence[int], axes: Sequence[int]
) -> Tensor:
    """Move channel groups by one position, scale them and add a bias, in one read and one write.

    With δ = one step of the channel's group:

        y[b, c, p] = scale[b, c]·x[b, c, p - δ] + bias[b, c, p]        x is zero outside of its positions

    Differentiable in x, scale and bias, any number of times. Source: the shift of arXiv:2208.11108, whose authors have
    published no code; formula: `prograd_fast.reference.affine_shift`.

    Args:
        x: (B, C, *positions) with 1, 2 or 3 axes of positions, such as (B, C, T, H, W); float64, float32, bfloat16 or
            float16.
        scale: (B, C), floating point; None for 1.
        bias: of the shape and dtype of `x`; None for 0.
        groups: sizes of the channel groups, in order; they add up to C.
        axes: for each group the axis that it moves along, from 1: along +a, position p gets what was at p - 1, along
            -a what was at p + 1, and with 0 the group stays. For (T, H, W), -1 brings the next frame.

    Returns:
        Shape and dtype of `x`; float32 arithmetic or wider, rounded once.

    Raises:
        TypeError: something is not floating point, or the bias has another dtype.
        ValueError: shapes, devices, groups or axes do not fit.
    """
    check_floating("x", x)
    if not 3 <= x.dim() <= 2 + MOST_AXES:
        raise ValueError(f"x: expected shape (batch, channels, 1 to {MOST_AXES} positions), got {tuple(x.shape)}.")
    if scale is not None:
        check_floating("scale", scale)
        if scale.shape != x.shape[:2]:
            raise ValueError(f"scale: expected shape {tuple(x.shape[:2])}, one per channel, got {tuple(scale.shape)}.")
    if bias is not None:
        check_floating("bias", bias)
        if bias.dtype != x.dtype:
            raise TypeError(f"bias: expected {x.dtype} as x, got {bias.dtype}. Pass bias.to(x.dtype).")
        if bias.shape != x.shape:
            raise ValueError(f"bias: expected shape {tuple(x.shape)} as x, got {tuple(bias.shape)}. Expand it.")
    check_devices(x=x, scale=scale, bias=bias)
    if goes_through_formula():
        _checked({"x": x.contiguous(), "groups": groups, "axes": axes}, "x")
        return affine_shift_formula(x, scale, bias, groups, axes)
    wide = None if scale is None else scale.to(accumulation_dtype(x)).contiguous()
    given = [x.contiguous(), wide, None if bias is None else bias.contiguous()]
    y: Tensor = torch.ops.prograd_fast.affine_shift(*given, list(groups), list(axes))
    return y
