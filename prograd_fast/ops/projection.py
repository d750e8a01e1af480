"""Gram entries of the two gradients, and the projection of the task gradient off the conflict."""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_apart
from prograd_fast.ops.common import SCOPES, Scope, accumulation_dtype
from prograd_fast.ops.registry import define, shortcut_for

# ---- formulas

_CHUNK = 4096  # elements that PyTorch sums on one thread


def n_units(tensor: Tensor, scope: Scope) -> int:
    """Count the conflict tests that `tensor` takes part in: its rows for "row" (a 0-d tensor is one row), else one."""
    return tensor.shape[0] if scope == "row" and tensor.dim() > 0 else 1


def all_units(tensors: Sequence[Tensor], scope: Scope) -> int:
    """Count the conflict tests that a list of tensors takes."""
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


def gram_formula(task: Sequence[Tensor], general: Sequence[Tensor | None], scope: Scope = "tensor") -> Tensor:
    """‖a‖², ⟨a,b⟩ and ‖b‖² for every unit of the conflict test.

    Arguments, result and errors are those of `gram`, for any real float dtypes.
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


def floored(entries: Tensor, noise_floor: float) -> Tensor:
    """Gram entries in which a general gradient that is only rounding counts as none: ⟨a,b⟩ = ‖b‖² = 0.

    That is where ‖b‖² ≤ floor²·‖a‖², computed in the dtype of the entries. A unit with an entry that is not finite
    stays as it is: nothing can be told about it.

    Args:
        entries: (..., 3) as `gram` returns them.
        noise_floor: at least 0; 0 returns the entries themselves.

    Returns:
        As `entries`.
    """
    if noise_floor == 0:
        return entries
    task_norm, norm = entries[..., 0], entries[..., 2]
    # one factor after the other: floor² alone leaves the range of float32 earlier than the product does
    absent = (norm <= noise_floor * task_norm * noise_floor) & entries.isfinite().all(-1)
    zeros = torch.zeros_like(norm)
    return torch.where(absent.unsqueeze(-1), torch.stack([task_norm, zeros, zeros], dim=-1), entries)


def conflict_coefficients(entries: Tensor, noise_floor: float = 0.0) -> Tensor:
    """min(0, ⟨a,b⟩) / ‖b‖² per unit, and 0 wherever that is not a usable number.

    A zero, vanishing or non-finite ‖b‖², one at or below floor²·‖a‖², and a non-finite ⟨a,b⟩ or quotient, give 0: the
    task gradient then goes through unchanged.

    Args:
        entries: (..., 3) as `gram` returns them.
        noise_floor: see `floored`.

    Returns:
        (...), never positive, never NaN.
    """
    entries = floored(entries, noise_floor)
    dot, norm = entries[..., 1], entries[..., 2]
    # below the smallest normal number the quotient has no correct digits left
    quotient = dot.clamp(max=0) / norm
    usable = (norm >= torch.finfo(norm.dtype).tiny) & norm.isfinite() & quotient.isfinite()
    return torch.where(usable, quotient, 0.0)


def prograd_coefficients(entries: Tensor, lambda_: float = 1.0, noise_floor: float = 0.0) -> Tensor:
    """(alpha, beta) of ProGrad's projection alpha·a + beta·b: 1 and -λ·`conflict_coefficients`.

    Args:
        entries: (U, 3) as `gram` returns them.
        lambda_: λ, the share of the conflict that is removed.
        noise_floor: see `floored`.

    Returns:
        (U, 2); (1, 0) where nothing is projected.
    """
    beta = -lambda_ * conflict_coefficients(entries, noise_floor)
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


def project_formula(
    task: Sequence[Tensor],
    general: Sequence[Tensor | None],
    lambda_: float = 1.0,
    scope: Scope = "tensor",
    noise_floor: float = 0.0,
) -> list[Tensor]:
    """Remove from the task gradient its part against the general gradient.

        g = a - λ · min(0, ⟨a,b⟩) / ‖b‖² · b

    so that ⟨g,b⟩ = (1-λ)⟨a,b⟩ where they conflict, and g = a where they do not, or where ‖b‖ ≤ floor·‖a‖.

    Source: Zhu et al., arXiv:2205.14865, eq. 5; the authors' code tests and projects each tensor by itself. Arguments,
    results and errors are those of `project`, for any real float dtypes.
    """
    coefficients = prograd_coefficients(gram_formula(task, general, scope), lambda_, noise_floor)
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


# ---- operators
#
# gram_out     entries (U, 3): ‖a‖², ⟨a,b⟩, ‖b‖². scope: 0 each tensor, 1 each row, 2 all together
# project_out  projected = alpha·task + beta·general, each a tensor of its own or the task gradient itself.
#              coefficients None: ProGrad's, from the entries, which are written; otherwise (U, 2), and entries are left
#              alone


def check_gradients(call: dict[str, Any]) -> Arguments:
    """The two gradients of some tensors, and what belongs to their units."""
    task, scope, entries = call["task"], call["scope"], call["entries"]
    if not 0 <= scope < len(SCOPES):
        raise ValueError(f"scope: expected 0 (tensor), 1 (row) or 2 (global), got {scope}.")
    first = task[0] if task else entries
    if first is None:
        raise TypeError("task[0]: expected a tensor, got None.")
    arguments = Arguments(first)
    arguments.same("task", task, task)
    arguments.same("general", call["general"], task)
    units = all_units(task, SCOPES[scope])
    arguments.result("entries", entries, (units, 3))
    arguments.floating("coefficients", call.get("coefficients"), (units, 2))
    return arguments


def check_rule(lambda_: float, noise_floor: float) -> None:
    """Raise ValueError unless both numbers of ProGrad's rule are finite and at least 0."""
    if not 0 <= lambda_ < inf:
        raise ValueError(f"lambda_: expected a number of at least 0, got {lambda_}.")
    check_noise_floor(noise_floor)


def check_noise_floor(noise_floor: float) -> None:
    """Raise ValueError unless `noise_floor` is a finite number of at least 0."""
    if not 0 <= noise_floor < inf:
        raise ValueError(f"noise_floor: expected a number of at least 0, got {noise_floor}.")


def _check_gram(call: dict[str, Any]) -> None:
    check_gradients(call)


def _check_project(call: dict[str, Any]) -> None:
    arguments, task, projected = check_gradients(call), call["task"], call["projected"]
    check_rule(call["lambda_"], call["noise_floor"])
    arguments.same("projected", projected, task, written=True)
    for i, (a, g) in enumerate(zip(task, projected, strict=True)):
        if g.dtype != a.dtype:
            raise TypeError(f"projected[{i}]: expected {a.dtype} as the task gradient, got {g.dtype}.")
    check_apart("projected", projected, task, call["general"])


def _gram_kernel(task: list[Tensor], general: list[Tensor], scope: int, *, entries: Tensor) -> None:
    entries.copy_(gram_formula(task, general, SCOPES[scope]))


def _project_kernel(
    task: list[Tensor],
    general: list[Tensor],
    coefficients: Tensor | None,
    lambda_: float,
    noise_floor: float,
    scope: int,
    *,
    entries: Tensor,
    projected: list[Tensor],
) -> None:
    gradients = projected_gradients(task, general, coefficients, lambda_, noise_floor, scope, entries)
    for result, g in zip(projected, gradients, strict=True):
        result.copy_(g)


def projected_gradients(
    task: list[Tensor],
    general: list[Tensor],
    coefficients: Tensor | None,
    lambda_: float,
    noise_floor: float,
    scope: int,
    entries: Tensor,
) -> list[Tensor]:
    """alpha·a + beta·b in the accumulation dtype, as `project_out`; writes entries if there are no coefficients."""
    unit = SCOPES[scope]
    if coefficients is None:
        entries.copy_(gram_formula(task, general, unit))
        coefficients = prograd_coefficients(entries, lambda_, noise_floor)
    parts = split_units(coefficients, task, unit)
    return [combine(a, b, c) for a, b, c in zip(task, general, parts, strict=True)]


define(
    "gram_out(Tensor[] task, Tensor[] general, int scope, *, Tensor(a!) entries) -> ()",
    reference=_gram_kernel,
    check=_check_gram,
)
define(
    "project_out(Tensor[] task, Tensor[] general, Tensor? coefficients, float lambda_, float noise_floor, int scope, "
    "*, Tensor(a!) entries, Tensor(b!)[] projected) -> ()",
    reference=_project_kernel,
    check=_check_project,
)


# ---- functions


@torch.no_grad()
def gram(task: Sequence[Tensor], general: Sequence[Tensor | None], scope: Scope = "tensor") -> Tensor:
    """‖a‖², ⟨a,b⟩ and ‖b‖² for every unit of the conflict test, summed in an order that no thread count changes.

    Args:
        task: gradients a of the task loss, any shapes.
        general: gradients b of the general loss, each of its partner's shape and device; None counts as zero.
        scope: the unit that is tested as a whole: each "tensor" (default), each "row" (leading index), or "global".

    Returns:
        (U, 3), float32 or the widest dtype given, no graph. U is the number of tensors, of their rows, or 1.

    Raises:
        ValueError: the lists differ in length, a pair in shape or device, or `scope` is unknown.
        TypeError: a gradient is sparse, complex or not floating point.
    """
    b = paired(task, general, scope)
    entries = empty_entries(task, b, scope)
    if task:
        torch.ops.prograd_fast.gram_out(list(task), b, SCOPES.index(scope), entries=entries)
    return entries


@torch.no_grad()
def project(
    task: Sequence[Tensor],
    general: Sequence[Tensor | None],
    lambda_: float = 1.0,
    scope: Scope = "tensor",
    noise_floor: float = 0.0,
) -> list[Tensor]:
    """Remove from the task gradient its part against the general gradient: a - λ · min(0, ⟨a,b⟩) / ‖b‖² · b.

    Args:
        task: gradients a, any shapes; read only.
        general: gradients b, each of its partner's shape and device; None, zero and non-finite ones leave a as it is.
        lambda_: λ ≥ 0 (default: 1.0, the whole conflict).
        scope: as in `gram`.
        noise_floor: a stays as it is where ‖b‖² ≤ floor²·‖a‖², b then being rounding (default: 0.0).

    Returns:
        The projected gradients in the dtypes and shapes of `task`, no graph.

    Raises:
        ValueError, TypeError: as `gram`; or `lambda_` or `noise_floor` is negative or not finite.
    """
    b = paired(task, general, scope)
    check_rule(lambda_, noise_floor)
    if not task:
        return []
    entries = empty_entries(task, b, scope)
    return new_projected(task, list(task), b, None, lambda_, noise_floor, SCOPES.index(scope), entries)


def paired(task: Sequence[Tensor], general: Sequence[Tensor | None], scope: Any) -> list[Tensor]:
    """The general gradients, checked, with zeros for the missing ones."""
    if scope not in SCOPES:
        raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}.")
    check_pairs(task, general)
    return [torch.zeros_like(a) if b is None else b for a, b in zip(task, general, strict=True)]


def new_projected(
    like: Sequence[Tensor],
    task: list[Tensor],
    general: list[Tensor],
    coefficients: Tensor | None,
    lambda_: float,
    noise_floor: float,
    scope: int,
    entries: Tensor,
) -> list[Tensor]:
    """`project_out` into new memory in the dtypes of `task`, laid out like other tensors of their shapes."""
    shortcut = shortcut_for("projected", like[0])
    if shortcut is not None:
        results: list[Tensor] = shortcut(like, task, general, coefficients, lambda_, noise_floor, scope, entries)
        return results
    results = [torch.empty_like(p, dtype=a.dtype) for p, a in zip(like, task, strict=True)]
    torch.ops.prograd_fast.project_out(
        task, general, coefficients, lambda_, noise_floor, scope, entries=entries, projected=results
    )
    return results


def empty_entries(task: Sequence[Tensor], general: Sequence[Tensor], scope: Scope) -> Tensor:
    """Room for the Gram entries of these gradients, (U, 3) in the accumulation dtype."""
    units = all_units(task, scope)
    if not task:
        return torch.zeros(units, 3)
    return task[0].new_empty((units, 3), dtype=accumulation_dtype(*task, *general))
