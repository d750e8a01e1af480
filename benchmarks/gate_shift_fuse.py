"""Sides of gate, shift and fuse: this library, the authors' steps one by one, and the same through torch.compile."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import DEVICE, Side
from prograd_fast import functional

Shape = tuple[int, ...]


def _arguments(shape: Shape) -> tuple[Tensor, ...]:
    """Clips (B, T, C, H, W), a gate, the weights and the bias of both convolutions."""
    generator = torch.Generator().manual_seed(0)
    batch, frames, _, *size = shape
    shapes = (shape, (batch, 2, frames, *size), (2, 2, 3, 3), (2,))
    x, gate, weight, bias = (torch.randn(s, generator=generator).to(DEVICE) for s in shapes)
    return x, gate.tanh(), weight, bias


def _steps(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As GSF's authors write it: frames moved to the third axis and back, each step by an operator of PyTorch."""
    half = x.shape[2] // 2
    groups = []
    for k, u in enumerate(x.transpose(1, 2).contiguous().split(half, 1)):
        passed = gate[:, k : k + 1] * u
        rest = u - passed
        moved = torch.zeros_like(passed)
        if k == 0:
            moved[:, :, :-1] = passed[:, :, 1:]
        else:
            moved[:, :, 1:] = passed[:, :, :-1]
        pair = torch.stack([moved.mean((3, 4)), rest.mean((3, 4))], 1)
        phi = F.conv2d(pair, weight[k : k + 1], bias[k : k + 1], padding=1).sigmoid()[:, 0, ..., None, None]
        fused = moved * phi + rest * (1 - phi)
        groups.append(fused.unflatten(1, (2, half // 2)).transpose(1, 2).reshape(fused.shape))
    return torch.cat(groups, 1).transpose(1, 2).contiguous()


def _forward(call: Callable[..., Tensor]) -> Callable[[Shape], Side]:
    def side(shape: Shape) -> Side:
        given = _arguments(shape)
        return lambda: call(*given)

    return side


def _with_gradient(call: Callable[..., Tensor]) -> Callable[[Shape], Side]:
    def side(shape: Shape) -> Side:
        leaves = [t.requires_grad_() for t in _arguments(shape)]
        gradient = torch.ones(shape, device=DEVICE)
        return lambda: torch.autograd.grad(call(*leaves), leaves, gradient)

    return side


_CALLS = {
    "gate_shift_fuse": functional.gate_shift_fuse,
    "steps": _steps,
    "steps, torch.compile": torch.compile(_steps, dynamic=False),
}
FORWARD = {name: _forward(call) for name, call in _CALLS.items()}
WITH_GRADIENT = {name: _with_gradient(call) for name, call in _CALLS.items()}
