"""Guards further derivatives of the losses: autograd's, through the formulas, on every backend and in both ways in."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prograd_fast import functional, reference
from prograd_fast.ops.registry import SHORTCUTS
from tests.ops.support import BACKENDS, normal, running_on

F64 = torch.float64
LABELS = torch.tensor([0, 4, 1])
WEIGHTS = {
    "teacher_offset": normal(5, seed=3, dtype=F64),
    "task_weight": normal(3, seed=4, dtype=F64),
    "general_weight": normal(3, seed=6, dtype=F64),
}

Loss = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]


def losses(functions: object) -> dict[str, tuple[Loss, Tensor]]:
    """Every loss that can be differentiated, as a function of its one free argument, from a module of functions."""
    teacher, features, classes = (
        normal(3, 5, seed=1, dtype=F64),
        normal(3, 4, seed=2, dtype=F64),
        normal(5, 4, dtype=F64),
    )
    templates = normal(2, 5, 4, seed=7, dtype=F64)
    dual, linear = functions.dual_loss, functions.linear_dual_loss
    return {
        "dual_loss": (lambda z: dual(z, teacher, LABELS, 2.0), normal(3, 5, dtype=F64)),
        "dual_loss, weights, rows": (
            lambda z: dual(z, teacher, LABELS, 0.5, "soft_ce", reduction="none", **WEIGHTS),
            normal(3, 5, dtype=F64),
        ),
        "dual_loss, weights, sum": (
            lambda z: dual(z, teacher, LABELS, 0.5, reduction="sum", **WEIGHTS),
            normal(3, 5, dtype=F64),
        ),
        "linear_dual_loss": (lambda w: linear(features, w, 2 * classes, LABELS, 3.0, 2.0, **WEIGHTS), classes),
        "head_dual_loss": (
            lambda x: functions.head_dual_loss(x, features, classes, LABELS, 2.0, bias=WEIGHTS["teacher_offset"]),
            normal(3, 4, seed=9, dtype=F64),
        ),
        "text_to_text_loss": (lambda u: functions.text_to_text_loss(u, templates, 3.0), classes),
        "sampled_cross_entropy": (
            lambda z: functions.sampled_cross_entropy(z, LABELS, "none"),
            normal(2, 3, 5, seed=8, dtype=F64),
        ),
        "sampled_log_probs": (functions.sampled_log_probs, normal(2, 3, 5, seed=8, dtype=F64)),
        "squared_error": (lambda x: functions.squared_error(x, teacher, "sum"), normal(3, 5, dtype=F64)),
        "soft_wing": (lambda x: functions.soft_wing(x, teacher, 0.7, 3.0, 0.4), normal(3, 5, dtype=F64)),
    }


NAMES = sorted(losses(functional))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_finite_differences(backend: str, name: str) -> None:
    loss, argument = losses(functional)[name]
    with running_on(backend):
        assert torch.autograd.gradgradcheck(loss, argument.clone().requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_penalty_is_the_formulas(name: str) -> None:
    """A penalty on the gradient's norm, as users take it: value and gradient are those of the formula."""
    found = []
    for functions in (functional, reference):
        loss, argument = losses(functions)[name]
        argument = argument.clone().requires_grad_()
        value = loss(argument)
        total = sum(part.sum() for part in (value if isinstance(value, tuple) else (value,)))
        (gradient,) = torch.autograd.grad(total, argument, create_graph=True)
        penalty = gradient.square().sum()
        found.append((penalty, *torch.autograd.grad(penalty, argument)))
    torch.testing.assert_close(found[0], found[1])


def test_one_loss_alone() -> None:
    """The other loss is not in the second derivative, even where it has no number."""
    student, teacher = normal(3, 5).requires_grad_(), normal(3, 5)
    teacher[0, 0] = torch.inf
    task, general = functional.dual_loss(student, teacher, LABELS)
    assert general.isnan()
    (gradient,) = torch.autograd.grad(task, student, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), student)
    assert second.isfinite().all()
    assert second.abs().sum() > 0


def test_third_derivative() -> None:
    student, teacher = normal(3, 5, dtype=F64).requires_grad_(), normal(3, 5, seed=1, dtype=F64)

    def second(z: Tensor) -> Tensor:
        task, general = functional.dual_loss(z, teacher, LABELS)
        (gradient,) = torch.autograd.grad(task + general, z, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), z, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, student)


def test_first_derivative_is_the_kernels_without_create_graph() -> None:
    """Nothing but create_graph=True goes through the formula: the operator is called once."""
    student, teacher = normal(3, 5).requires_grad_(), normal(3, 5, seed=1)
    task, _ = functional.dual_loss(student, teacher, LABELS)
    calls = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with Count():
        task.backward()
    assert not [call for call in calls if "softmax" in str(call) or "prograd_fast" in str(call)]


@pytest.mark.parametrize("way", ["eager", "torch.library"])
@pytest.mark.parametrize("changed", ["teacher", "labels"])
def test_an_argument_that_is_changed_before_the_backward_is_noticed(
    changed: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formula would see other numbers than the loss did."""
    if way == "torch.library":
        monkeypatch.delitem(SHORTCUTS, "dual_loss", raising=False)
    student, arguments = normal(3, 5).requires_grad_(), {"teacher": normal(3, 5, seed=1), "labels": LABELS.clone()}
    task, _ = functional.dual_loss(student, *arguments.values())
    arguments[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(task, student)
