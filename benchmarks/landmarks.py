"""Sides of the operators for landmarks, heat maps and masks: kernels, and formulas with and without compilation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import DEVICE, Side
from prograd_fast import functional, reference

Call = Callable[..., Any]
NODES, EDGES = 98, 294  # WFLW's landmarks, three neighbours each


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def _neighbours() -> tuple[Tensor, Tensor]:
    rows = torch.arange(NODES, device=DEVICE).repeat_interleave(EDGES // NODES)
    return rows, (rows * 7 + torch.arange(EDGES, device=DEVICE)) % NODES


def _sides(name: str, build: Callable[[Call, int], Side]) -> dict[str, Callable[[int], Side]]:
    ours, formula = getattr(functional, name), getattr(reference, name)
    calls = {"kernel": ours, "formula": formula, "formula, torch.compile": torch.compile(formula, dynamic=False)}
    return {name: lambda size, call=call: build(call, size) for name, call in calls.items()}


# ---- with the gradient; sizes are faces, maps (64 x 64) and masks (448 x 448)


def _edges(call: Call, faces: int) -> Side:
    rows, columns = _neighbours()
    leaves = [_draw(faces, NODES, 128, seed=s).requires_grad_() for s in (1, 2)] + [_draw(EDGES).requires_grad_()]
    gradient = _draw(faces, NODES, 128, seed=3)
    return lambda: torch.autograd.grad(call(*leaves, rows, columns, False), leaves, gradient)


def _soft_argmax(call: Call, maps: int) -> Side:
    h, gradient = _draw(maps // NODES, NODES, 64, 64).requires_grad_(), _draw(maps // NODES, NODES, 2, seed=1)
    return lambda: torch.autograd.grad(call(h, 5, 10.0), h, gradient)


def _focal(call: Call, masks: int, max_mult: float = -1.0) -> Side:
    z, labels = _draw(masks, 448 * 448).requires_grad_(), (_draw(masks, 448 * 448, seed=1) > 0).long()
    return lambda: torch.autograd.grad(call(z, labels, max_mult=max_mult).mean(), z)


def _cut_focal(call: Call, masks: int) -> Side:
    return _focal(call, masks, max_mult=2.0)


def _structure(call: Call, faces: int) -> Side:
    x, t, ends = (4 * _draw(faces, NODES, 2)).requires_grad_(), 4 * _draw(faces, NODES, 2, seed=1), _neighbours()
    return lambda: torch.autograd.grad(sum(call(x, t, *ends)), x)


EDGE_SUMS = _sides("edge_softmax_sum", _edges)
SOFT_ARGMAX = _sides("local_soft_argmax", _soft_argmax)
FOCAL = _sides("normalised_focal_loss", _focal)
CUT_FOCAL = _sides("normalised_focal_loss", _cut_focal)
STRUCTURE = _sides("structure_loss", _structure)

# ---- the forward's kernels on memory that stays in the caches, and how many elements they have


def _focal_alone(max_mult: float) -> Side:
    z, labels = _draw(1, PIXELS_ALONE), (_draw(1, PIXELS_ALONE, seed=1) > 0).long()
    results = {"losses": z.new_empty(1), "cotangents": torch.empty_like(z)}
    operator = torch.ops.prograd_fast.normalised_focal_loss_out.default
    return lambda: operator(z, labels, 0.5, 2.0, max_mult, 1e-12, **results)


def _structure_alone() -> Side:
    x, t = (4 * _draw(FACES_ALONE, NODES, 2, seed=seed) for seed in (0, 1))
    results = {"losses": x.new_empty(2), "cotangents": x.new_empty(2, *x.shape)}
    operator, ends = torch.ops.prograd_fast.structure_loss_out.default, _neighbours()
    return lambda: operator(x, t, *ends, 2.0, 20.0, 0.5, 1.0, **results)


PIXELS_ALONE, FACES_ALONE = 2**16, 256
FOCAL_ALONE = partial(_focal_alone, -1.0), PIXELS_ALONE
CUT_FOCAL_ALONE = partial(_focal_alone, 2.0), PIXELS_ALONE
STRUCTURE_ALONE = _structure_alone, FACES_ALONE * NODES * 2
