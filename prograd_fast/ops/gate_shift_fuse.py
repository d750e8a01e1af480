"""Gate, shift and fuse (GSF, arXiv:2203.08897): a gate lets part of a clip's channels move to a neighbouring frame.

Two passes over the clip, with a small convolution between them: the first takes the means that the convolution makes
weights of, the second moves, weighs and interleaves. The backward has two passes in closed form.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.ops.checks import OneDtype, check_devices, check_floating
from prograd_fast.ops.common import accumulation_dtype, empty_like
from prograd_fast.ops.losses import goes_through_formula
from prograd_fast.ops.registry import LIBRARY, define

# ---- formulas; u is (B, T, 2, f/2, H, W), the used channels in two groups


def gate_shift_fuse_formula(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, used: int | None = None) -> Tensor:
    """Gate, shift, fuse and interleave, for any float dtype; see `gate_shift_fuse`."""
    used = x.shape[2] if used is None else used
    passed, rest = _split(x, gate, used)
    moved = _moved(passed)
    phi = _fusion_weights(_means(moved, rest), weight.to(moved.dtype), bias.to(moved.dtype))
    return torch.cat([_fused(moved, rest, phi).to(x.dtype), x[:, :, used:]], dim=2)


def _split(x: Tensor, gate: Tensor, used: int) -> tuple[Tensor, Tensor]:
    """The part that the gate lets pass, and the rest."""
    dtype = accumulation_dtype(x)
    u = x[:, :, :used].to(dtype).unflatten(2, (2, used // 2))
    passed = u * gate.to(dtype).transpose(1, 2).unsqueeze(3)
    return passed, u - passed


def _moved(y: Tensor, back: bool = False) -> Tensor:
    """The first group of the next frame, the second of the previous one, zero outside of the clip; or the reverse."""
    nothing = torch.zeros_like(y[:, :1, 0])
    of_next, of_previous = (1, 0) if back else (0, 1)
    groups = [torch.cat([y[:, 1:, of_next], nothing], 1), torch.cat([nothing, y[:, :-1, of_previous]], 1)]
    return torch.stack(groups[::-1] if back else groups, dim=2)


def _means(moved: Tensor, rest: Tensor) -> Tensor:
    """(B, 4, f/2, T): of both groups what was moved, and the rest."""
    means = torch.stack([moved.mean((-2, -1)), rest.mean((-2, -1))], dim=3)  # (B, T, 2, 2, f/2)
    return means.permute(0, 2, 3, 4, 1).flatten(1, 2)


def _fusion_weights(means: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """φ (B, 2, f/2, T)."""
    return F.conv2d(means, weight, bias, padding=1, groups=2).sigmoid()


def _of_frames(phi: Tensor) -> Tensor:
    """φ as (B, T, 2, f/2, 1, 1)."""
    return phi.permute(0, 3, 1, 2)[..., None, None]


def _fused(moved: Tensor, rest: Tensor, phi: Tensor) -> Tensor:
    """(B, T, f, H, W): φ·moved + (1 - φ)·rest, the halves of each group interleaved."""
    weights = _of_frames(phi)
    fused = weights * moved + (1 - weights) * rest
    return fused.unflatten(3, (2, -1)).transpose(3, 4).flatten(2, 4)


def _apart(gradient: Tensor, used: int) -> Tensor:
    """The gradient of what was interleaved: (B, T, 2, f/2, H, W)."""
    return gradient[:, :, :used].unflatten(2, (2, used // 4, 2)).transpose(3, 4).flatten(3, 4)


# ---- operators; x (B, T, C, H, W), of which the first f channels are used, gate (B, 2, T, H, W), contiguous
#
# gate_shift_means_out          means (B, 4, f/2, T): what the convolution takes
# gate_shift_fuse_out           φ = phi (B, 2, f/2, T); the first f channels of out
# gate_shift_slopes_out         d_phi = Σ gradient·(moved - rest) over the positions
# gate_shift_fuse_backward_out  the first f channels of d_x; d_gate; d_means (B, 4, f/2, T)
# gate_shift_fuse               both passes; can be differentiated


def _checked(call: dict[str, Any], first: str) -> tuple[OneDtype, tuple[int, ...]]:
    """The arguments, and (B, f/2, T)."""
    arguments = OneDtype(first, call[first], "clips, frames, channels, height, width")
    batch, frames, channels, *size = arguments.shape
    arguments.whole(first, call[first], arguments.shape)
    arguments.whole("gate", call["gate"], (batch, 2, frames, *size))
    if frames == 0:
        raise ValueError(f"{first}: expected one frame or more, got shape {arguments.shape}.")
    if "used" in call:
        used = call["used"]
    else:  # a tensor of (B, 2 or 4, f/2, T)
        of_channels = next(call[name] for name in ("means", "phi", "d_phi") if name in call)
        used = 2 * of_channels.shape[2] if of_channels.dim() == 4 else 0
    if used < 4 or used % 4 or used > channels:
        raise ValueError(f"used: expected a multiple of 4 from 4 to {channels} channels, got {used}.")
    return arguments, (batch, used // 2, frames)


def _check(call: dict[str, Any]) -> None:
    first = "gradient" if "gradient" in call else "x"
    arguments, (batch, half, frames) = _checked(call, first)
    for name in ("x", "out", "d_x"):
        if name in call:
            arguments.whole(name, call[name], arguments.shape)
    for name, count in (("means", 4), ("d_means", 4), ("phi", 2), ("d_phi", 2)):
        if name in call:
            arguments.whole(name, call[name], (batch, count, half, frames), wide=True)
    if "d_gate" in call:
        arguments.whole("d_gate", call["d_gate"], tuple(call["gate"].shape))
    if "weight" in call:
        arguments.whole("weight", call["weight"], (2, 2, 3, 3), wide=True)
        arguments.whole("bias", call["bias"], (2,), wide=True)


def _means_kernel(x: Tensor, gate: Tensor, *, means: Tensor) -> None:
    passed, rest = _split(x, gate, 2 * means.shape[2])
    means.copy_(_means(_moved(passed), rest))


def _fuse_kernel(x: Tensor, gate: Tensor, phi: Tensor, *, out: Tensor) -> None:
    used = 2 * phi.shape[2]
    passed, rest = _split(x, gate, used)
    out[:, :, :used] = _fused(_moved(passed), rest, phi)


def _slopes_kernel(gradient: Tensor, x: Tensor, gate: Tensor, *, d_phi: Tensor) -> None:
    used = 2 * d_phi.shape[2]
    passed, rest = _split(x, gate, used)
    slopes = (_apart(gradient, used) * (_moved(passed) - rest)).sum((-2, -1))
    d_phi.copy_(slopes.permute(0, 2, 3, 1))


def _backward_kernel(
    gradient: Tensor, x: Tensor, gate: Tensor, phi: Tensor, d_means: Tensor, *, d_x: Tensor, d_gate: Tensor
) -> None:
    dtype, used, positions = phi.dtype, 2 * phi.shape[2], x.shape[3] * x.shape[4]
    weights, g = _of_frames(phi), _apart(gradient, used).to(dtype)
    of_moved, of_rest = (_of_frames(part) / positions for part in d_means.unflatten(1, (2, 2)).unbind(2))
    d_rest = (1 - weights) * g + of_rest
    d_passed = _moved(weights * g + of_moved, back=True) - d_rest
    u = x[:, :, :used].to(dtype).unflatten(2, (2, used // 2))
    d_x[:, :, :used] = (d_rest + gate.to(dtype).transpose(1, 2).unsqueeze(3) * d_passed).flatten(2, 3)
    d_gate.copy_((d_passed * u).sum(3).transpose(1, 2))


def _both_passes(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, used: int) -> tuple[Tensor, ...]:
    operators = torch.ops.prograd_fast
    out, means, _ = _empty(x, gate, weight, bias, used)
    operators.gate_shift_means_out(x, gate, means=means)
    phi = _fusion_weights(means, weight, bias).contiguous()
    operators.gate_shift_fuse_out(x, gate, phi, out=out)
    out[:, :, used:] = x[:, :, used:]
    return out, means, phi


def _empty(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, used: int) -> tuple[Tensor, ...]:
    room = x.shape[0], 4, used // 2, x.shape[1]
    means = x.new_empty(room, dtype=accumulation_dtype(x))
    return torch.empty_like(x), means, means.new_empty(room[0], 2, *room[2:])


_INPUTS = "Tensor x, Tensor gate"
define(f"gate_shift_means_out({_INPUTS}, *, Tensor(a!) means) -> ()", reference=_means_kernel, check=_check)
define(f"gate_shift_fuse_out({_INPUTS}, Tensor phi, *, Tensor(a!) out) -> ()", reference=_fuse_kernel, check=_check)
define(
    f"gate_shift_slopes_out(Tensor gradient, {_INPUTS}, *, Tensor(a!) d_phi) -> ()",
    reference=_slopes_kernel,
    check=_check,
)
define(
    f"gate_shift_fuse_backward_out(Tensor gradient, {_INPUTS}, Tensor phi, Tensor d_means, *, Tensor(a!) d_x, "
    "Tensor(b!) d_gate) -> ()",
    reference=_backward_kernel,
    check=_check,
)
define(
    f"gate_shift_fuse({_INPUTS}, Tensor weight, Tensor bias, int used) -> (Tensor, Tensor, Tensor)",
    reference=_both_passes,
    fake=_empty,
    check=_check,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.used = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, gate, weight, bias, means, phi = ctx.saved_tensors
    if torch.is_grad_enabled():  # with create_graph=True
        return *_through_formula(gradient, (x, gate, weight, bias), ctx.used), None
    operators, gradient = torch.ops.prograd_fast, gradient.contiguous()
    d_phi, d_x, d_gate = torch.empty_like(phi), empty_like(x), torch.empty_like(gate)
    operators.gate_shift_slopes_out(gradient, x, gate, d_phi=d_phi)
    d_convolved = d_phi * phi * (1 - phi)
    d_means, d_weight, d_bias = torch.ops.aten.convolution_backward(
        d_convolved, means, weight, [2], [1, 1], [1, 1], [1, 1], False, [0, 0], 2, [True] * 3
    )
    operators.gate_shift_fuse_backward_out(gradient, x, gate, phi, d_means.contiguous(), d_x=d_x, d_gate=d_gate)
    d_x[:, :, ctx.used :] = gradient[:, :, ctx.used :]
    return d_x, d_gate, d_weight, d_bias, None


def _through_formula(gradient: Tensor, given: tuple[Tensor, Tensor, Tensor, Tensor], used: int) -> list[Tensor | None]:
    wanted = [x for x in given if x.requires_grad]
    found = iter(torch.autograd.grad(gate_shift_fuse_formula(*given, used), wanted, gradient, create_graph=True))
    return [next(found) if x.requires_grad else None for x in given]


def _one_by_one(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    operator = torch.ops.prograd_fast.gate_shift_fuse
    each = (
        [a if d is None else a.select(d, i).contiguous() for a, d in zip(args, in_dims, strict=True)]
        for i in range(info.batch_size)
    )
    results = [operator(*call) for call in each]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0, 0, 0)


torch.library.register_autograd("prograd_fast::gate_shift_fuse", _backward, setup_context=_keep, lib=LIBRARY)
torch.library.register_vmap("prograd_fast::gate_shift_fuse", _one_by_one, lib=LIBRARY)

# ---- function


def gate_shift_fuse(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, used: int | None = None) -> Tensor:
    """Move what a gate lets pass to the neighbouring frame and fuse it with the rest, in two passes over the clip.

    The first f channels u of each frame are in two groups k of f/2, each with a gate of its own:

        y = shift(gate_k·u)      of the next frame for the first group, of the previous one for the second, else 0
        r = u - gate_k·u
        φ = sigmoid(conv3x3_k([mean_hw y, mean_hw r]) + bias_k)      over channels and frames, padded with zeros
        out = φ·y + (1 - φ)·r    channels of each group (2, f/4) interleaved to (f/4, 2); the other channels pass

    Differentiable in x, gate, weight and bias, any number of times; the kernels have the first derivative. Source:
    Sudhakaran, Escalera, Lanz, arXiv:2203.08897; formula: `prograd_fast.reference.gate_shift_fuse`.

    Args:
        x: (B, T, C, H, W), T frames; float64, float32, bfloat16 or float16.
        gate: (B, 2, T, H, W), floating point; GSF's is in -1 ... 1.
        weight: (2, 2, 3, 3), of a convolution for each group: weight[k, 0] meets the means of y, weight[k, 1] of r.
        bias: (2,).
        used: f, a multiple of 4 (default: None, all channels).

    Returns:
        Shape and dtype of `x`; float32 arithmetic or wider, rounded once.

    Raises:
        TypeError: something is not floating point.
        ValueError: shapes or devices do not fit, or 4 does not divide the number of used channels.
    """
    for name, tensor in (("x", x), ("gate", gate), ("weight", weight), ("bias", bias)):
        check_floating(name, tensor)
    if x.dim() != 5:
        raise ValueError(f"x: expected shape (clips, frames, channels, height, width), got {tuple(x.shape)}.")
    batch, frames, channels, *size = x.shape
    expected = {"gate": (batch, 2, frames, *size), "weight": (2, 2, 3, 3), "bias": (2,)}
    for (name, shape), tensor in zip(expected.items(), (gate, weight, bias), strict=True):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}.")
    check_devices(x=x, gate=gate, weight=weight, bias=bias)
    wide = accumulation_dtype(x)
    x, gate = x.contiguous(), gate.to(x.dtype).contiguous()
    weight, bias = weight.to(wide).contiguous(), bias.to(wide).contiguous()
    used = channels if used is None else used
    if goes_through_formula():
        _checked({"x": x, "gate": gate, "used": used}, "x")
        return gate_shift_fuse_formula(x, gate, weight, bias, used)
    out, _, _ = torch.ops.prograd_fast.gate_shift_fuse(x, gate, weight, bias, used)
    return out
