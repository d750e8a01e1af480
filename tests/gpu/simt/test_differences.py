"""The CUDA kernels of the losses of a difference, run on the CPU by simt.h, against the reference in float64."""

import math
from ctypes import Structure, byref, c_bool, c_double, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops.differences import (
    soft_wing_cotangent,
    squared_error_cotangent,
    structure_loss_cotangents,
    structure_sums,
)
from prograd_fast.reference import soft_wing, squared_error
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import ORDERS, STORAGES, Guarded, Library, accumulation, draw, pointer, storage_of
from tests.gpu.simt.test_edges import Segments, segments
from tests.ops.test_edges import graph
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Options(Structure):
    _fields_ = (
        ("soft_wing", c_bool),
        ("omega1", c_double),
        ("omega2", c_double),
        ("epsilon", c_double),
        ("factor", c_double),
        ("loss", c_void_p),
        ("cotangents", c_void_p),
    )


class Landmarks(Structure):
    _fields_ = (
        ("prediction", c_void_p),
        ("target", c_void_p),
        ("rows", c_void_p),
        ("columns", c_void_p),
        ("samples", c_int64),
        ("nodes", c_int64),
        ("axes", c_int64),
        ("by_row", Segments),
        ("by_column", Segments),
        ("omega1", c_double),
        ("omega2", c_double),
        ("epsilon", c_double),
        ("factor", c_double),
        ("losses", c_void_p),
        ("cotangents", c_void_p),
    )


class Differences(Library):
    stem = "differences"

    def difference_loss_out(
        self, prediction: Tensor, target: Tensor, *options: object, loss: Tensor, cotangents: Tensor
    ) -> None:
        packed = Options(*options, loss.data_ptr(), cotangents.data_ptr())
        pointers = map(pointer, (prediction, target))
        size = c_int64(prediction.numel())
        self.call("difference_loss", storage_of(prediction), *pointers, size, byref(packed))

    def structure_loss_out(
        self, prediction: Tensor, target: Tensor, rows: Tensor, columns: Tensor, *options: float, losses: Tensor,
        cotangents: Tensor,
    ) -> None:  # fmt: skip
        guarded, nodes = Guarded(), prediction.shape[1]
        pointers = (x.data_ptr() for x in (prediction, target, guarded.input(rows), guarded.input(columns)))
        by = segments(guarded, rows, nodes), segments(guarded, columns, nodes)
        packed = Landmarks(*pointers, *prediction.shape, *by, *options, losses.data_ptr(), cotangents.data_ptr())
        self.call("structure_loss", storage_of(prediction), byref(packed))


@pytest.fixture(scope="module")
def simt() -> Differences:
    return Differences()


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("size", [1, 7, 300, 3 * 8192 + 5])  # less than a pack; warps; several blocks and a rest
def test_differences(simt: Differences, dtype: torch.dtype, size: int) -> None:
    x, t = draw(size, dtype=dtype), draw(size, dtype=dtype, seed=1)
    settings, factor = (2.0, 20.0, 0.5), 0.25
    for seed, (is_soft_wing, order) in enumerate(((False, "random"), (True, "greedy"), (True, "reverse"))):
        simt.schedule(order, seed)
        guarded = Guarded(shift=seed)
        loss = guarded(torch.full((), math.nan, dtype=accumulation(dtype)))
        cotangents = guarded(torch.full((size,), math.nan, dtype=accumulation(dtype)))
        simt.difference_loss_out(
            guarded.input(x), guarded.input(t), is_soft_wing, *settings, factor, loss=loss, cotangents=cotangents
        )
        guarded.check()
        wide = x.double(), t.double()
        if is_soft_wing:
            total = soft_wing(wide[0].unsqueeze(0), wide[1].unsqueeze(0), *settings)
            slope = soft_wing_cotangent(*wide, *settings)
        else:
            total, slope = squared_error(*wide, "sum"), squared_error_cotangent(*wide)
        assert_close(loss, factor * total, "formula", accumulation(dtype))
        assert_close(cotangents, factor * slope, "formula", accumulation(dtype))


def test_differences_of_nothing(simt: Differences) -> None:
    loss = torch.full((), 7.0)
    simt.difference_loss_out(
        torch.empty(0), torch.empty(0), False, 1.0, 1.0, 1.0, 1.0, loss=loss, cotangents=torch.empty(0)
    )
    assert loss == 0


def check_structure(simt: Differences, x: Tensor, t: Tensor, rows: Tensor, columns: Tensor, shift: int = 0) -> None:
    settings = 2.0, 20.0, 0.5, 0.25
    guarded, acc = Guarded(shift), accumulation(x.dtype)
    losses = guarded(torch.full((2,), math.nan, dtype=acc))
    cotangents = guarded(torch.full((2, *x.shape), math.nan, dtype=acc))
    simt.structure_loss_out(
        guarded.input(x), guarded.input(t), rows, columns, *settings, losses=losses, cotangents=cotangents
    )
    guarded.check()
    wide = x.double(), t.double()
    assert_close(losses, torch.stack(structure_sums(*wide, rows, columns, *settings)), "formula", acc)
    assert_close(cotangents, structure_loss_cotangents(*wide, rows, columns, *settings), "formula", acc)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((3, 5, 2), 6),
        ((7, 98, 2), 200),  # a landmark for some threads, two for others
        ((2, 1, 3), 0),  # nobody has a neighbour
        ((0, 4, 2), 3),
    ],
)
def test_structure_loss(simt: Differences, dtype: torch.dtype, shape: tuple[int, ...], more: int) -> None:
    rows, columns = graph(shape[1], more)
    for seed, order in enumerate(ORDERS):
        simt.schedule(order, seed)
        if seed == 2:
            simt.shared_limit(4096 + 16)  # both arrays in the workspace
        check_structure(simt, draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1), rows, columns, shift=seed)


def test_structure_loss_of_edges_to_no_node(simt: Differences) -> None:
    """They bring NaN, and nobody else's memory is read."""
    rows, columns = torch.tensor([0, 1, 9, 2]), torch.tensor([1, -1, 0, 1])
    x, losses, cotangents = draw(2, 4, 2, dtype=torch.float32), torch.zeros(2), torch.zeros(2, 2, 4, 2)
    simt.structure_loss_out(
        x, torch.zeros_like(x), rows, columns, 2.0, 20.0, 0.5, 1.0, losses=losses, cotangents=cotangents
    )
    assert losses.isnan().tolist() == [False, True]
    assert cotangents[0].isfinite().all()
    assert cotangents[1, :, [0, 1]].isnan().all()
    assert cotangents[1, :, [2, 3]].isfinite().all()


FAULTS = {
    "differences of the threads to come": Fault(
        "differences.cu", "  __syncthreads();\n  // the offsets of", "  // the offsets of", says="relative error|race"
    ),
    "rows in the place of columns": Fault(
        "differences.cu", "all.columns[all.by_row.order[k]]", "all.rows[all.by_row.order[k]]"
    ),
    "the sender's share": Fault("differences.cu", "share_of<A>(all.by_row, row) *", "share_of<A>(all.by_row, node) *"),
    "sums of the last sample": Fault(
        "differences.cu", "all.parts[all.samples + part];", "all.parts[2 * all.samples - 1];"
    ),
}


def small_case(simt: Differences, seed: int) -> None:
    rows, columns = graph(98, 150, seed)
    columns = columns.where(rows != 0, 5)  # a row of another length
    x, t = (draw(3, 98, 2, dtype=torch.float32, seed=s) for s in (seed, seed + 5))
    check_structure(simt, x, t, rows, columns, shift=1)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], Differences, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: Differences) -> None:
    run_case(simt, small_case)
