"""Guards dual_loss in eager mode (csrc/bindings/eager_loss.cpp): the same as through torch.library, only sooner."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prograd_fast import functional
from prograd_fast.backends import extension
from prograd_fast.ops.registry import SHORTCUTS
from tests.ops.support import BACKENDS, DTYPES, accumulation, normal, running_on

TEACHER = normal(3, 7, seed=2)
LABELS = torch.tensor([2, 0, 6])


def losses(student: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    return functional.dual_loss(student, TEACHER.to(student.dtype), LABELS, 2.0, **options)


def gradients(student: Tensor, **options: Any) -> list[Tensor]:
    """Gradients of each loss, of a sum that scales both, and through an operation before; all on the one graph."""
    student = student.clone().requires_grad_()
    task, general = losses(2 * student, **options)
    factors = normal(*task.shape, seed=5, dtype=task.dtype)
    sums = [task.sum(), general.sum(), (factors * task).sum() + 3 * general.sum()]
    return [torch.autograd.grad(value, student, retain_graph=True)[0] for value in sums]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_as_through_torch_library(
    backend: str, dtype: torch.dtype, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = normal(3, 7, dtype=dtype)
    acc = accumulation(dtype)
    options = {
        "reduction": reduction,
        "teacher_offset": normal(7, seed=3, dtype=acc),
        "task_weight": normal(3, seed=4, dtype=acc),
        "general_weight": normal(3, seed=6, dtype=acc),
    }
    with running_on(backend):
        fast = [*losses(student, **options), *gradients(student, **options)]
        monkeypatch.delitem(SHORTCUTS, "dual_loss", raising=False)
        plain = [*losses(student, **options), *gradients(student, **options)]
    for got, wanted in zip(fast, plain, strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


def test_plain_tensors_take_it() -> None:
    task, general = losses(normal(3, 7).requires_grad_())
    assert task.grad_fn is general.grad_fn
    # torch.library's is a Python class, "GeneratedBackwardFor_..."
    assert ("prograd::" in task.grad_fn.name()) == (extension.EXTENSION is not None)
    assert not losses(normal(3, 7))[0].requires_grad
    with torch.no_grad():
        assert not losses(normal(3, 7).requires_grad_())[0].requires_grad
    with torch.inference_mode():
        assert losses(normal(3, 7))[0].is_inference()


def test_a_changed_gradient_does_not_change_the_next_one() -> None:
    # the gradient of a loss alone is the cotangent that the graph keeps: torch must notice what is done to it
    student = normal(3, 7).requires_grad_()
    task, general = losses(student)
    first, second = (torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (task, general))
    kept = second.clone()
    first.zero_()
    assert torch.equal(second, kept)
    if extension.EXTENSION is not None:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(task, student)
    task, general = losses(student)
    for _ in range(2):  # .grad accumulates in memory of its own
        (task + general).backward(retain_graph=True)
        task.backward(retain_graph=True)
    expected = sum(torch.autograd.grad(4 * task + 2 * general, student))
    torch.testing.assert_close(student.grad, expected)


def test_hooks_see_the_gradient() -> None:
    student = normal(3, 7).requires_grad_()
    student.register_hook(lambda gradient: 2 * gradient)
    task, _ = losses(student)
    task.register_hook(lambda gradient: 3 * gradient)
    (hooked,) = torch.autograd.grad(task, student)
    torch.testing.assert_close(hooked, 6 * gradients(student.detach() / 2)[0] / 2)


def test_saved_tensor_hooks_see_what_is_kept() -> None:
    student, packed = normal(3, 7).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x.clone(), lambda x: x):
        task, general = losses(student)
    assert len(packed) >= 2
    kept = torch.autograd.grad(task + general, student)
    assert torch.equal(*kept, *torch.autograd.grad(sum(losses(student)), student))


def by_batched_gradients(student: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    factors = torch.ones(2, dtype=torch.float64)
    return torch.autograd.grad(losses(student)[0], student, factors, is_grads_batched=True)[0][1]


def by_compiled_backward(student: Tensor) -> Tensor:
    student = student.clone().requires_grad_()
    task, _ = losses(student)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
        task.backward()
    return student.grad


@pytest.mark.parametrize("way", [by_batched_gradients, by_compiled_backward])
def test_transforms_give_the_same_gradient(way: Callable[[Tensor], Tensor]) -> None:
    student = normal(3, 7)
    leaf = student.clone().requires_grad_()
    torch.testing.assert_close(way(student), *torch.autograd.grad(losses(leaf)[0], leaf))


def test_a_mode_or_a_subclass_sees_the_operator() -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    class Subclass(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs or {})

    for use in (lambda: losses(normal(3, 7).as_subclass(Subclass)), lambda: losses(normal(3, 7))):
        seen: list[str] = []
        with Mode():
            use()
        assert any("prograd_fast.dual_loss" in name for name in seen)
    seen = []
    losses(normal(3, 7).as_subclass(Subclass))
    assert any("prograd_fast.dual_loss" in name for name in seen)
