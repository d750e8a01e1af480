"""The CUDA kernels of layer norm, run on the CPU by simt.h, against the reference in float64."""

import math
from ctypes import c_double, c_int64
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import layer_norm as formulas
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, accumulation, pointer, storage_of
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class LayerNorm(Library):
    stem = "layer_norm"

    def add_layer_norm_out(
        self,
        x: Tensor,
        branch: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *,
        total: Tensor,
        normed: Tensor,
        statistics: Tensor,
    ) -> None:
        inputs = map(pointer, (x, branch, weight, bias))
        results = map(pointer, (total, normed, statistics))
        sizes = map(c_int64, x.shape)
        self.call("add_layer_norm", storage_of(x), *inputs, c_double(eps), *sizes, *results)

    def layer_norm_backward_(
        self, d_total: Tensor, d_normed: Tensor, total: Tensor, statistics: Tensor, weight: Tensor
    ) -> None:
        tensors = map(pointer, (d_total, d_normed, total, statistics, weight))
        sizes = map(c_int64, d_total.shape)
        self.call("layer_norm_backward", storage_of(total), *tensors, *sizes)


def check_add_layer_norm(
    simt: LayerNorm, x: Tensor, branch: Tensor, shift: int = 0, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation(x.dtype)
    guarded = Guarded(shift)
    generator = torch.Generator().manual_seed(x.shape[1])
    weight, bias = (torch.randn(x.shape[1], generator=generator).to(acc) for _ in range(2))
    total, normed = (guarded(torch.full_like(x, math.nan)) for _ in range(2))
    statistics = guarded(torch.full((len(x), 2), math.nan, dtype=acc))
    inputs = guarded.inputs((x, branch, weight, bias))
    simt.add_layer_norm_out(*inputs, eps, total=total, normed=normed, statistics=statistics)
    guarded.check()
    assert_close(total, x.double() + branch.double(), "formula", x.dtype)
    # of the total as it is stored
    t = total.double()
    _, norm, expected = formulas.add_layer_norm(t, torch.zeros_like(t), weight.double(), bias.double(), eps)
    assert_close(normed, norm, "formula", x.dtype)
    for column in range(2):  # each relative to its own magnitude
        assert_close(statistics[:, column], expected[:, column], "formula", acc)
    return total, normed, statistics


def check_layer_norm_backward(
    simt: LayerNorm, cotangents: int, rows: int, columns: int, dtype: torch.dtype, shift: int = 0
) -> Tensor:
    acc = accumulation(dtype)
    guarded = Guarded(shift)
    generator = torch.Generator().manual_seed(rows * columns)
    d_total, d_normed = torch.randn(2, cotangents, rows, columns, generator=generator).to(dtype)
    total = (3 * torch.randn(rows, columns, generator=generator) + 1).to(dtype)
    weight = torch.randn(columns, generator=generator).to(acc)
    t = total.double()
    statistics = torch.stack([t.mean(1), (t.var(1, unbiased=False) + 1e-5).rsqrt()], 1).to(acc)
    expected = formulas.layer_norm_backward(
        d_total.double(), d_normed.double(), t, statistics.double(), weight.double()
    )
    arguments = [guarded(d_total), *guarded.inputs((d_normed, total, statistics, weight))]
    simt.layer_norm_backward_(*arguments)
    guarded.check()
    assert_close(arguments[0], expected, "formula", dtype)
    return arguments[0]


@pytest.fixture(scope="module")
def simt() -> LayerNorm:
    return LayerNorm()


NORMS = [
    (1, 1),
    (3, 5),  # less than one pack, and rows that start off a 16-byte boundary
    (9, 64),  # more rows than a block has
    (2, 513),  # several packs for a lane, and an incomplete one
]


@pytest.mark.parametrize(("rows", "columns"), NORMS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_add_layer_norm(simt: LayerNorm, dtype: torch.dtype, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    x, branch = (torch.randn(2, rows, columns, generator=generator) + 0.5).to(dtype)
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_add_layer_norm(simt, x, branch, shift=seed)


def test_add_layer_norm_of_extreme_rows(simt: LayerNorm) -> None:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).double()
    x[0] = 3.0  # no variance: what divides is the root of eps alone
    x[1] *= 1e6
    x[2] *= 1e-6
    x[3] += 1e3  # a mean far above the deviation
    x[4, 7] = 1e12
    check_add_layer_norm(simt, x, torch.zeros_like(x))
    # one at a time in float32, which cannot tell a deviation far below the mean
    for row in x[[0, 1, 2, 4], None].float():
        check_add_layer_norm(simt, row, torch.zeros_like(row))


@pytest.mark.parametrize("dtype", STORAGES)
def test_layer_norm_of_rows_of_which_a_block_holds_few(simt: LayerNorm, dtype: torch.dtype) -> None:
    columns = 100_000 // dtype.itemsize  # two rows of 100 kB
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    check_add_layer_norm(simt, x, x)
    check_layer_norm_backward(simt, 2, 3, columns, dtype)


@pytest.mark.parametrize("cotangents", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), NORMS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_layer_norm_backward(simt: LayerNorm, dtype: torch.dtype, rows: int, columns: int, cotangents: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_layer_norm_backward(simt, cotangents, rows, columns, dtype, shift=seed)


FAULTS = {
    "norm of half the lanes": Fault("layer_norm.cu", "offset = kWarp / 2", "offset = kWarp / 4"),
    "variance of what is not there": Fault("layer_norm.cu", "i < valid ?", "valid ?"),
}


def small_case(simt: LayerNorm, seed: int) -> None:
    x = torch.randn(5, 71, generator=torch.Generator().manual_seed(seed)) + 1
    check_add_layer_norm(simt, x, x)
    check_layer_norm_backward(simt, 2, 5, 71, torch.float32)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], LayerNorm, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: LayerNorm) -> None:
    run_case(simt, small_case)
