"""Guards the linear losses of GPUs around the Triton kernels: what these write for a chunk is what the products read.

The products have tests of their own, `tests/gpu/test_chunked_products.py`.
"""

import pytest
import torch
import torch.nn.functional as F

from prograd_fast import functional
from prograd_fast.backends import chunked_products
from prograd_fast.reference import text_to_text_loss
from tests.gpu.triton.support import draw, expected_losses, ops
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    """Three rows of 20 classes in a chunk; one in float64."""
    monkeypatch.setattr(chunked_products, "CHUNK_BYTES", 3 * 20 * 4)


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


def unit_rows(*sizes, dtype=torch.float32):
    return (F.normalize(draw(n, 16, seed=i), dim=1).to(dtype) for i, n in enumerate(sizes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("reduction", "soft_ce"), [(0, False), (1, True), (2, False)])
def test_linear_dual_loss(dtype, reduction, soft_ce):
    options = {
        "offset": draw(20, seed=5), "weights": (draw(8, seed=3).abs(), draw(8, seed=4).abs()),
        "soft_ce": soft_ce, "reduction": reduction,
    }  # fmt: skip
    features, student, teacher = unit_rows(8, 20, 20, dtype=dtype)
    labels = torch.arange(8) * 7 % 20
    losses, cotangents, correct = linear(features, student, teacher, labels, **options)
    w = student.double().requires_grad_()
    z, t = 20 * features.double() @ w.mT, 20 * features.double() @ teacher.double().mT
    expected = expected_losses(z, t, labels, **options)
    assert_close(losses, expected.detach(), "formula", accumulation(dtype), scale=expected.detach().abs().clamp(min=1))
    for actual, loss in zip(cotangents, expected, strict=True):
        (gradient,) = torch.autograd.grad(loss.sum(), w, retain_graph=True)
        assert_close(actual, gradient, "formula", accumulation(dtype), scale=gradient.abs().clamp(min=1e-3))
    assert int(correct) == int((z.argmax(1) == labels).sum())


def test_of_no_rows():
    losses, cotangents, correct = linear(
        torch.zeros(0, 8), torch.ones(3, 8), torch.ones(3, 8), torch.zeros(0, dtype=torch.int64)
    )
    assert losses.isnan().all()
    assert torch.equal(cotangents, torch.zeros(2, 3, 8))
    assert int(correct) == 0


@pytest.mark.parametrize("label", [-1, 20, 2**40])
def test_a_label_out_of_range(label):
    """The row's task loss is NaN, the others are what they are, and nobody counts the row as right."""
    features, student, teacher = unit_rows(8, 20, 20)
    labels = torch.arange(8) * 7 % 20
    right, _, hits = linear(features, student, teacher, labels, reduction=0)
    was_right = bool((features[5] @ student.T).argmax() == labels[5])
    labels[5] = label
    losses, _, correct = linear(features, student, teacher, labels, reduction=0)
    others = torch.arange(8) != 5
    assert losses[0, 5].isnan()
    assert torch.equal(losses[:, others], right[:, others])
    assert int(correct) == int(hits) - was_right
    mean, cotangents, _ = linear(features, student, teacher, labels)
    assert mean[0].isnan()
    assert mean[1].isfinite()
    assert cotangents[1].isfinite().all()
    assert cotangents[0].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_text_to_text(dtype):
    learned = F.normalize(draw(20, 16), dim=1).to(dtype).requires_grad_()
    written = F.normalize(draw(2, 20, 16, seed=1), dim=2).to(dtype)
    loss = functional.text_to_text_loss(learned, written, 20.0)
    wide = learned.detach().double().requires_grad_()
    expected = text_to_text_loss(wide, written.double(), 20.0)
    assert_close(loss, expected, "formula", accumulation(dtype), scale=expected.detach().clamp(min=1))
    (gradient,), (by_formula,) = torch.autograd.grad(loss, learned), torch.autograd.grad(expected, wide)
    assert_close(gradient, by_formula, "formula", dtype, scale=by_formula.abs().clamp(min=1e-3))
