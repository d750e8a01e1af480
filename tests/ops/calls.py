"""A valid call of every operator, of any sizes: for opcheck, and for the fuzzing that makes it wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.ops.support import accumulation, normal

Call = tuple[list[object], dict[str, Tensor]]
"""Positional arguments, and results by name."""


@dataclass(frozen=True)
class Sizes:
    """Sizes and dtype of a call's tensors. The default has no two sizes alike that mean different things."""

    rows: int = 3
    classes: int = 5
    width: int = 6
    samples: int = 4
    shapes: tuple[tuple[int, ...], ...] = ((4, 3), ())
    dtype: torch.dtype = torch.float64
    scope: int = 0
    reduction: int = 1

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        """Normal numbers."""
        return normal(*shape, seed=seed, dtype=self.dtype)

    @property
    def wide(self) -> torch.dtype:
        """The accumulation dtype."""
        return accumulation(self.dtype)

    def labels(self) -> Tensor:
        """(rows,) class indices."""
        generator = torch.Generator().manual_seed(5)
        return torch.randint(0, max(1, self.classes), (self.rows,), generator=generator)

    def losses(self, *leading: int) -> Tensor:
        """Room for losses, of single rows for reduction 0."""
        return torch.empty([*leading, *([self.rows] if self.reduction == 0 else [])], dtype=self.wide)

    @property
    def units(self) -> int:
        """Rows of the Gram entries."""
        return {0: len(self.shapes), 1: sum(shape[0] if shape else 1 for shape in self.shapes), 2: 1}[self.scope]


CALLS: dict[str, Callable[[Sizes], Call]] = {}


def call(function: Callable[[Sizes], Call]) -> Callable[[Sizes], Call]:
    """Register the call of the operator that the function is named after."""
    CALLS[function.__name__] = function
    return function


# ---- losses


def _row_options(s: Sizes) -> list[object]:
    return [s.labels(), normal(s.classes, dtype=s.wide), normal(s.rows, dtype=s.wide), None]


def _dual_results(s: Sizes, *like: int) -> dict[str, Tensor]:
    cotangents = torch.empty(2, *like, dtype=s.wide)
    return {"losses": s.losses(2), "cotangents": cotangents, "correct": torch.empty((), dtype=torch.int64)}


@call
def dual_loss_out(s: Sizes) -> Call:
    z, t = s.draw(s.rows, s.classes, seed=1), s.draw(s.rows, s.classes, seed=2)
    return [z, t, *_row_options(s), 2.0, False, s.reduction], _dual_results(s, s.rows, s.classes)


@call
def dual_loss(s: Sizes) -> Call:
    (z, *others), _ = dual_loss_out(s)
    return [z.requires_grad_(), *others], {}


@call
def linear_dual_loss_out(s: Sizes) -> Call:
    x, w, t = (s.draw(n, s.width, seed=n) for n in (s.rows, s.classes, s.classes))
    return [x, w, t, *_row_options(s), 3.0, 2.0, True, s.reduction], _dual_results(s, s.classes, s.width)


@call
def linear_dual_loss(s: Sizes) -> Call:
    (x, w, *others), _ = linear_dual_loss_out(s)
    return [x, w.requires_grad_(), *others], {}


@call
def head_dual_loss_out(s: Sizes) -> Call:
    x, t, w = (s.draw(n, s.width, seed=seed) for seed, n in enumerate((s.rows, s.rows, s.classes)))
    results = {"losses": s.losses(2), "cotangents": torch.empty(2, s.rows, s.width, dtype=s.wide)}
    return [x, t, w, s.labels(), normal(s.classes, dtype=s.wide), 2.0, True, s.reduction], results


@call
def head_dual_loss(s: Sizes) -> Call:
    (x, *others), _ = head_dual_loss_out(s)
    return [x.requires_grad_(), *others], {}


@call
def linear_cross_entropy_out(s: Sizes) -> Call:
    x, w = s.draw(s.rows, s.width, seed=1), s.draw(s.classes, s.width, seed=2)
    return [x, w, s.labels(), 3.0], {
        "loss": torch.empty((), dtype=s.wide),
        "cotangents": torch.empty_like(w, dtype=s.wide),
    }


@call
def linear_cross_entropy(s: Sizes) -> Call:
    (x, w, *others), _ = linear_cross_entropy_out(s)
    return [x, w.requires_grad_(), *others], {}


@call
def sampled_cross_entropy_out(s: Sizes) -> Call:
    z = s.draw(s.samples, s.rows, s.classes)
    return [z, s.labels(), s.reduction], {"losses": s.losses(), "cotangents": torch.empty_like(z, dtype=s.wide)}


@call
def sampled_cross_entropy(s: Sizes) -> Call:
    (z, *others), _ = sampled_cross_entropy_out(s)
    return [z.requires_grad_(), *others], {}


@call
def sampled_log_probs_out(s: Sizes) -> Call:
    z = s.draw(s.samples, s.rows, s.classes)
    return [z], {"log_probs": torch.empty(s.rows, s.classes, dtype=s.wide)}


@call
def sampled_log_probs(s: Sizes) -> Call:
    (z,), _ = sampled_log_probs_out(s)
    return [z.requires_grad_()], {}


@call
def difference_loss_out(s: Sizes) -> Call:
    x, t = s.draw(s.rows, s.classes, seed=1), s.draw(s.rows, s.classes, seed=2)
    results = {"loss": torch.empty((), dtype=s.wide), "cotangents": torch.empty_like(x, dtype=s.wide)}
    return [x, t, s.reduction == 1, 2.0, 20.0, 0.5, 0.25], results


@call
def difference_loss(s: Sizes) -> Call:
    (x, *others), _ = difference_loss_out(s)
    return [x.requires_grad_(), *others], {}


@call
def structure_loss_out(s: Sizes) -> Call:
    x, t = s.draw(s.samples, s.rows, s.width, seed=1), s.draw(s.samples, s.rows, s.width, seed=2)
    rows = torch.arange(s.rows)
    results = {"losses": torch.empty(2, dtype=s.wide), "cotangents": torch.empty(2, *x.shape, dtype=s.wide)}
    return [x, t, rows, rows.flip(0), 2.0, 20.0, 0.5, 0.25], results


@call
def structure_loss(s: Sizes) -> Call:
    (x, *others), _ = structure_loss_out(s)
    return [x.requires_grad_(), *others], {}


@call
def normalised_focal_loss_out(s: Sizes) -> Call:
    z, y = s.draw(s.rows, s.classes), normal(s.rows, s.classes, seed=1).sign().long()
    losses = torch.empty(s.rows, dtype=s.wide)
    return [z, y, 0.3, 2.0, 1.5, 1e-12], {"losses": losses, "cotangents": torch.empty_like(z, dtype=s.wide)}


@call
def normalised_focal_loss(s: Sizes) -> Call:
    (z, *others), _ = normalised_focal_loss_out(s)
    return [z.requires_grad_(), *others], {}


# ---- heat maps and graphs


@call
def local_soft_argmax_out(s: Sizes) -> Call:
    maps = s.draw(s.samples, s.rows, s.width, s.classes)
    peaks = torch.empty(s.samples, s.rows, dtype=torch.int64)
    return [maps, 3, 2.0], {"points": torch.empty(s.samples, s.rows, 2, dtype=s.wide), "peaks": peaks}


@call
def local_soft_argmax(s: Sizes) -> Call:
    (maps, *others), _ = local_soft_argmax_out(s)
    return [maps.requires_grad_(), *others], {}


@call
def local_soft_argmax_backward_out(s: Sizes) -> Call:
    (maps, *others), _ = local_soft_argmax_out(s)
    peaks = maps.flatten(2).argmax(2) if maps.numel() else torch.zeros(maps.shape[:2], dtype=torch.int64)
    return [s.draw(s.samples, s.rows, 2, seed=1), maps, peaks, *others], {"d_maps": torch.empty_like(maps)}


@call
def local_soft_argmax_backward(s: Sizes) -> Call:
    return local_soft_argmax_backward_out(s)[0], {}


@call
def edge_softmax_sum_out(s: Sizes) -> Call:
    own, other = (s.draw(s.samples, s.rows, s.width, seed=seed) for seed in (1, 2))
    n = max(1, s.rows)
    rows = torch.arange(2 * s.rows) % n
    columns = torch.cat([rows[: s.rows], rows[: s.rows].flip(0)])
    logits = s.draw(s.samples, 2 * s.rows, seed=3)
    return [own, other, logits, rows, columns, True], {"y": torch.empty_like(own)}


@call
def edge_softmax_sum(s: Sizes) -> Call:
    (own, other, logits, *others), _ = edge_softmax_sum_out(s)
    return [own.requires_grad_(), other.requires_grad_(), logits.requires_grad_(), *others], {}


@call
def edge_softmax_sum_backward_out(s: Sizes) -> Call:
    args, _ = edge_softmax_sum_out(s)
    own, other, logits = (torch.empty_like(x) for x in args[:3])  # type: ignore[call-overload]
    gradient = s.draw(s.samples, s.rows, s.width, seed=4)
    return [gradient, *args], {"d_own": own, "d_other": other, "d_logits": logits}


@call
def edge_softmax_sum_backward(s: Sizes) -> Call:
    return edge_softmax_sum_backward_out(s)[0], {}


# ---- gradients and updates


def _lists(s: Sizes, count: int) -> list[list[Tensor]]:
    return [[s.draw(*shape, seed=seed).abs() for shape in s.shapes] for seed in range(count)]


@call
def gram_out(s: Sizes) -> Call:
    return [*_lists(s, 2), s.scope], {"entries": torch.empty(s.units, 3, dtype=s.wide)}


@call
def project_out(s: Sizes) -> Call:
    results = {"entries": torch.zeros(s.units, 3, dtype=s.wide), "projected": _lists(s, 1)[0]}
    return [*_lists(s, 2), None, 1.0, 0.5, s.scope], results


@call
def project_adamw_(s: Sizes) -> Call:
    steps = [torch.tensor(1.0) for _ in s.shapes]
    options = [torch.zeros(s.units, 3, dtype=s.wide), None, None, 1e-3, 0.9, 0.99, 1e-8, 0.1, 1.0, 0.5, s.scope]
    return [*_lists(s, 5), [], steps, *options, False, False, None], {}


@call
def project_sgd_(s: Sizes) -> Call:
    options = [torch.zeros(s.units, 3, dtype=s.wide), None, None, 1e-3, 0.9, 0.0, 0.1, 1.0, 0.5, s.scope]
    return [*_lists(s, 4), *options, False, False, False, None], {}


# ---- the prompt encoder: `rows` are those of the longest segment, `samples` the columns of a head


@call
def shared_prefix_attention_out(s: Sizes) -> Call:
    lengths = torch.tensor([0, max(1, s.rows), 1, 2])
    offsets, d, groups = lengths.cumsum(0), 2 * max(1, s.samples), 2
    packed = s.draw(groups, int(offsets[-1]), 3 * d, seed=1)
    query, key_value = packed.split([d, 2 * d], -1)
    prefix = s.draw(groups, s.classes, 2 * d, seed=2)
    return [query, key_value, prefix, 0, offsets, 2, 0.5, False], {"out": torch.zeros_like(query)}


@call
def shared_prefix_attention_backward_out(s: Sizes) -> Call:
    (query, key_value, prefix, *others), _ = shared_prefix_attention_out(s)
    of = {"d_query": query, "d_key_value": key_value, "d_prefix": prefix}
    results = {name: torch.zeros(2, *like.shape, dtype=s.dtype) for name, like in of.items()}
    return [s.draw(2, *query.shape, seed=3), query, key_value, prefix, *others], results


@call
def add_layer_norm_out(s: Sizes) -> Call:
    x, branch = s.draw(s.rows, s.width, seed=1), s.draw(s.rows, s.width, seed=2)
    weight, bias = normal(s.width, seed=3, dtype=s.wide), normal(s.width, seed=4, dtype=s.wide)
    statistics = torch.ones(s.rows, 2, dtype=s.wide)
    written = {"total": torch.zeros_like(x), "normed": torch.zeros_like(x), "statistics": statistics}
    return [x, branch, weight, bias, 1e-5], written


@call
def layer_norm_backward_(s: Sizes) -> Call:
    (x, _, weight, _, _), results = add_layer_norm_out(s)
    d_total, d_normed = s.draw(2, s.rows, s.width, seed=5), s.draw(2, s.rows, s.width, seed=6)
    return [d_total, d_normed, x, results["statistics"], weight], {}


@call
def gelu_out(s: Sizes) -> Call:
    x = s.draw(s.rows, s.width)
    return [x, s.reduction], {"out": torch.zeros_like(x)}


@call
def gelu_backward_(s: Sizes) -> Call:
    return [s.draw(2, s.rows, s.width, seed=1), s.draw(s.rows, s.width, seed=2), s.reduction], {}


@call
def linear_gelu_out(s: Sizes) -> Call:
    x, weight, bias = s.draw(s.rows, s.width), s.draw(s.classes, s.width, seed=1), s.draw(s.classes, seed=2)
    return [x, weight, bias, s.reduction], {name: s.draw(s.rows, s.classes) for name in ("hidden", "active")}


@call
def linear_gelu_backward_out(s: Sizes) -> Call:
    gradient, weight = s.draw(2, s.rows, s.width), s.draw(s.width, s.classes, seed=1)
    hidden = s.draw(s.rows, s.classes, seed=2)
    return [gradient, weight, hidden, s.reduction], {"d_hidden": s.draw(2, s.rows, s.classes)}


# ---- affine shift: channels are `classes`, positions rows by width


def _shift(s: Sizes) -> tuple[list[int], list[int]]:
    first = s.classes // 2
    return [first, s.classes - first], [1, -2]


@call
def affine_shift_out(s: Sizes) -> Call:
    x, bias = (s.draw(s.samples, s.classes, s.rows, s.width, seed=seed) for seed in (1, 2))
    return [x, normal(s.samples, s.classes, dtype=s.wide), bias, *_shift(s)], {"out": torch.zeros_like(x)}


@call
def affine_shift_backward_out(s: Sizes) -> Call:
    (x, scale, gradient, *shift), _ = affine_shift_out(s)
    return [gradient, x, scale, *shift], {"d_x": torch.zeros_like(x), "d_scale": torch.zeros_like(scale)}


@call
def affine_shift(s: Sizes) -> Call:
    (x, scale, bias, *shift), _ = affine_shift_out(s)
    return [x.requires_grad_(), scale.requires_grad_(), bias.requires_grad_(), *shift], {}


# ---- gate, shift and fuse: frames are `samples`, used channels four times `rows`, positions width by 2


def _clips(s: Sizes) -> list[Tensor]:
    """x with a channel that is not used, and a gate."""
    channels = 4 * s.rows
    return [s.draw(2, s.samples, channels + 1, s.width, 2), s.draw(2, 2, s.samples, s.width, 2, seed=1)]


def _for_channels(s: Sizes, count: int) -> Tensor:
    return normal(2, count, 2 * s.rows, s.samples, seed=count, dtype=s.wide)


@call
def gate_shift_means_out(s: Sizes) -> Call:
    return [*_clips(s)], {"means": _for_channels(s, 4)}


@call
def gate_shift_fuse_out(s: Sizes) -> Call:
    x, gate = _clips(s)
    return [x, gate, _for_channels(s, 2)], {"out": torch.zeros_like(x)}


@call
def gate_shift_slopes_out(s: Sizes) -> Call:
    x, gate = _clips(s)
    return [torch.ones_like(x), x, gate], {"d_phi": _for_channels(s, 2)}


@call
def gate_shift_fuse_backward_out(s: Sizes) -> Call:
    x, gate = _clips(s)
    results = {"d_x": torch.zeros_like(x), "d_gate": torch.zeros_like(gate)}
    return [torch.ones_like(x), x, gate, _for_channels(s, 2), _for_channels(s, 4)], results


@call
def gate_shift_fuse(s: Sizes) -> Call:
    tensors = [*_clips(s), normal(2, 2, 3, 3, dtype=s.wide), normal(2, dtype=s.wide)]
    return [*(x.requires_grad_() for x in tensors), 4 * s.rows], {}
