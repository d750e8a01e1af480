"""The CUDA kernel of the losses of a difference, run on the CPU by simt.h, against the reference in float64."""

import math
from ctypes import Structure, byref, c_bool, c_double, c_int64, c_void_p

import pytest
import torch
from torch import Tensor

from prograd_fast.ops.differences import soft_wing_cotangent, squared_error_cotangent
from prograd_fast.reference import soft_wing, squared_error
from tests.gpu.simt.build import compiler
from tests.gpu.simt.library import STORAGES, Guarded, Library, accumulation, draw, pointer, storage_of
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


class Differences(Library):
    stem = "differences"

    def difference_loss_out(
        self, prediction: Tensor, target: Tensor, *options: object, loss: Tensor, cotangents: Tensor
    ) -> None:
        packed = Options(*options, loss.data_ptr(), cotangents.data_ptr())
        pointers = map(pointer, (prediction, target))
        size = c_int64(prediction.numel())
        self.call("difference_loss", storage_of(prediction), *pointers, size, byref(packed))


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
