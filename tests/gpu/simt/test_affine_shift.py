"""The CUDA kernels of the affine shift, run on the CPU by simt.h, against the reference in float64."""

import math
from ctypes import POINTER, Structure, byref, c_int64
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops.affine_shift import affine_shift_formula
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, accumulation, draw, pointer, storage_of
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Group(Structure):
    _fields_ = (("channels", c_int64), ("offset", c_int64), ("period", c_int64))


class Shift(Structure):
    _fields_ = (
        ("groups", POINTER(Group)),
        ("count", c_int64),
        ("pictures", c_int64),
        ("channels", c_int64),
        ("positions", c_int64),
    )

    @classmethod
    def of(cls, x: Tensor, groups: list[int], axes: list[int], back: bool) -> "Shift":
        """As csrc/cuda/affine_shift.cpp has it."""
        positions = x[0, 0].numel()
        moves = []
        for size, axis in zip(groups, axes, strict=True):
            step = x.stride(1 + abs(axis)) if axis else 0
            sign = 1 if (axis > 0) != back else -1
            moves.append(Group(size, sign * step, step * x.shape[1 + abs(axis)] if axis else positions))
        return cls((Group * len(moves))(*moves), len(moves), *x.shape[:2], positions)


class AffineShift(Library):
    stem = "affine_shift"

    def affine_shift_out(
        self, x: Tensor, scale: Tensor | None, bias: Tensor | None, groups: list[int], axes: list[int], *, out: Tensor
    ) -> None:
        tensors = map(pointer, (x, scale, bias, out))
        self.call("affine_shift", storage_of(x), *tensors, byref(Shift.of(x, groups, axes, False)))

    def affine_shift_backward_out(
        self,
        gradient: Tensor,
        x: Tensor,
        scale: Tensor,
        groups: list[int],
        axes: list[int],
        *,
        d_x: Tensor,
        d_scale: Tensor,
    ) -> None:
        tensors = map(pointer, (gradient, x, scale, d_x, d_scale))
        self.call("affine_shift_backward", storage_of(x), *tensors, byref(Shift.of(x, groups, axes, True)))


def check_shift(
    simt: AffineShift, x: Tensor, groups: list[int], axes: list[int], shift: int = 0, scaled: bool = True
) -> None:
    acc = accumulation(x.dtype)
    guarded = Guarded(shift)
    bias, gradient = draw(*x.shape, dtype=x.dtype, seed=1), draw(*x.shape, dtype=x.dtype, seed=2)
    scale = draw(*x.shape[:2], dtype=acc, seed=3)
    out, d_x = (guarded(torch.full_like(x, math.nan)) for _ in range(2))
    d_scale = guarded(torch.full_like(scale, math.nan))
    given = guarded.inputs((x, scale, bias, gradient))
    if scaled:
        simt.affine_shift_out(*given[:3], groups, axes, out=out)
    else:
        simt.affine_shift_out(given[0], None, None, groups, axes, out=out)
    simt.affine_shift_backward_out(given[3], given[0], given[1], groups, axes, d_x=d_x, d_scale=d_scale)
    guarded.check()
    leaves = [t.double().requires_grad_() for t in (x, scale)]
    moved = affine_shift_formula(*leaves, None, groups, axes)
    without = affine_shift_formula(x.double(), None, None, groups, axes)
    assert_close(out, moved + bias.double() if scaled else without, "formula", x.dtype)
    expected = torch.autograd.grad(moved, leaves, gradient.double())
    assert_close(d_x, expected[0], "formula", x.dtype)
    products = (x.double() * gradient.double()).abs().flatten(2).sum(2)
    assert_close(d_scale, expected[1], "formula", acc, products)


@pytest.fixture(scope="module")
def simt() -> AffineShift:
    return AffineShift()


CASES = {
    # rows of no whole pack, so that each element is moved alone
    "clips": ((2, 7, 3, 4, 5), [1, 1, 1, 1, 1, 2], [1, -1, 2, -3, 3, 0]),
    # runs and offsets of whole packs of every dtype, moved as they are, and rows in which the last axis moves within
    "whole packs": ((2, 5, 2, 2, 16), [1, 1, 1, 1, 1], [1, -2, 3, -3, 0]),
    # two blocks for a channel, and threads with several packs
    "several blocks": ((1, 3, 8192 + 13), [1, 1, 1], [1, -1, 0]),
    # more groups than a launch takes, some of them empty
    "ten groups": ((2, 9, 3, 3), [1, 0, 1, 1, 1, 1, 1, 1, 1, 1], [1, 2, -1, 2, -2, 0, 1, -1, 2, -2]),
    "one position": ((2, 2, 1, 1), [1, 1], [1, -2]),
    "no positions": ((2, 2, 0, 3), [1, 1], [1, -2]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_affine_shift(simt: AffineShift, dtype: torch.dtype, case: str) -> None:
    shape, groups, axes = CASES[case]
    x = draw(*shape, dtype=dtype)
    if x.numel() == 0:  # the operator itself clears d_scale
        simt.affine_shift_out(x, None, None, groups, axes, out=x.clone())
        return
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_shift(simt, x, groups, axes, shift=seed, scaled=seed != 1)


@pytest.mark.parametrize("dtype", STORAGES)
def test_extreme_values(simt: AffineShift, dtype: torch.dtype) -> None:
    """Infinities and NaNs move as numbers do, and none comes from outside of a run."""
    x = torch.tensor([[[1.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max, 0.0, -0.0, 5.0]]]).to(dtype)
    for axis in (1, -1):
        out = torch.full_like(x, 3)
        simt.affine_shift_out(x, None, None, [1], [axis], out=out)
        assert torch.equal(out.nan_to_num(7), affine_shift_formula(x, None, None, [1], [axis]).nan_to_num(7))


def test_a_launch_for_eight_groups(simt: AffineShift) -> None:
    x = draw(2, 9, 3, 3, dtype=torch.float32)
    simt.launches()
    for count, launches in ((1, 1), (8, 1), (9, 2)):
        groups = [1] * (count - 1) + [10 - count]
        simt.affine_shift_out(x, None, None, groups, [1] * count, out=torch.empty_like(x))
        assert simt.launches() == launches


FAULTS = {
    "no end of the run": Fault("affine_shift.cu", "if (from >= 0 && from < period) load", "if (true) load"),
    "runs that never begin again": Fault("affine_shift.cu", "from = -offset;", "from = from;"),
    "one group too far": Fault("affine_shift.cu", "of_launch >= all.ends[group]", "of_launch > all.ends[group]"),
    "channels of another launch": Fault("affine_shift.cu", "+ all.first + of_launch", "+ of_launch"),
    "part behind the end": Fault(
        "affine_shift.cu", "all.positions - begin < all.part ?", "false ?", says="outside|relative error"
    ),
    "sum of one thread": Fault("affine_shift.cu", "sum = block_sum(sum);", ""),
    "packs of two packs": Fault(
        "affine_shift.cu", "all.aligned && offset % N == 0", "all.aligned", says="16 bytes|align"
    ),
}


def small_case(simt: AffineShift, seed: int) -> None:
    for case in ("clips", "whole packs", "several blocks", "ten groups"):
        shape, groups, axes = CASES[case]
        check_shift(simt, draw(*shape, dtype=torch.float32, seed=seed), groups, axes)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], AffineShift, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: AffineShift) -> None:
    run_case(simt, small_case)
