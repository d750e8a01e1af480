"""The CUDA kernel of the dual loss, run on the CPU by simt.h, against the reference in float64."""

import math
from ctypes import Structure, byref, c_bool, c_double, c_int, c_int64, c_void_p
from typing import Any

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import dual_loss as formulas
from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.ops.dual_loss import GENERAL_LOSSES
from tests.gpu.simt.build import compiler
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, accumulation, pointer, storage_of
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class LossOptions(Structure):
    _fields_ = (
        ("labels", c_void_p),
        ("teacher_offset", c_void_p),
        ("task_weight", c_void_p),
        ("general_weight", c_void_p),
        ("temperature", c_double),
        ("soft_ce", c_bool),
        ("reduction", c_int),
        ("task", c_void_p),
        ("general", c_void_p),
        ("cotangents", c_void_p),
        ("correct", c_void_p),
    )


class DualLoss(Library):
    stem = "dual_loss"

    def dual_loss_out(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        teacher_offset: Tensor | None,
        task_weight: Tensor | None,
        general_weight: Tensor | None,
        *options: object,
        losses: Tensor,
        cotangents: Tensor,
        correct: Tensor,
    ) -> None:
        inputs = map(pointer, (labels, teacher_offset, task_weight, general_weight))
        outputs = map(pointer, (losses[0], losses[1], cotangents, correct))
        packed = LossOptions(*inputs, *options, *outputs)
        pointers = map(pointer, (student, teacher))
        sizes = map(c_int64, student.shape)
        self.call("dual_loss", storage_of(student), *pointers, *sizes, byref(packed))


def run_dual_loss(
    simt: DualLoss,
    z: Tensor,
    t: Tensor,
    labels: Tensor,
    reduction: int = 1,
    shift: int = 0,
    teacher_shift: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation(z.dtype)
    guarded, teacher_guarded = Guarded(shift), Guarded(shift if teacher_shift is None else teacher_shift)
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
        teacher_guarded(t),
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
    teacher_guarded.check()
    return results


def expected_results(
    z: Tensor, t: Tensor, labels: Tensor, reduction: int = 1, general: str = "kl", **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    wide |= {"reduction": REDUCTIONS[reduction]}
    losses = torch.stack(formulas.dual_loss_formula(z.double(), t.double(), labels, general=general, **wide))
    by_logit = formulas.dual_loss_cotangents(z.double(), t.double(), labels, **wide)
    return losses, by_logit, formulas.count_correct(z, labels)


def check_dual_loss(
    simt: DualLoss,
    z: Tensor,
    t: Tensor,
    labels: Tensor,
    reduction: int = 1,
    shift: int = 0,
    teacher_shift: int | None = None,
    **options: Any,
) -> None:
    losses, cotangents, correct = run_dual_loss(simt, z, t, labels, reduction, shift, teacher_shift, **options)
    expected = expected_results(z, t, labels, reduction, **options)
    assert_close(losses, expected[0], "formula", accumulation(z.dtype))
    assert_close(cotangents, expected[1], "formula", accumulation(z.dtype))
    assert correct == expected[2], "wrong count"


def logits(rows: int, classes: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * classes)
    z, t = (scale * torch.randn(2, rows, classes, generator=generator)).to(dtype)
    return z, t, torch.randint(classes, (rows,), generator=generator)


@pytest.fixture(scope="module")
def simt() -> DualLoss:
    return DualLoss()


# rows in one block, in pieces; class by class, since the general half of an odd number of classes is aligned otherwise;
# in parts, each in pieces, the last of a few classes; in parts, class by class
KINDS = [(4, 67), (3, 67), (2, 16402), (2, 16401)]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        (1, 1),
        (4, 1),
        (3, 5),  # class by class
        (4, 5),  # less than one piece, and rows that start off a 16-byte boundary
        (4, 31),  # incomplete pieces at both ends
        (4, 32),
        (4, 257),  # several warps
        (5, 257),
        (3, 1000),
        (4, 4097),  # a piece more than threads
        (1, 9001),  # several pieces for a thread; the only row has no batch
    ],
)
def test_dual_loss(simt: DualLoss, dtype: torch.dtype, rows: int, classes: int, temperature: float) -> None:
    z, t, labels = logits(rows, classes, dtype)
    for (order, seed), reduction in zip(SCHEDULES, range(3), strict=True):
        simt.schedule(order, seed)
        check_dual_loss(simt, z, t, labels, reduction, shift=seed, temperature=temperature)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        (1, 16385),  # one class in the last part, class by class
        (2, 16402),
        (1, 60004),  # longer than shared memory, in every dtype
    ],
)
def test_dual_loss_of_rows_in_parts(simt: DualLoss, dtype: torch.dtype, rows: int, classes: int) -> None:
    z, t, labels = logits(rows, classes, dtype)
    labels[0] = classes - 1
    check_dual_loss(simt, z, t, labels, reduction=1 + rows % 2, shift=rows % 2, temperature=1.5)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("classes", [67, 16402])
def test_dual_loss_of_a_teacher_that_is_aligned_otherwise(simt: DualLoss, dtype: torch.dtype, classes: int) -> None:
    z, t, labels = logits(4 if classes < 100 else 2, classes, dtype)
    check_dual_loss(simt, z, t, labels, shift=0, teacher_shift=1)
    check_dual_loss(simt, z, t, labels, shift=1, teacher_shift=0)


@pytest.mark.parametrize("general", GENERAL_LOSSES)
@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("offset", [False, True])
def test_dual_loss_with_offset_and_weights(simt: DualLoss, dtype: torch.dtype, general: str, offset: bool) -> None:
    z, t, labels = logits(8, 67, dtype)
    task_weight, general_weight = torch.rand(8), torch.rand(8)
    for reduction in range(3):
        check_dual_loss(
            simt,
            z,
            t,
            labels,
            reduction,
            temperature=0.5,
            general=general,
            teacher_offset=torch.randn(67) if offset else None,
            task_weight=task_weight,
            general_weight=general_weight,
        )


def test_dual_loss_of_parts_with_all_options(simt: DualLoss) -> None:
    z, t, labels = logits(3, 16401, torch.bfloat16)
    weights = {"teacher_offset": torch.randn(16401), "task_weight": torch.rand(3), "general_weight": torch.rand(3)}
    for reduction in range(3):
        check_dual_loss(simt, z, t, labels, reduction, temperature=0.5, general="soft_ce", **weights)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("classes", [9, 300, 16401])
def test_dual_loss_of_extreme_logits(simt: DualLoss, classes: int, temperature: float) -> None:
    z, t, labels = logits(8, classes, torch.float32)
    z[0, ::2], t[0, 1::2] = 1e4, 1e4
    z[1, ::2], t[1, 1::2] = -1e4, -1e4
    z[2:5, 3] = t[2:5, 3] = t[4:, 5] = -math.inf  # a class excluded by both, or by the teacher alone
    t[5, 1:] = -math.inf  # a teacher that is sure
    z[6, : classes // 2], t[6, : classes // 2] = -math.inf, -math.inf  # whole parts
    z[6, classes // 2] = 40.0
    z[7], t[7] = z[7] + 3e38, t[7] - 3e38  # 2^x of what is exact before it is scaled
    labels[:] = 1
    labels[6] = classes - 1
    for order, seed in SCHEDULES[: 3 if classes < 1000 else 1]:
        simt.schedule(order, seed)
        check_dual_loss(simt, z, t, labels, temperature=temperature)


@pytest.mark.parametrize(("rows", "classes"), KINDS)
def test_dual_loss_where_the_student_excludes_what_the_teacher_has(simt: DualLoss, rows: int, classes: int) -> None:
    z, t, labels = logits(rows, classes, torch.float32)
    z[0, 7] = -math.inf
    labels[:] = 1
    losses, cotangents, _ = run_dual_loss(simt, z, t, labels, reduction=0)
    assert losses[1, 0] == math.inf
    assert losses[0].isfinite().all()
    assert losses[1, 1:].isfinite().all()
    assert cotangents.isfinite().all()


@pytest.mark.parametrize(("rows", "classes"), KINDS)
def test_dual_loss_where_the_student_excludes_what_the_teacher_almost_does(
    simt: DualLoss, rows: int, classes: int
) -> None:
    """In the sums of the first part the class counts, and makes them infinite; beside the last part it is nothing."""
    z, t, labels = logits(rows, classes, torch.float32)
    z[0, 7] = -math.inf
    t[0, :] -= 300
    t[0, -1] = 0.0
    labels[:] = 1
    losses, cotangents, _ = run_dual_loss(simt, z, t, labels, reduction=0)
    assert losses.isfinite().all()
    assert cotangents.isfinite().all()
    z[0, 7] = -100.0
    assert_close(losses, expected_results(z, t, labels, 0)[0], "formula", torch.float32)


@pytest.mark.parametrize(("rows", "classes"), KINDS)
def test_dual_loss_of_what_is_not_a_number(simt: DualLoss, rows: int, classes: int) -> None:
    z, t, labels = logits(rows, classes, torch.float32)
    labels[:] = z.argmax(dim=1)
    z[0, classes - 3] = t[1, 2] = math.nan
    losses, cotangents, correct = run_dual_loss(simt, z, t, labels, reduction=0)
    expected = expected_results(z, t, labels, 0)
    assert losses.isnan()[:, 0].all()
    assert losses.isnan()[1, 1]
    assert cotangents[:, 0].isnan().all()
    assert cotangents[1, 1].isnan().all()
    assert correct == rows - 1
    assert_close(losses[0, 1:], expected[0][0, 1:], "formula", torch.float32)
    assert_close(cotangents[0, 1:], expected[1][0, 1:], "formula", torch.float32)
    if rows > 2:
        assert_close(losses[1, 2:], expected[0][1, 2:], "formula", torch.float32)
        assert_close(cotangents[1, 2:], expected[1][1, 2:], "formula", torch.float32)


@pytest.mark.parametrize(("rows", "classes"), KINDS)
def test_dual_loss_counts_the_first_of_equal_logits(simt: DualLoss, rows: int, classes: int) -> None:
    """In one piece, before and after it, at the ends of a row, and in another part."""
    z, t, _ = logits(rows, classes, torch.float32)
    near, far = classes - 40, classes - 3
    pairs = [(near, near + 1), (0, far), (2, near), (near, far), (far, classes - 1)]
    for first, second in pairs if classes < 100 else pairs[::2]:
        tied = z.clone()
        tied[:, [first, second]] = 99.0
        assert run_dual_loss(simt, tied, t, torch.full((rows,), first))[2] == rows
        assert run_dual_loss(simt, tied, t, torch.full((rows,), second))[2] == 0


def test_dual_loss_of_no_rows(simt: DualLoss) -> None:
    for classes in (5, 20000):
        z, t, labels = logits(0, classes, torch.float32)
        assert run_dual_loss(simt, z, t, labels, reduction=1)[0].isnan().all()  # as torch: the mean of nothing
        losses, _, correct = run_dual_loss(simt, z, t, labels, reduction=2)
        assert losses.tolist() == [0.0, 0.0]
        assert correct == 0


@pytest.mark.parametrize(("rows", "classes"), KINDS)
def test_dual_loss_of_a_label_outside(simt: DualLoss, rows: int, classes: int) -> None:
    for label in (-1, classes, -(2**63), 2**63 - 1, 2**32 + 1, 1 - 2**32) if classes < 100 else (-1, classes):
        check_label_outside(simt, rows, classes, label)


def check_label_outside(simt: DualLoss, rows: int, classes: int, label: int) -> None:
    """NaN in what the label decides; the row is not correct, and all else is as if it were alone."""
    z, t, labels = logits(rows, classes, torch.float32)
    labels[:] = z.argmax(dim=1)
    expected = expected_results(z, t, labels, 0)
    labels[1] = label
    losses, cotangents, correct = run_dual_loss(simt, z, t, labels, reduction=0, task_weight=torch.ones(rows))
    assert losses[0].isnan().tolist() == [row == 1 for row in range(rows)]
    assert cotangents[0, 1].isnan().all()
    others = [row for row in range(rows) if row != 1]
    assert_close(losses[0, others], expected[0][0, others], "formula", torch.float32)
    assert_close(cotangents[0, others], expected[1][0, others], "formula", torch.float32)
    assert_close(losses[1], expected[0][1], "formula", torch.float32)
    assert_close(cotangents[1], expected[1][1], "formula", torch.float32)
    assert correct == rows - 1
    assert run_dual_loss(simt, z, t, labels)[0].isnan().tolist() == [True, False]


@pytest.mark.parametrize(("rows", "classes"), KINDS)
def test_dual_loss_in_place(simt: DualLoss, rows: int, classes: int) -> None:
    """Cotangents may come where the logits are: chunks of a linear loss then need no second matrix."""
    z, t, labels = logits(rows, classes, torch.float32)
    expected = run_dual_loss(simt, z, t, labels)
    for order, seed in SCHEDULES[: 3 if classes < 100 else 1]:
        simt.schedule(order, seed)
        both, losses, correct = torch.stack([z, t]), torch.zeros(2), torch.tensor(-1)
        simt.dual_loss_out(
            *both, labels, None, None, None, 1.0, False, 1, losses=losses, cotangents=both, correct=correct
        )
        for actual, other in zip((losses, both, correct), expected, strict=True):
            assert torch.equal(actual, other)


@pytest.mark.parametrize(("rows", "classes", "launches"), [(1, 67, 1), (4, 67, 2), (1, 16401, 2), (2, 16402, 2)])
def test_dual_loss_takes_one_launch_or_two(simt: DualLoss, rows: int, classes: int, launches: int) -> None:
    z, t, labels = logits(rows, classes, torch.float32)
    simt.launches()
    run_dual_loss(simt, z, t, labels)
    assert simt.launches() == launches


@pytest.mark.parametrize(("rows", "classes"), [(20, 257), (2, 16402)])
def test_dual_loss_is_the_same_under_every_schedule(simt: DualLoss, rows: int, classes: int) -> None:
    z, t, labels = logits(rows, classes, torch.float32)
    results = []
    for order, seed in [*SCHEDULES, *(("random", seed) for seed in range(3, 8 if rows == 20 else 3))]:
        simt.schedule(order, seed, resident_blocks=1 + 5 * seed)
        results.append(run_dual_loss(simt, z, t, labels))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
