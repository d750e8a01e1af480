"""Guards the dual loss on Triton, against torch's own losses in float64."""

import math

import pytest
import torch

from prograd_fast import functional
from tests.gpu.triton.support import draw, expected_losses, ops
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close


def dual_loss(student, teacher, labels, offset=None, weights=(None, None), temperature=1.7, soft_ce=False, reduction=1):
    dtype = accumulation(student.dtype)
    offset, *weights = (None if x is None else x.to(dtype) for x in (offset, *weights))
    losses = torch.full((2, len(student)) if reduction == 0 else (2,), 7.0, dtype=dtype)
    cotangents = torch.full((2, *student.shape), 7.0, dtype=dtype)
    correct = torch.full((), 7)
    ops.dual_loss_out(
        student, teacher, labels, offset, *weights, temperature, soft_ce, reduction,
        losses=losses, cotangents=cotangents, correct=correct,
    )  # fmt: skip
    return losses, cotangents, correct


def check_dual_loss(student, teacher, labels, **options):
    losses, cotangents, correct = dual_loss(student, teacher, labels, **options)
    z = student.double().requires_grad_()
    expected = expected_losses(z, teacher.double(), labels, **options)
    assert_close(
        losses, expected.detach(), "formula", accumulation(student.dtype), scale=expected.detach().abs().clamp(min=1)
    )
    for actual, loss in zip(cotangents, expected, strict=True):
        (gradient,) = torch.autograd.grad(loss.sum(), z, retain_graph=True)
        # an excluded class has no gradient: torch's own is NaN where it computes 0 · inf
        assert_close(
            actual, gradient.nan_to_num(0), "formula", student.dtype, scale=gradient.nan_to_num(0).abs().clamp(min=1e-3)
        )
    assert int(correct) == int((student.double().argmax(1) == labels).sum())


@pytest.mark.parametrize("dtype", DTYPES)
# one class; odd; one block of the kernel's registers; a multiple of the widest load; several blocks, odd and even
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 1001), (33, 1000), (2, 8201), (2, 10240)])
def test_dual_loss(shape, dtype):
    student, teacher = draw(*shape, dtype=dtype, scale=3), draw(*shape, dtype=dtype, scale=3, seed=1)
    labels = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(2))
    check_dual_loss(student, teacher, labels)


@pytest.mark.parametrize("classes", [37, 8200])  # one block and several
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("soft_ce", [False, True])
def test_dual_loss_options(classes, reduction, soft_ce):
    weights = (torch.tensor([0.5, 0.0, 2.0]), torch.tensor([1.0, 3.0, 0.25]))
    check_dual_loss(
        draw(3, classes, dtype=torch.float32), draw(3, classes, dtype=torch.float32, seed=1), torch.tensor([1, 5, 36]),
        offset=draw(classes, seed=2), weights=weights, temperature=0.6, soft_ce=soft_ce, reduction=reduction,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("soft_ce", [False, True])
@pytest.mark.parametrize("classes", [4, 8200])
def test_dual_loss_extreme_logits(dtype, soft_ce, classes):
    """±1e4 saturates the softmax; -inf excludes a class for both, and in the long rows a whole block of classes."""
    student, teacher = torch.full((2, 2, classes), -math.inf).to(dtype)
    student[:, -4:] = torch.tensor([[1e4, -1e4, 0.0, -math.inf], [-1e4, 1e4, 3.0, -math.inf]])
    teacher[:, -4:] = torch.tensor([[1e4, 0.0, -1e4, -math.inf], [0.0, 1e4, -1e4, -math.inf]])
    labels = torch.tensor([classes - 4, classes - 2])
    losses, cotangents, correct = dual_loss(student, teacher, labels, soft_ce=soft_ce)
    assert losses.isfinite().all()
    assert cotangents.isfinite().all()
    assert int(correct) == 1
    expected = expected_losses(student.double(), teacher.double(), labels, soft_ce=soft_ce)
    assert_close(losses, expected, "formula", torch.float32)


def test_dual_loss_layouts():
    """A slice of a wider matrix, one teacher row for all (stride 0), a transposed matrix: as contiguous copies."""
    labels = torch.tensor([0, 4, 2])
    student = draw(3, 40, dtype=torch.float32)[:, 3:12]
    for teacher in (draw(1, 9, dtype=torch.float32).expand(3, 9), draw(9, 3, dtype=torch.float32).t()):
        expected = dual_loss(student.contiguous(), teacher.contiguous(), labels)
        for actual, copy in zip(dual_loss(student, teacher, labels), expected, strict=True):
            assert torch.equal(actual, copy)


def test_dual_loss_corners():
    """No rows: the mean of nothing. Ties go to the lowest class. A label out of range is NaN, not somebody's memory."""
    losses, _, correct = dual_loss(torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert losses.isnan().all()
    assert int(correct) == 0
    for classes in (6, 8200):
        ties = torch.ones(2, classes)
        assert int(dual_loss(ties, ties, torch.tensor([0, 3]))[2]) == 1
        assert dual_loss(ties, ties, torch.tensor([0, classes]), reduction=0)[0].isnan().tolist() == [
            [False, True],
            [False, False],
        ]


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_gradient_of_float16_logits_under_a_loss_scale(scale):
    """Rounded once, with the scale, as PyTorch's own."""
    z, t, labels = draw(4, 1001, dtype=torch.float16), draw(4, 1001, dtype=torch.float16, seed=1), torch.arange(4)
    task, general = functional.dual_loss(z.requires_grad_(), t, labels)
    (gradient,) = torch.autograd.grad(scale * (task + 0.5 * general), z)
    wide = z.detach().double().requires_grad_()
    task, general = expected_losses(wide, t.double(), labels, temperature=1.0)
    (expected,) = torch.autograd.grad(scale * (task + 0.5 * general), wide)
    torch.testing.assert_close(gradient, expected.half(), rtol=2e-3, atol=2.0**-24)
