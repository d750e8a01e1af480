"""The CUDA kernels of the linear losses, run on the CPU by simt.h, against float64 formulas."""

import math
from ctypes import byref, c_double, c_int64
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.ops import dual_loss as formulas
from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.ops.linear_dual_loss import linear_logits
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, accumulation, draw, pointer, storage_of
from tests.gpu.simt.loss_options import loss_options
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class LinearDualLoss(Library):
    stem = "linear_dual_loss"

    def linear_dual_loss_out(
        self,
        features: Tensor,
        student_classes: Tensor,
        teacher_classes: Tensor | None,
        labels: Tensor,
        teacher_offset: Tensor | None,
        task_weight: Tensor | None,
        general_weight: Tensor | None,
        scale: float,
        *options: object,
        losses: Tensor,
        cotangents: Tensor,
        correct: Tensor,
    ) -> None:
        weights = (teacher_offset, task_weight, general_weight)
        packed = loss_options(labels, *weights, *options, losses, cotangents, correct)  # type: ignore[arg-type]
        pointers = map(pointer, (features, student_classes, teacher_classes))
        sizes = (c_int64(features.shape[0]), c_int64(student_classes.shape[0]), c_int64(features.shape[1]))
        storage = storage_of(features)
        self.call("linear_dual_loss", storage, *pointers, *sizes, c_double(scale), byref(packed))


def check_linear_dual_loss(simt: LinearDualLoss, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, w, v = (
        torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1).to(dtype)
        for n in (rows, classes, classes)
    )
    labels = torch.randint(classes, (rows,), generator=generator)
    acc = accumulation(dtype)
    offset, task_weight, general_weight = (torch.rand(n, generator=generator).to(acc) for n in (classes, rows, rows))
    scale, temperature = 20.0, 2.0
    for reduction, general in enumerate(("kl", "soft_ce", "kl")):
        guarded = Guarded()
        losses = guarded(torch.full((2, rows) if reduction == 0 else (2,), math.nan, dtype=acc))
        cotangents, correct = guarded(torch.full((2, classes, width), math.nan, dtype=acc)), torch.tensor(-1)
        weights = (offset, task_weight, general_weight)
        simt.linear_dual_loss_out(
            *(guarded(matrix) for matrix in (x, w, v)),
            labels,
            *weights,
            scale,
            temperature,
            general == "soft_ce",
            reduction,
            losses=losses,
            cotangents=cotangents,
            correct=correct,
        )
        guarded.check()
        z, t = (linear_logits(x.double(), classes, scale) for classes in (w.double(), v.double()))
        options: dict[str, Any] = {
            "teacher_offset": offset.double(),
            "task_weight": task_weight.double(),
            "general_weight": general_weight.double(),
            "reduction": REDUCTIONS[reduction],
        }
        expected = formulas.dual_loss_formula(z, t, labels, temperature, general, **options)  # type: ignore[arg-type]
        by_logit = formulas.dual_loss_cotangents(z, t, labels, temperature, **options)
        assert_close(losses, torch.stack(expected), "formula", acc)
        assert_close(cotangents, scale * (by_logit.mT @ x.double()), "formula", acc)
        assert correct == formulas.count_correct(z, labels), "wrong count"


@pytest.fixture(scope="module")
def simt() -> LinearDualLoss:
    return LinearDualLoss()


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
def test_linear_dual_loss(simt: LinearDualLoss, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    order, seed = SCHEDULES[rows % 3]
    simt.schedule(order, seed)
    check_linear_dual_loss(simt, dtype, rows, classes, width)


def test_linear_dual_loss_of_no_rows(simt: LinearDualLoss) -> None:
    x, w, labels = torch.empty(0, 4), torch.randn(5, 4), torch.empty(0, dtype=torch.int64)
    losses, cotangents, correct = torch.empty(2), torch.full((2, 5, 4), math.nan), torch.tensor(-1)
    options = (labels, None, None, None, 1.0, 1.0, False, 2)
    simt.linear_dual_loss_out(x, w, w, *options, losses=losses, cotangents=cotangents, correct=correct)
    assert losses.tolist() == [0.0, 0.0]
    assert not cotangents.any()
    assert correct == 0


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("rows", "classes", "width"),
    [(1, 1, 1), (66, 20, 33), (3, 1030, 8)],  # one of each; two tiles of rows; two ranges of classes
)
def test_linear_cross_entropy(simt: LinearDualLoss, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    x, w = (F.normalize(draw(n, width, dtype=torch.float64, seed=n), dim=1).to(dtype) for n in (rows, classes))
    labels, acc, scale = torch.arange(rows) * 7 % classes, accumulation(dtype), 20.0
    guarded = Guarded()
    losses, cotangents = (
        guarded(torch.full((2,), math.nan, dtype=acc)),
        guarded(torch.zeros(1, classes, width).to(acc)),
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
    assert_close(cotangents[0], gradient, "formula", acc, scale * x if classes == 1 else None)


FAULTS = {
    "no barrier before the last block is chosen": Fault(
        "reduce.cuh", "__syncthreads();  // every thread has written what the last block will read", ""
    ),
    "tile overwritten": Fault("linear_dual_loss.cu", "__syncthreads();  // the tiles may still be read", ""),
}


def small_case(simt: LinearDualLoss, seed: int) -> None:
    check_linear_dual_loss(simt, torch.float32, rows=300, classes=17, width=40)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], LinearDualLoss, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: LinearDualLoss) -> None:
    run_case(simt, small_case)
