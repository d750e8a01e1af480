"""`gram_out` and `project_`: the conflict test of two lists of gradients, and the projection."""

from typing import Any

from torch import Tensor

from prograd_fast.ops.checks import check_gradients
from prograd_fast.ops.registry import define
from prograd_fast.reference import projection as reference


def _check_gram(call: dict[str, Any]) -> None:
    check_gradients(call)


def _check_project(call: dict[str, Any]) -> None:
    check_gradients(call, written=True)


def _gram_out(task: list[Tensor], general: list[Tensor], scope: int, *, entries: Tensor) -> None:
    entries.copy_(reference.gram(task, general, reference.SCOPES[scope]))


def _project_(task: list[Tensor], general: list[Tensor], coefficients: Tensor, scope: int) -> None:
    parts = reference.split_units(coefficients, task, reference.SCOPES[scope])
    for a, b, unit_coefficients in zip(task, general, parts, strict=True):
        a.copy_(reference.combine(a, b, unit_coefficients))


define(
    "gram_out(Tensor[] task, Tensor[] general, int scope, *, Tensor(a!) entries) -> ()",
    reference=_gram_out,
    check=_check_gram,
)
define(
    "project_(Tensor(a!)[] task, Tensor[] general, Tensor coefficients, int scope) -> ()",
    reference=_project_,
    check=_check_project,
)
