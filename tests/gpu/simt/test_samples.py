"""The CUDA kernels of samples, run on the CPU by simt.h, against the reference in float64."""

import math
from ctypes import c_int64

import pytest
import torch
from torch import Tensor

from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.ops.samples import sampled_cross_entropy_cotangents
from prograd_fast.reference import sampled_cross_entropy, sampled_log_probs
from tests.gpu.simt.build import compiler
from tests.gpu.simt.library import (
    ORDERS,
    STORAGES,
    Guarded,
    Library,
    accumulation,
    draw,
    pointer,
    storage_of,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Samples(Library):
    stem = "samples"

    def sampled_cross_entropy_out(
        self, logits: Tensor, labels: Tensor, reduction: int, *, losses: Tensor, cotangents: Tensor
    ) -> None:
        sizes = map(c_int64, logits.shape)
        inputs, outputs = (logits, labels), (losses, cotangents)
        before, after = (map(pointer, tensors) for tensors in (inputs, outputs))
        self.call("sampled_cross_entropy", storage_of(logits), *before, *sizes, reduction, *after)

    def sampled_log_probs_out(self, logits: Tensor, *, log_probs: Tensor) -> None:
        before, after = map(pointer, (logits, log_probs))
        self.call("sampled_log_probs", storage_of(logits), before, *map(c_int64, logits.shape), after)


@pytest.fixture(scope="module")
def simt() -> Samples:
    return Samples()


def run_samples(
    simt: Samples, z: Tensor, labels: Tensor, reduction: int, shift: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    guarded, acc = Guarded(shift), accumulation(z.dtype)
    losses = guarded(torch.full(labels.shape if reduction == 0 else (), math.nan, dtype=acc))
    cotangents = guarded(torch.full(z.shape, math.nan, dtype=acc))
    log_probs = guarded(torch.full(z.shape[1:], math.nan, dtype=acc))
    logits = guarded(z)
    simt.sampled_cross_entropy_out(logits, labels, reduction, losses=losses, cotangents=cotangents)
    simt.sampled_log_probs_out(logits, log_probs=log_probs)
    guarded.check()
    return losses, cotangents, log_probs


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("samples", "rows", "classes"),
    [
        (1, 1, 1),
        (2, 3, 5),  # less than one pack, and rows that start off a 16-byte boundary
        (5, 2, 257),  # several warps, an incomplete pack at either end, two blocks of the prediction
        (3, 2, 2500),  # several packs for a thread
    ],
)
def test_samples(simt: Samples, dtype: torch.dtype, samples: int, rows: int, classes: int) -> None:
    z, labels = draw(samples, rows, classes, dtype=dtype), torch.arange(rows) * 7 % classes
    for reduction, order in enumerate(ORDERS):
        simt.schedule(order, seed=reduction)
        losses, cotangents, log_probs = run_samples(simt, z, labels, reduction, shift=reduction)
        how = REDUCTIONS[reduction]
        assert_close(losses, sampled_cross_entropy(z.double(), labels, how), "formula", accumulation(dtype), z)
        expected = sampled_cross_entropy_cotangents(z.double(), labels, how)
        assert_close(cotangents, expected, "formula", accumulation(dtype), expected.abs().clamp(min=0.1 / rows))
        assert_close(log_probs, sampled_log_probs(z.double()), "formula", accumulation(dtype), z)


def test_samples_of_extreme_logits(simt: Samples) -> None:
    """±1e4; a class excluded in one sample, in all; the label in one, in all; NaN."""
    z, labels = draw(3, 6, 300, dtype=torch.float32), torch.arange(6)
    z[0, 0, 0], z[1, 0, 7] = 1e4, -1e4
    z[1, 1, 9] = z[:, 2, 11] = z[0, 2, 20:] = -math.inf
    z[2, 3, 3] = z[:, 4, 4] = -math.inf
    z[0, 5, 299] = math.nan
    losses, cotangents, log_probs = run_samples(simt, z, labels, 0)
    assert losses.isinf().tolist() == [False] * 4 + [True, False]
    assert losses.isnan().tolist() == [False] * 5 + [True]
    assert cotangents[:, :5].isfinite().all()
    assert cotangents[:, 5].isnan().all()
    assert log_probs[5].isnan().all()
    assert_close(losses[:4], sampled_cross_entropy(z.double(), labels, "none")[:4], "formula", torch.float32)
    expected = sampled_log_probs(z.double())[:5]
    assert torch.equal(log_probs[:5].isinf(), expected.isinf())
    finite = expected.isfinite()
    assert_close(log_probs[:5][finite], expected[finite], "formula", torch.float32)


def test_samples_of_no_rows(simt: Samples) -> None:
    z, labels = torch.empty(2, 0, 5), torch.empty(0, dtype=torch.int64)
    assert run_samples(simt, z, labels, reduction=1)[0].isnan()  # as torch: the mean of nothing
    assert run_samples(simt, z, labels, reduction=2)[0] == 0


@pytest.mark.parametrize("label", [-1, 5, -(2**63), 2**63 - 1, 2**32 + 1])
def test_samples_of_a_label_outside(simt: Samples, label: int) -> None:
    """NaN in the row's loss and its cotangents, and so in the batch's loss; the other rows are as they were."""
    z, labels = draw(2, 3, 5, dtype=torch.float32), torch.tensor([0, 1, 2])
    expected = run_samples(simt, z, labels, 0)
    labels[1] = label
    losses, cotangents, log_probs = run_samples(simt, z, labels, 0)
    assert losses.isnan().tolist() == [False, True, False]
    assert cotangents[:, 1].isnan().all()
    assert torch.equal(losses[::2], expected[0][::2])
    assert torch.equal(cotangents[:, ::2], expected[1][:, ::2])
    assert torch.equal(log_probs, expected[2])
    assert run_samples(simt, z, labels, 1)[0].isnan()


def test_samples_take_two_launches(simt: Samples) -> None:
    z, labels = draw(2, 3, 5, dtype=torch.float32), torch.tensor([0, 1, 2])
    simt.launches()
    simt.sampled_cross_entropy_out(z, labels, 1, losses=torch.zeros(()), cotangents=torch.zeros_like(z))
    assert simt.launches() == 2
