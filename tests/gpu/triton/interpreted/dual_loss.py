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
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (3, 7),  # element by element, since the second half of the cotangents is aligned otherwise
        (5, 1001),
        (33, 1000),  # a multiple of the widest load
        (8, 1),  # whole pieces between two ends: none; one for some rows; a block
        (8, 13),
        (8, 1001),
        (2, 8201),  # parts, element by element
        (2, 10240),
        (2, 12292),  # parts with ends
        (4, 12286),  # what is left at the end is a part of its own for some rows
    ],
)
def test_dual_loss(shape, dtype):
    student, teacher = draw(*shape, dtype=dtype, scale=3), draw(*shape, dtype=dtype, scale=3, seed=1)
    labels = torch.randint(shape[1], shape[:1], generator=torch.Generator().manual_seed(2))
    labels[0] = shape[1] - 1
    check_dual_loss(student, teacher, labels)


# one block and parts, with and without ends
KINDS = [(3, 40), (8, 41), (3, 8200), (4, 8202)]


@pytest.mark.parametrize("shape", KINDS)
def test_dual_loss_at_a_temperature_of_1(shape):
    student, teacher = draw(*shape, dtype=torch.float32, scale=3), draw(*shape, dtype=torch.float32, scale=3, seed=1)
    check_dual_loss(student, teacher, torch.arange(shape[0]), temperature=1.0)


@pytest.mark.parametrize("shape", KINDS)
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("soft_ce", [False, True])
def test_dual_loss_options(shape, reduction, soft_ce):
    rows, classes = shape
    weights = (torch.arange(rows) / 2, 1 / (1.0 + torch.arange(rows)))
    check_dual_loss(
        draw(*shape, dtype=torch.float32), draw(*shape, dtype=torch.float32, seed=1), 5 * torch.arange(rows),
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
    """No rows: the mean of nothing. Ties go to the lowest class."""
    losses, _, correct = dual_loss(torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert losses.isnan().all()
    assert int(correct) == 0
    for rows, classes in KINDS:
        ties = torch.ones(rows, classes)
        labels = torch.arange(rows)
        labels[0] = 0
        assert int(dual_loss(ties, ties, labels)[2]) == 1
        ties[:, [3, classes - 1]] = 2.0
        assert int(dual_loss(ties, ties, torch.full((rows,), 3))[2]) == rows
        assert int(dual_loss(ties, ties, torch.full((rows,), classes - 1))[2]) == 0


OUTSIDE = [-1, "classes", -(2**63), 2**63 - 1, 2**32 + 1]


@pytest.mark.parametrize(
    ("shape", "label"), [(shape, label) for shape in KINDS for label in (OUTSIDE if shape[1] < 100 else OUTSIDE[:2])]
)
def test_dual_loss_of_a_label_outside(shape, label):
    """NaN in what the label decides; the row is not correct, and all else is as if it were alone."""
    rows, classes = shape
    z, t = draw(*shape, dtype=torch.float32, scale=3), draw(*shape, dtype=torch.float32, scale=3, seed=1)
    labels = z.argmax(dim=1)
    expected = dual_loss(z, t, labels, reduction=0)
    assert int(expected[2]) == rows
    labels[1] = classes if label == "classes" else label
    losses, cotangents, correct = dual_loss(z, t, labels, reduction=0)
    assert losses[0].isnan().tolist() == [row == 1 for row in range(rows)]
    assert cotangents[0, 1].isnan().all()
    assert torch.equal(losses[1], expected[0][1])
    assert torch.equal(cotangents[1], expected[1][1])
    others = [row for row in range(rows) if row != 1]
    assert torch.equal(losses[0, others], expected[0][0, others])
    assert torch.equal(cotangents[0, others], expected[1][0, others])
    assert int(correct) == rows - 1
    assert dual_loss(z, t, labels)[0].isnan().tolist() == [True, False]


@pytest.mark.parametrize("shape", KINDS)
def test_dual_loss_where_the_student_excludes_a_class(shape):
    """Infinite where the teacher has it; where it almost excludes it, too, nothing, although a part's sums have it."""
    z, t = draw(*shape, dtype=torch.float32, scale=3), draw(*shape, dtype=torch.float32, scale=3, seed=1)
    z[:, 2] = -math.inf
    t[1] -= 500
    t[1, -1] = 0.0
    labels = torch.full(shape[:1], 5)
    losses, cotangents, _ = dual_loss(z, t, labels, reduction=0)
    assert losses[1].isinf().tolist() == [row != 1 for row in range(shape[0])]
    assert losses[0].isfinite().all()
    assert cotangents.isfinite().all()
    z[1, 2] = -100.0
    expected = expected_losses(z.double(), t.double(), labels, reduction=0)
    assert_close(losses[1, 1], expected[1, 1], "formula", torch.float32)


@pytest.mark.parametrize("shape", KINDS)
def test_dual_loss_of_what_is_not_a_number(shape):
    z, t = draw(*shape, dtype=torch.float32, scale=3), draw(*shape, dtype=torch.float32, scale=3, seed=1)
    labels = torch.zeros(shape[:1], dtype=torch.int64)
    expected = dual_loss(z, t, labels, reduction=0)
    z[0, -1] = t[1, 2] = math.nan
    losses, cotangents, _ = dual_loss(z, t, labels, reduction=0)
    assert losses[:, 0].isnan().all()
    assert cotangents[:, 0].isnan().all()
    assert losses[1, 1].isnan()
    assert cotangents[1, 1].isnan().all()
    assert torch.equal(losses[0, 1:], expected[0][0, 1:])
    assert torch.equal(cotangents[0, 1:], expected[1][0, 1:])


@pytest.mark.parametrize("shape", KINDS)
def test_dual_loss_in_place(shape):
    """Cotangents may come where the logits are: chunks of a linear loss then need no second matrix."""
    both = torch.stack([draw(*shape, dtype=torch.float32), draw(*shape, dtype=torch.float32, seed=1)])
    labels, losses, correct = torch.arange(shape[0]), torch.zeros(2), torch.tensor(7)
    expected = dual_loss(*both.clone(), labels)
    ops.dual_loss_out(
        *both, labels, None, None, None, 1.7, False, 1, losses=losses, cotangents=both, correct=correct
    )  # fmt: skip
    for actual, other in zip((losses, both, correct), expected, strict=True):
        assert torch.equal(actual, other)


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
