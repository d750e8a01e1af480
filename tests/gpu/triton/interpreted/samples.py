"""Guards the losses and predictions averaged over samples on Triton, against torch's own losses in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from prograd_fast import functional
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close


def labels_of(shape):
    return torch.randint(shape[2], shape[1:2], generator=torch.Generator().manual_seed(2))


def mean_probability(z):
    return z.double().log_softmax(2).logsumexp(0) - math.log(len(z))


@pytest.mark.parametrize("dtype", DTYPES)
# samples, rows, classes: one of each; odd; a number of samples that is no power of 2; a multiple of the widest load;
# several blocks of classes, odd and even
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (5, 2, 100), (3, 4, 128), (2, 2, 1025), (2, 1, 2048)])
def test_samples(shape, dtype):
    z, labels = draw(*shape, dtype=dtype, scale=4), labels_of(shape)
    wide = z.double().requires_grad_()
    rows = F.nll_loss(mean_probability(wide), labels, reduction="none")
    for reduction, expected in enumerate((rows, rows.mean(), rows.sum())):
        losses, cotangents = ops.sampled_cross_entropy(z, labels, reduction)
        (gradient,) = torch.autograd.grad(expected.sum(), wide, retain_graph=True)
        assert_close(losses, expected.detach(), "formula", accumulation(dtype), scale=wide.detach())
        assert_close(cotangents, gradient, "formula", dtype, scale=gradient.abs().clamp(min=0.1 / shape[1]))
    log_probs = functional.sampled_log_probs(z)
    assert_close(log_probs, mean_probability(z), "formula", accumulation(dtype), scale=wide.detach())


@pytest.mark.parametrize("classes", [40, 1500])  # one block and several
def test_samples_extreme_logits(classes):
    """±1e4; a class excluded in one sample, in all; a block of classes; the label in one sample, in all."""
    z, labels = draw(3, 5, classes, dtype=torch.float32, scale=4), torch.arange(5)
    z[0, 0, 0], z[1, 0, 7] = 1e4, -1e4
    z[1, 1, 9] = z[:, 2, 11] = -math.inf
    z[0, 2, 5:] = -math.inf
    z[2, 3, 3] = z[:, 4, 4] = -math.inf
    losses, cotangents = ops.sampled_cross_entropy(z, labels, 0)
    expected = mean_probability(z)
    assert losses.isinf().tolist() == [False] * 4 + [True]
    assert cotangents.isfinite().all()
    assert_close(losses[:4], -expected[range(4), range(4)], "formula", torch.float32)
    log_probs = functional.sampled_log_probs(z)
    assert torch.equal(log_probs.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert_close(log_probs[finite], expected[finite], "formula", torch.float32)


def test_samples_not_a_number():
    z = draw(2, 3, 50, dtype=torch.float32)
    z[1, 1, 49] = math.nan
    losses, cotangents = ops.sampled_cross_entropy(z, torch.tensor([0, 1, 2]), 0)
    assert (
        losses.isnan().tolist() == functional.sampled_log_probs(z).isnan().all(dim=1).tolist() == [False, True, False]
    )
    assert cotangents[:, 1].isnan().all()
    assert cotangents[:, ::2].isfinite().all()


def test_samples_corners():
    """No rows: the mean of nothing. A label out of range is NaN, not somebody's memory. A stack with strides."""
    z = draw(2, 0, 5, dtype=torch.float32)
    losses, _ = ops.sampled_cross_entropy(z, torch.zeros(0, dtype=torch.int64), 1)
    assert losses.isnan()
    assert functional.sampled_log_probs(z).shape == (0, 5)
    z = draw(2, 3, 8, dtype=torch.float32)
    good = ops.sampled_cross_entropy(z, torch.tensor([0, 1, 2]), 0)
    for outside in (8, -1, 2**63 - 1, -(2**63), 2**32 + 1):
        losses, cotangents = ops.sampled_cross_entropy(z, torch.tensor([0, outside, 2]), 0)
        assert losses.isnan().tolist() == [False, True, False]
        assert cotangents[:, 1].isnan().all()
        assert torch.equal(cotangents[:, ::2], good[1][:, ::2])
        assert ops.sampled_cross_entropy(z, torch.tensor([0, outside, 2]), 1)[0].isnan()
    strided = z.transpose(0, 1).contiguous().transpose(0, 1)
    for a, b in zip(
        ops.sampled_cross_entropy(strided, torch.arange(3), 1),
        ops.sampled_cross_entropy(z, torch.arange(3), 1),
        strict=True,
    ):
        assert torch.equal(a, b)
