"""Guards the dual loss and the cross-entropy from features on Triton, against torch's own losses in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from prograd_fast import functional
from prograd_fast.reference import text_to_text_loss
from tests.gpu.triton.support import draw, expected_losses, ops
from tests.ops.support import DTYPES, accumulation
from tests.slow import slow_but_for
from tests.tolerances import assert_close


def linear(features, student, teacher, labels, offset=None, weights=(None, None), soft_ce=False, reduction=1):
    dtype = accumulation(features.dtype)
    losses = torch.full((2, len(features)) if reduction == 0 else (2,), 7.0, dtype=dtype)
    cotangents = torch.full((2, *student.shape), 7.0, dtype=dtype)
    correct = torch.full((), 7)
    offset, *weights = (None if x is None else x.to(dtype) for x in (offset, *weights))
    ops.linear_dual_loss_out(
        features, student, teacher, labels, offset, *weights, 20.0, 1.7, soft_ce, reduction,
        losses=losses, cotangents=cotangents, correct=correct,
    )  # fmt: skip
    return losses, cotangents, correct


@pytest.mark.parametrize("dtype", DTYPES)
# one of everything; partial tiles; several row blocks; features in several blocks
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 70, 33), (67, 65, 40), (2, 20, 136)])
def test_linear_dual_loss(shape, dtype):
    check_linear(*shape, dtype)


@pytest.mark.parametrize("dtype", slow_but_for([torch.float32], DTYPES))
def test_several_tiles_in_a_span_of_classes(dtype):
    check_linear(3, 2100, 8, dtype)


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("soft_ce", [False, True])
def test_linear_dual_loss_options(reduction, soft_ce):
    weights = (draw(5, seed=3).abs(), draw(5, seed=4).abs())
    offset = draw(70, seed=5)
    offset[:66] = -math.inf  # the whole first tile and part of the second
    check_linear(5, 70, 16, torch.float32, offset=offset, weights=weights, soft_ce=soft_ce, reduction=reduction)


def check_linear(n_rows, n_classes, n_features, dtype, **options):
    features, student, teacher = (
        F.normalize(draw(n, n_features, seed=i), dim=1).to(dtype) for i, n in enumerate((n_rows, n_classes, n_classes))
    )
    labels = torch.arange(n_rows) * 7 % n_classes
    losses, cotangents, correct = linear(features, student, teacher, labels, **options)
    w = student.double().requires_grad_()
    z, t = 20 * features.double() @ w.mT, 20 * features.double() @ teacher.double().mT
    expected = expected_losses(z, t, labels, **options)
    assert_close(losses, expected.detach(), "formula", accumulation(dtype), scale=expected.detach().abs().clamp(min=1))
    for actual, loss in zip(cotangents, expected, strict=True):
        (gradient,) = torch.autograd.grad(loss.sum(), w, retain_graph=True)
        assert_close(actual, gradient, "formula", accumulation(dtype), scale=gradient.abs().clamp(min=1e-3))
    assert int(correct) == int((z.argmax(1) == labels).sum())


def test_linear_dual_loss_of_no_rows():
    losses, cotangents, correct = linear(
        torch.zeros(0, 8), torch.ones(3, 8), torch.ones(3, 8), torch.zeros(0, dtype=torch.int64)
    )
    assert losses.isnan().all()
    assert torch.equal(cotangents, torch.zeros(2, 3, 8))
    assert int(correct) == 0


@pytest.mark.parametrize("dtype", DTYPES)
# templates, classes, width: one of everything; partial tiles; several blocks of rows and tiles of classes
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 33), (2, 70, 40)])
def test_text_to_text(shape, dtype):
    learned = F.normalize(draw(*shape[1:]), dim=1).to(dtype).requires_grad_()
    written = F.normalize(draw(*shape, seed=1), dim=2).to(dtype)
    loss = functional.text_to_text_loss(learned, written, 20.0)
    wide = learned.detach().double().requires_grad_()
    expected = text_to_text_loss(wide, written.double(), 20.0)
    assert_close(loss, expected, "formula", accumulation(dtype), scale=expected.detach().clamp(min=1))
    (gradient,), (by_formula,) = torch.autograd.grad(loss, learned), torch.autograd.grad(expected, wide)
    assert_close(gradient, by_formula, "formula", dtype, scale=by_formula.abs().clamp(min=1e-3))
