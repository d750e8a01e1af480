"""sampled_cross_entropy and sampled_log_probs on every backend against the float64 reference and PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast import functional, reference
from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.ops.samples import sampled_cross_entropy_cotangents
from tests.ops.support import BACKENDS, DTYPES, accumulation, normal, running_on, threads
from tests.tolerances import assert_close

operators = torch.ops.prograd_fast


def inputs(samples: int, rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(3))
    return (4 * normal(samples, rows, classes)).to(dtype), labels


# samples, rows, classes: one of each; one sample, which is the cross-entropy; less than a vector of classes; the
# authors' batch; several blocks of classes and a rest
SHAPES = [(1, 1, 1), (1, 5, 10), (3, 4, 7), (20, 1, 100), (5, 3, 1500)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    z, labels = inputs(*shape, dtype)
    acc = accumulation(dtype)
    for k, reduction in enumerate(REDUCTIONS):
        with running_on(backend):
            losses, cotangents = operators.sampled_cross_entropy(z, labels, k)
        assert (losses.dtype, cotangents.dtype) == (acc, acc)
        expected = reference.sampled_cross_entropy(z.double(), labels, reduction)
        assert_close(losses, expected, "formula", acc, z)  # differences of logits
        # a single class has cotangents of 0 but for rounding: measured against probabilities
        by_logit = sampled_cross_entropy_cotangents(z.double(), labels, reduction)
        assert_close(cotangents, by_logit, "formula", acc, by_logit.abs().clamp(min=0.1 / shape[1]))
    with running_on(backend):
        log_probs = functional.sampled_log_probs(z)
    assert log_probs.dtype == acc
    assert_close(log_probs, reference.sampled_log_probs(z.double()), "formula", acc, z)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_sample_is_the_cross_entropy(backend: str) -> None:
    z, labels = inputs(1, 6, 40, torch.float64)
    z.requires_grad_()
    with running_on(backend):
        ours = functional.sampled_cross_entropy(z, labels)
    theirs = F.cross_entropy(z[0], labels)
    assert_close(ours, theirs, "formula", torch.float64)
    (a,), (b,) = torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z)
    assert_close(a, b, "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_is_the_prediction_at_the_label(backend: str) -> None:
    z, labels = inputs(7, 5, 30, torch.float64)
    z.requires_grad_()
    with running_on(backend):
        loss = functional.sampled_cross_entropy(z, labels, "sum")
        prediction = F.nll_loss(functional.sampled_log_probs(z), labels, reduction="sum")
        assert_close(loss, prediction, "formula", torch.float64)
        (a,), (b,) = torch.autograd.grad(loss, z), torch.autograd.grad(prediction, z)
    assert_close(a, b, "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    z, labels = inputs(3, 2, 5, torch.float64)
    z.requires_grad_()
    with running_on(backend):
        for reduction in REDUCTIONS:
            assert torch.autograd.gradcheck(lambda x, r=reduction: functional.sampled_cross_entropy(x, labels, r), z)
        assert torch.autograd.gradcheck(functional.sampled_log_probs, z)
        assert torch.autograd.gradgradcheck(functional.sampled_log_probs, z)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(backend: str) -> None:
    """±1e4 overflows exp; -inf excludes a class in one sample, in all, or the label in one or all of them."""
    z, labels = inputs(3, 5, 40, torch.float32)
    labels[:] = torch.tensor([0, 1, 2, 3, 4])
    z[0, 0, 0], z[1, 0, 7] = 1e4, -1e4
    z[1, 1, 9] = z[:, 2, 11] = -math.inf
    z[2, 3, 3] = z[:, 4, 4] = -math.inf
    with running_on(backend):
        losses, cotangents = operators.sampled_cross_entropy(z, labels, 0)
        log_probs = functional.sampled_log_probs(z)
    assert losses.isinf().tolist() == [False] * 4 + [True]
    assert cotangents.isfinite().all()
    assert_close(losses[:4], reference.sampled_cross_entropy(z.double(), labels, "none")[:4], "formula", torch.float32)
    by_logit = sampled_cross_entropy_cotangents(z.double(), labels, "none")
    assert_close(cotangents, by_logit, "formula", torch.float32)
    expected = reference.sampled_log_probs(z.double())
    assert torch.equal(log_probs.isinf(), expected.isinf())
    finite = expected.isfinite()
    assert_close(log_probs[finite], expected[finite], "formula", torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_stays_one(backend: str) -> None:
    z, labels = inputs(2, 3, 50, torch.float32)
    z[1, 1, 49] = math.nan
    with running_on(backend):
        losses, cotangents = operators.sampled_cross_entropy(z, labels, 0)
        log_probs = functional.sampled_log_probs(z)
    assert losses.isnan().tolist() == log_probs.isnan().all(dim=1).tolist() == [False, True, False]
    assert cotangents[:, 1].isnan().all()
    assert cotangents[:, ::2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend: str) -> None:
    """A transposed stack, every other class, one matrix for all samples (stride 0), labels with a stride: as copies."""
    z, labels = inputs(4, 6, 10, torch.float32)
    layouts = (
        z.transpose(0, 1).contiguous().transpose(0, 1),
        z.repeat_interleave(2, 2)[:, :, ::2],
        z[:1].expand(4, 6, 10),
    )
    with running_on(backend):
        for strided in layouts:
            copy = operators.sampled_cross_entropy(strided.contiguous(), labels, 1)
            for a, b in zip(operators.sampled_cross_entropy(strided, labels, 1), copy, strict=True):
                assert torch.equal(a, b)
            assert torch.equal(
                functional.sampled_log_probs(strided), functional.sampled_log_probs(strided.contiguous())
            )
        spread = labels.repeat_interleave(3)[::3]
        assert torch.equal(
            operators.sampled_cross_entropy(z, spread, 1)[1], operators.sampled_cross_entropy(z, labels, 1)[1]
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str) -> None:
    z, labels = inputs(2, 0, 5, torch.float32)
    with running_on(backend):
        assert functional.sampled_cross_entropy(z, labels).isnan()  # as torch: the mean of nothing
        assert functional.sampled_cross_entropy(z, labels, "sum") == 0
        assert functional.sampled_log_probs(z).shape == (0, 5)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    z, labels = inputs(8, 64, 1000, torch.float32)
    results = []
    for count in (1, 2, 1, 3):
        with threads(count):
            results.append((*operators.sampled_cross_entropy(z, labels, 1), functional.sampled_log_probs(z)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_results_past_the_caches_are_the_same() -> None:
    """16 MB and more are written past the caches: whole lines, and both ends of rows that do not start on one."""
    z, labels = inputs(3, 700, 2001, torch.float32)
    assert z.nbytes > 16 << 20
    _, large = operators.sampled_cross_entropy(z, labels, 0)
    for begin in (0, 350):
        _, small = operators.sampled_cross_entropy(z[:, begin : begin + 350], labels[begin : begin + 350], 0)
        assert torch.equal(large[:, begin : begin + 350], small)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend: str) -> None:
    z, labels = inputs(3, 4, 10, torch.float32)
    batch = torch.stack([z, -z], dim=1)
    with running_on(backend):
        losses = torch.vmap(lambda x: functional.sampled_cross_entropy(x, labels), in_dims=1)(batch)
        log_probs = torch.vmap(functional.sampled_log_probs, in_dims=1)(batch)
        assert losses[1] == functional.sampled_cross_entropy(-z, labels)
        assert torch.equal(log_probs[1], functional.sampled_log_probs(-z))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([0, 9])}, ValueError, "labels: expected class indices 0 ... 4, got 0 ... 9"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, "labels: expected class indices 0 ... 4"),
        ({"labels": torch.zeros(2)}, TypeError, "labels: expected integer"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "labels: expected shape \\(2,\\)"),
        ({"logits": torch.zeros(2, 5)}, ValueError, "logits: expected shape \\(samples, batch, classes\\)"),
        ({"logits": torch.zeros(0, 2, 5)}, ValueError, "logits: expected shape \\(samples, batch, classes\\)"),
        ({"logits": torch.zeros(3, 2, 5).long()}, TypeError, "logits: expected a floating-point"),
        ({"logits": torch.zeros(3, 2, 5, device="meta")}, ValueError, "devices: expected one for all"),
        ({"reduction": "max"}, ValueError, "reduction: expected one of none, mean, sum"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_arguments(backend: str, change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(3, 2, 5), "labels": torch.tensor([0, 4])}
    with running_on(backend), pytest.raises(error, match=message):
        functional.sampled_cross_entropy(**(arguments | change))
