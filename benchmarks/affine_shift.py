"""Sides of the affine shift: this library, PyTorch's operators one by one, and the same through torch.compile."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import DEVICE, Side
from prograd_fast import functional

Shape = tuple[int, ...]


def _arguments(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Clips (B, C, T, H, W), a scale and a bias."""
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn((2, *shape), generator=generator).to(DEVICE)
    return x, torch.rand(shape[:2], generator=generator).to(DEVICE), bias


def _ours(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    part = x.shape[1] // 8
    return functional.affine_shift(x, scale, bias, [part] * 6 + [x.shape[1] - 6 * part], [1, -1, 2, -2, 3, -3, 0])


def _slices(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As users of shifts write it."""
    y, part = torch.zeros_like(x), x.shape[1] // 8
    for g in range(6):
        channels, axis = slice(g * part, (g + 1) * part), 1 + g // 2
        to, of = y[:, channels].movedim(1 + axis, 0), x[:, channels].movedim(1 + axis, 0)
        if g % 2:
            to[:-1] = of[1:]
        else:
            to[1:] = of[:-1]
    y[:, 6 * part :] = x[:, 6 * part :]
    return y * scale[..., None, None, None] + bias


def _forward(call: Callable[..., Tensor]) -> Callable[[Shape], Side]:
    def side(shape: Shape) -> Side:
        given = _arguments(shape)
        return lambda: call(*given)

    return side


def _with_gradient(call: Callable[..., Tensor]) -> Callable[[Shape], Side]:
    def side(shape: Shape) -> Side:
        x, scale, bias = _arguments(shape)
        gradient, leaves = bias.clone(), (x.requires_grad_(), scale.requires_grad_())
        return lambda: torch.autograd.grad(call(*leaves, bias), leaves, gradient)

    return side


_CALLS = {"affine_shift": _ours, "slices": _slices, "slices, torch.compile": torch.compile(_slices, dynamic=False)}
FORWARD = {name: _forward(call) for name, call in _CALLS.items()}
WITH_GRADIENT = {name: _with_gradient(call) for name, call in _CALLS.items()}
