"""The CUDA kernels of samples, differences and the linear cross-entropy, executed on the CPU by simt.h."""

import math

import pytest
import torch
import torch.nn.functional as F
from prograd_fast.reference.differences import (
    soft_wing,
    soft_wing_cotangent,
    squared_error,
    squared_error_cotangent,
)
from prograd_fast.reference.samples import (
    sampled_cross_entropy,
    sampled_cross_entropy_cotangents,
    sampled_log_probs,
)
from torch import Tensor

from prograd_fast.ops.common import REDUCTIONS
from tests.gpu.simt.build import compiler
from tests.gpu.simt.library import ORDERS, STORAGES, Guarded, Library, SimtError, accumulation
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


@pytest.fixture(scope="module")
def simt() -> Library:
    return Library()


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


# ---- samples


def run_samples(
    simt: Library, z: Tensor, labels: Tensor, reduction: int, shift: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    guarded, acc = Guarded(shift), accumulation(z.dtype)
    losses = guarded(torch.full(labels.shape if reduction == 0 else (), math.nan, dtype=acc))
    cotangents = guarded(torch.full(z.shape, math.nan, dtype=z.dtype))
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
def test_samples(simt: Library, dtype: torch.dtype, samples: int, rows: int, classes: int) -> None:
    z, labels = draw(samples, rows, classes, dtype=dtype), torch.arange(rows) * 7 % classes
    for reduction, order in enumerate(ORDERS):
        simt.schedule(order, seed=reduction)
        losses, cotangents, log_probs = run_samples(simt, z, labels, reduction, shift=reduction)
        how = REDUCTIONS[reduction]
        assert_close(losses, sampled_cross_entropy(z.double(), labels, how), "formula", accumulation(dtype), z)
        expected = sampled_cross_entropy_cotangents(z.double(), labels, how)
        assert_close(cotangents, expected, "formula", dtype, expected.abs().clamp(min=0.1 / rows))
        assert_close(log_probs, sampled_log_probs(z.double()), "formula", accumulation(dtype), z)


def test_samples_of_extreme_logits(simt: Library) -> None:
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


def test_samples_of_no_rows(simt: Library) -> None:
    z, labels = torch.empty(2, 0, 5), torch.empty(0, dtype=torch.int64)
    assert run_samples(simt, z, labels, reduction=1)[0].isnan()  # as torch: the mean of nothing
    assert run_samples(simt, z, labels, reduction=2)[0] == 0


@pytest.mark.parametrize("label", [-1, 5])
def test_samples_refuse_a_label_outside(simt: Library, label: int) -> None:
    with pytest.raises(SimtError, match="label"):
        run_samples(simt, draw(2, 3, 5, dtype=torch.float32), torch.tensor([0, label, 1]), 1)


# ---- differences


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("size", [1, 7, 300, 3 * 8192 + 5])  # less than a pack; warps; several blocks and a rest
def test_differences(simt: Library, dtype: torch.dtype, size: int) -> None:
    x, t = draw(size, dtype=dtype), draw(size, dtype=dtype, seed=1)
    settings, factor = (2.0, 20.0, 0.5), 0.25
    for seed, (is_soft_wing, order) in enumerate(((False, "random"), (True, "greedy"), (True, "reverse"))):
        simt.schedule(order, seed)
        guarded = Guarded(shift=seed)
        loss = guarded(torch.full((), math.nan, dtype=accumulation(dtype)))
        cotangents = guarded(torch.full((size,), math.nan, dtype=dtype))
        simt.difference_loss_out(
            guarded(x), guarded(t), is_soft_wing, *settings, factor, loss=loss, cotangents=cotangents
        )
        guarded.check()
        wide = x.double(), t.double()
        if is_soft_wing:
            total = soft_wing(wide[0].unsqueeze(0), wide[1].unsqueeze(0), *settings)
            slope = soft_wing_cotangent(*wide, *settings)
        else:
            total, slope = squared_error(*wide, "sum"), squared_error_cotangent(*wide)
        assert_close(loss, factor * total, "formula", accumulation(dtype))
        assert_close(cotangents, factor * slope, "formula", dtype)


def test_differences_of_nothing(simt: Library) -> None:
    loss = torch.full((), 7.0)
    simt.difference_loss_out(
        torch.empty(0), torch.empty(0), False, 1.0, 1.0, 1.0, 1.0, loss=loss, cotangents=torch.empty(0)
    )
    assert loss == 0


# ---- linear cross-entropy


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("rows", "classes", "width"),
    [(1, 1, 1), (66, 20, 33), (3, 1030, 8)],  # one of each; two tiles of rows; two ranges of classes
)
def test_linear_cross_entropy(simt: Library, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    x, w = (F.normalize(draw(n, width, dtype=torch.float64, seed=n), dim=1).to(dtype) for n in (rows, classes))
    labels, acc, scale = torch.arange(rows) * 7 % classes, accumulation(dtype), 20.0
    guarded = Guarded()
    losses, cotangents = (
        guarded(torch.full((2,), math.nan, dtype=acc)),
        guarded(torch.zeros(1, classes, width).to(dtype)),
    )
    simt.linear_dual_loss_out(
        guarded(x), guarded(w), None, labels, None, None, None, scale, 1.0, False, 1,
        losses=losses, cotangents=cotangents, correct=torch.tensor(-1),
    )  # fmt: skip
    guarded.check()
    leaf = w.double().requires_grad_()
    expected = F.cross_entropy(scale * x.double() @ leaf.T, labels)
    assert_close(
        losses, torch.stack([expected.detach(), torch.zeros(()).double()]), "formula", acc, torch.tensor(scale)
    )
    (gradient,) = torch.autograd.grad(expected, leaf)
    assert_close(cotangents[0], gradient, "formula", dtype, scale * x if classes == 1 else None)
