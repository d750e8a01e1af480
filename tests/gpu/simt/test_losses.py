"""The CUDA kernels of both losses, executed on the CPU by simt.h, against the reference in float64."""

import math

import pytest
import torch

from prograd_fast.ops.dual_loss import GENERAL_LOSSES
from tests.gpu.simt.build import compiler
from tests.gpu.simt.library import ORDERS, STORAGES, Library, SimtError
from tests.gpu.simt.losses import check_dual_loss, check_linear_dual_loss, logits, run_dual_loss

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")
SCHEDULES = [(order, seed) for seed, order in enumerate(ORDERS)]


@pytest.fixture(scope="module")
def simt() -> Library:
    return Library()


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        (1, 1),
        (3, 5),  # less than one pack, and rows that start off a 16-byte boundary
        (4, 32),
        (5, 257),  # several warps, an incomplete pack at either end
        (3, 1000),
        (2, 5003),  # several packs for a thread
    ],
)
def test_dual_loss(simt: Library, dtype: torch.dtype, rows: int, classes: int) -> None:
    z, t, labels = logits(rows, classes, dtype)
    for (order, seed), reduction in zip(SCHEDULES, range(3), strict=True):
        simt.schedule(order, seed)
        check_dual_loss(simt, z, t, labels, reduction, shift=seed, temperature=2.0)


@pytest.mark.parametrize("general", GENERAL_LOSSES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_dual_loss_with_offset_and_weights(simt: Library, dtype: torch.dtype, general: str) -> None:
    z, t, labels = logits(6, 67, dtype)
    offset, task_weight, general_weight = torch.randn(67), torch.rand(6), torch.rand(6)
    for reduction in range(3):
        check_dual_loss(
            simt,
            z,
            t,
            labels,
            reduction,
            temperature=0.5,
            general=general,
            teacher_offset=offset,
            task_weight=task_weight,
            general_weight=general_weight,
        )


@pytest.mark.parametrize("classes", [9, 300])
def test_dual_loss_of_extreme_logits(simt: Library, classes: int) -> None:
    z, t, labels = logits(8, classes, torch.float32)
    z[0, ::2], t[0, 1::2] = 1e4, 1e4
    z[1, ::2], t[1, 1::2] = -1e4, -1e4
    z[2:5, 3] = t[2:5, 3] = t[4:, 5] = -math.inf  # a class excluded by both, or by the teacher alone
    t[5, 1:] = -math.inf  # a teacher that is sure
    t[6, ::2] = z[6, ::2] = -math.inf
    labels[:] = 1
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_dual_loss(simt, z, t, labels)


def test_dual_loss_where_the_student_excludes_what_the_teacher_has(simt: Library) -> None:
    z, t, labels = logits(2, 300, torch.float32)
    z[0, 7] = -math.inf
    labels[:] = 1
    losses, cotangents, _ = run_dual_loss(simt, z, t, labels, reduction=0)
    assert losses[1, 0] == math.inf
    assert losses[0].isfinite().all()
    assert cotangents.isfinite().all()


def test_dual_loss_of_rows_too_long_for_shared_memory(simt: Library) -> None:
    z, t, labels = logits(2, 20001, torch.float64)
    check_dual_loss(simt, z, t, labels)


def test_dual_loss_counts_the_first_of_equal_logits(simt: Library) -> None:
    z, t, _ = logits(4, 300, torch.float32)
    z[:, [20, 290]] = 99.0
    labels = torch.tensor([20, 290, 20, 3])
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        assert run_dual_loss(simt, z, t, labels)[2] == 2


def test_dual_loss_of_no_rows(simt: Library) -> None:
    z, t, labels = logits(0, 5, torch.float32)
    assert run_dual_loss(simt, z, t, labels, reduction=1)[0].isnan().all()  # as torch: the mean of nothing
    losses, _, correct = run_dual_loss(simt, z, t, labels, reduction=2)
    assert losses.tolist() == [0.0, 0.0]
    assert correct == 0


@pytest.mark.parametrize("label", [-1, 5])
def test_dual_loss_refuses_a_label_outside(simt: Library, label: int) -> None:
    z, t, labels = logits(3, 5, torch.float32)
    labels[1] = label
    with pytest.raises(SimtError, match="label"):
        run_dual_loss(simt, z, t, labels)


def test_dual_loss_is_the_same_under_every_schedule(simt: Library) -> None:
    z, t, labels = logits(20, 257, torch.float32)
    results = []
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks=1 + 5 * seed)
        results.append(run_dual_loss(simt, z, t, labels))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("rows", "classes", "width"),
    [
        (1, 1, 1),
        (5, 37, 24),
        (66, 20, 33),  # two tiles of rows; rows of features off a 16-byte boundary
        (3, 1030, 8),  # two ranges of classes
        (2, 3, 520),  # two panels of columns
    ],
)
def test_linear_dual_loss(simt: Library, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    order, seed = SCHEDULES[rows % 3]
    simt.schedule(order, seed)
    check_linear_dual_loss(simt, dtype, rows, classes, width)


def test_linear_dual_loss_of_no_rows(simt: Library) -> None:
    x, w, labels = torch.empty(0, 4), torch.randn(5, 4), torch.empty(0, dtype=torch.int64)
    losses, cotangents, correct = torch.empty(2), torch.full((2, 5, 4), math.nan), torch.tensor(-1)
    options = (labels, None, None, None, 1.0, 1.0, False, 2)
    simt.linear_dual_loss_out(x, w, w, *options, losses=losses, cotangents=cotangents, correct=correct)
    assert losses.tolist() == [0.0, 0.0]
    assert not cotangents.any()
    assert correct == 0
