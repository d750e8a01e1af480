"""Gram entries of the two gradients, and the projection of the task gradient off the conflict."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from prograd_fast.reference.losses import accumulation_dtype

Scope = Literal["tensor", "row", "global"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_CHUNK = 4096  # elements that PyTorch sums on one thread


def n_units(tensor: Tensor, scope: Scope) -> int:
    """How many conflict tests `tensor` takes part in: its rows for "row" (a 0-d tensor is one row), else one."""
    return tensor.shape[0] if scope == "row" and tensor.dim() > 0 else 1


def all_units(tensors: Sequence[Tensor], scope: Scope) -> int:
    """How many conflict tests a list of tensors takes."""
    if scope == "row":
        return sum(n_units(tensor, scope) for tensor in tensors)
    return 1 if scope == "global" else len(tensors)


def _as_units(tensor: Tensor, units: int, dtype: torch.dtype) -> Tensor:
    """(units, elements of each), contiguous, so that the strides of a gradient do not change the order of its sums."""
    size = tensor.numel() // units if units else 0  # spelled out: -1 is ambiguous for empty tensors
    return tensor.to(dtype).reshape(units, size).contiguous()


def _row_sums(x: Tensor) -> Tensor:
    """x.sum(1) in chunks of one size, so that the number of threads does not change the order of the additions."""
    while x.shape[1] > _CHUNK:
        x = torch.nn.functional.pad(x, (0, -x.shape[1] % _CHUNK)).reshape(len(x), -1, _CHUNK).sum(2)
    return x.sum(1)


def gram(task: Sequence[Tensor], general: Sequence[Tensor | None], scope: Scope = "tensor") -> Tensor:
    """‖a‖², ⟨a,b⟩ and ‖b‖² for every unit of the conflict test.

    Args:
        task: gradients a of the task loss, any shapes, any real float dtypes.
        general: gradients b of the general loss, each of the shape and device of its partner; None counts as zero.
        scope: the unit that is tested as a whole: each "tensor", each "row" (leading index of each tensor), or all
            tensors together ("global").

    Returns:
        (U, 3), on the first tensor's device, float32 or the widest dtype given. U is the number of tensors, the total
        of their leading sizes (a 0-d tensor has one row), or 1.

    Raises:
        ValueError: the lists differ in length, or a pair in shape or device.
        TypeError: a gradient is sparse, complex or not floating point.
    """
    check_pairs(task, general)
    if not task:
        return torch.zeros(0 if scope != "global" else 1, 3)
    dtype = accumulation_dtype(*task, *(b for b in general if b is not None))
    device = task[0].device
    entries = []
    for a, b in zip(task, general, strict=True):
        units = n_units(a, scope)
        a = _as_units(a, units, dtype)
        b = torch.zeros_like(a) if b is None else _as_units(b, units, dtype)
        entries.append(torch.stack([_row_sums(a * a), _row_sums(a * b), _row_sums(b * b)], dim=1).to(device))
    rows = torch.cat(entries)
    return rows.sum(dim=0, keepdim=True) if scope == "global" else rows


def conflict_coefficients(entries: Tensor) -> Tensor:
    """min(0, ⟨a,b⟩) / ‖b‖² per unit, and 0 wherever that is not a usable number.

    A zero, vanishing or non-finite ‖b‖², and a non-finite ⟨a,b⟩ or quotient, give 0: the task gradient then goes
    through unchanged.

    Args:
        entries: (..., 3) as `gram` returns them.

    Returns:
        (...), never positive, never NaN.
    """
    dot, norm = entries[..., 1], entries[..., 2]
    # below the smallest normal number the quotient has no correct digits left
    quotient = dot.clamp(max=0) / norm
    usable = (norm >= torch.finfo(norm.dtype).tiny) & norm.isfinite() & quotient.isfinite()
    return torch.where(usable, quotient, 0.0)


def prograd_coefficients(entries: Tensor, lambda_: float = 1.0) -> Tensor:
    """(alpha, beta) of ProGrad's projection alpha·a + beta·b: 1 and -λ·`conflict_coefficients`.

    Args:
        entries: (U, 3) as `gram` returns them.
        lambda_: λ, the share of the conflict that is removed.

    Returns:
        (U, 2); (1, 0) where nothing is projected.
    """
    beta = -lambda_ * conflict_coefficients(entries)
    return torch.stack([torch.ones_like(beta), beta], dim=1)


def combine(a: Tensor, b: Tensor, coefficients: Tensor) -> Tensor:
    """alpha·a + beta·b for every unit of one tensor; b is left out where beta is 0, however large it is.

    Args:
        a: task gradient, any shape.
        b: general gradient of a's shape.
        coefficients: (units, 2) alpha and beta of a's own units; see `split_units`.

    Returns:
        a's shape, in the accumulation dtype.
    """
    dtype = accumulation_dtype(a, b)
    rows = _as_units(a, len(coefficients), dtype)
    alpha, beta = coefficients.to(a.device, dtype).unsqueeze(2).unbind(1)
    combined = alpha * rows + beta * _as_units(b, len(coefficients), dtype)
    return torch.where(beta == 0, alpha * rows, combined).reshape(a.shape)


def project(
    task: Sequence[Tensor], general: Sequence[Tensor | None], lambda_: float = 1.0, scope: Scope = "tensor"
) -> list[Tensor]:
    """Remove from the task gradient its part against the general gradient.

        g = a - λ · min(0, ⟨a,b⟩) / ‖b‖² · b

    so that ⟨g,b⟩ = (1-λ)⟨a,b⟩ where they conflict, and g = a where they do not.

    Source: Zhu et al., arXiv:2205.14865, eq. 5; the authors' code tests and projects each tensor by itself.

    Args:
        task: gradients a, any shapes and real float dtypes.
        general: gradients b, each of its partner's shape and device; None, zero and non-finite ones leave a as it is.
        lambda_: λ ≥ 0: 0 keeps a, 1 removes the whole conflict.
        scope: "tensor", "row" or "global"; see `gram`.

    Returns:
        The projected gradients, in the dtypes and shapes of `task`.

    Raises:
        ValueError, TypeError: as `gram`.
    """
    coefficients = prograd_coefficients(gram(task, general, scope), lambda_)
    parts = split_units(coefficients, task, scope)
    return [a if b is None else combine(a, b, c).to(a.dtype) for a, b, c in zip(task, general, parts, strict=True)]


def split_units(coefficients: Tensor, task: Sequence[Tensor], scope: Scope) -> Sequence[Tensor]:
    """The coefficients of each tensor's own units, one 1-d tensor per task gradient."""
    if scope == "global":
        return [coefficients] * len(task)
    return coefficients.split([n_units(a, scope) for a in task])


def check_pairs(task: Sequence[Tensor], general: Sequence[Tensor | None]) -> None:
    """Raise for pairs of gradients that no projection is defined for."""
    if len(task) != len(general):
        raise ValueError(
            f"general: expected one gradient (or None) per task gradient, got {len(general)} for {len(task)}."
        )
    for i, (a, b) in enumerate(zip(task, general, strict=True)):
        for name, gradient in (("task", a), ("general", b)):
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise TypeError(
                    f"{name}[{i}]: expected a dense gradient, got layout {gradient.layout}. "
                    "Use sparse=False in the embedding that made it."
                )
            if not gradient.is_floating_point():
                raise TypeError(
                    f"{name}[{i}]: expected a real floating-point gradient, got {gradient.dtype}. "
                    "Keep such parameters in an optimizer of their own."
                )
        if b is not None and a.shape != b.shape:
            raise ValueError(
                f"general[{i}]: expected the task gradient's shape {tuple(a.shape)}, got {tuple(b.shape)}. "
                "Both gradients must be taken with respect to the same parameter."
            )
        if b is not None and a.device != b.device:
            raise ValueError(
                f"general[{i}]: expected the task gradient's device {a.device}, got {b.device}. "
                "Move it there before projecting."
            )
