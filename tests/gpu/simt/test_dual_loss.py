"""The CUDA kernel of the dual loss, run on the CPU by simt.h, against the reference in float64."""

import math
from ctypes import byref, c_int64
from typing import Any

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import dual_loss as formulas
from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.ops.dual_loss import GENERAL_LOSSES
from tests.gpu.simt.build import compiler
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, SimtError, accumulation, pointer, storage_of
from tests.gpu.simt.loss_options import loss_options
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class DualLoss(Library):
    stem = "dual_loss"

    def dual_loss_out(
        self, student: Tensor, teacher: Tensor, *options: object, losses: Tensor, cotangents: Tensor, correct: Tensor
    ) -> None:
        packed = loss_options(*options, losses, cotangents, correct)  # type: ignore[arg-type]
        pointers = map(pointer, (student, teacher))
        sizes = map(c_int64, student.shape)
        self.call("dual_loss", storage_of(student), *pointers, *sizes, byref(packed))


def run_dual_loss(
    simt: DualLoss, z: Tensor, t: Tensor, labels: Tensor, reduction: int = 1, shift: int = 0, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation(z.dtype)
    guarded = Guarded(shift)
    shape = (2, z.shape[0]) if reduction == 0 else (2,)
    results = (
        guarded(torch.full(shape, math.nan, dtype=acc)),
        guarded(torch.full((2, *z.shape), math.nan, dtype=acc)),
        torch.tensor(-1),
    )
    weights = (options.get(name) for name in ("teacher_offset", "task_weight", "general_weight"))
    weights = tuple(None if weight is None else weight.to(acc) for weight in weights)
    simt.dual_loss_out(
        guarded(z),
        guarded(t),
        labels,
        *weights,
        options.get("temperature", 1.0),
        options.get("general") == "soft_ce",
        reduction,
        losses=results[0],
        cotangents=results[1],
        correct=results[2],
    )
    guarded.check()
    return results


def check_dual_loss(
    simt: DualLoss, z: Tensor, t: Tensor, labels: Tensor, reduction: int = 1, shift: int = 0, **options: Any
) -> None:
    losses, cotangents, correct = run_dual_loss(simt, z, t, labels, reduction, shift, **options)
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    general = wide.pop("general", "kl")
    wide |= {"reduction": REDUCTIONS[reduction]}
    expected = torch.stack(formulas.dual_loss_formula(z.double(), t.double(), labels, general=general, **wide))
    by_logit = formulas.dual_loss_cotangents(z.double(), t.double(), labels, **wide)
    assert_close(losses, expected, "formula", accumulation(z.dtype))
    assert_close(cotangents, by_logit, "formula", accumulation(z.dtype))
    assert correct == formulas.count_correct(z, labels), "wrong count"


def logits(rows: int, classes: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * classes)
    z, t = (scale * torch.randn(2, rows, classes, generator=generator)).to(dtype)
    return z, t, torch.randint(classes, (rows,), generator=generator)


@pytest.fixture(scope="module")
def simt() -> DualLoss:
    return DualLoss()


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
def test_dual_loss(simt: DualLoss, dtype: torch.dtype, rows: int, classes: int) -> None:
    z, t, labels = logits(rows, classes, dtype)
    for (order, seed), reduction in zip(SCHEDULES, range(3), strict=True):
        simt.schedule(order, seed)
        check_dual_loss(simt, z, t, labels, reduction, shift=seed, temperature=2.0)


@pytest.mark.parametrize("general", GENERAL_LOSSES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_dual_loss_with_offset_and_weights(simt: DualLoss, dtype: torch.dtype, general: str) -> None:
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
def test_dual_loss_of_extreme_logits(simt: DualLoss, classes: int) -> None:
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


def test_dual_loss_where_the_student_excludes_what_the_teacher_has(simt: DualLoss) -> None:
    z, t, labels = logits(2, 300, torch.float32)
    z[0, 7] = -math.inf
    labels[:] = 1
    losses, cotangents, _ = run_dual_loss(simt, z, t, labels, reduction=0)
    assert losses[1, 0] == math.inf
    assert losses[0].isfinite().all()
    assert cotangents.isfinite().all()


def test_dual_loss_of_rows_too_long_for_shared_memory(simt: DualLoss) -> None:
    z, t, labels = logits(2, 20001, torch.float64)
    check_dual_loss(simt, z, t, labels)


def test_dual_loss_counts_the_first_of_equal_logits(simt: DualLoss) -> None:
    z, t, _ = logits(4, 300, torch.float32)
    z[:, [20, 290]] = 99.0
    labels = torch.tensor([20, 290, 20, 3])
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        assert run_dual_loss(simt, z, t, labels)[2] == 2


def test_dual_loss_of_no_rows(simt: DualLoss) -> None:
    z, t, labels = logits(0, 5, torch.float32)
    assert run_dual_loss(simt, z, t, labels, reduction=1)[0].isnan().all()  # as torch: the mean of nothing
    losses, _, correct = run_dual_loss(simt, z, t, labels, reduction=2)
    assert losses.tolist() == [0.0, 0.0]
    assert correct == 0


@pytest.mark.parametrize("label", [-1, 5])
def test_dual_loss_refuses_a_label_outside(simt: DualLoss, label: int) -> None:
    z, t, labels = logits(3, 5, torch.float32)
    labels[1] = label
    with pytest.raises(SimtError, match="label"):
        run_dual_loss(simt, z, t, labels)


def test_dual_loss_is_the_same_under_every_schedule(simt: DualLoss) -> None:
    z, t, labels = logits(20, 257, torch.float32)
    results = []
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks=1 + 5 * seed)
        results.append(run_dual_loss(simt, z, t, labels))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
