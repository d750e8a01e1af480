"""The CUDA kernels of GELU, run on the CPU by simt.h, against the reference in float64."""

import math
from ctypes import c_int64
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import gelu as formulas
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import STORAGES, Guarded, Library, pointer, storage_of
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Gelu(Library):
    stem = "gelu"

    def gelu_out(self, x: Tensor, approximate: int, *, out: Tensor) -> None:
        pointers = (pointer(x), c_int64(x.numel()), approximate, pointer(out))
        self.call("gelu", storage_of(x), *pointers)

    def gelu_backward_(self, gradient: Tensor, x: Tensor, approximate: int) -> None:
        to = (pointer(gradient), c_int64(len(gradient)))
        of = (pointer(x), c_int64(x.numel()), approximate)
        self.call("gelu_backward", storage_of(x), *to, *of)


def check_gelu(simt: Gelu, x: Tensor, approximate: int, cotangents: int = 2, shift: int = 0) -> None:
    guarded = Guarded(shift)
    name = formulas.APPROXIMATIONS[approximate]
    out, given = guarded(torch.full_like(x, math.nan)), guarded.input(x)
    simt.gelu_out(given, approximate, out=out)
    assert_close(out, formulas.gelu(x.double(), name), "formula", x.dtype, scale=x)  # the gate is at most 1
    generator = torch.Generator().manual_seed(x.numel())
    start = torch.randn(cotangents, *x.shape, generator=generator).to(x.dtype)
    gradient = guarded(start)
    simt.gelu_backward_(gradient, given, approximate)
    guarded.check()
    assert_close(gradient, formulas.gelu_backward(start.double(), x.double(), name), "formula", x.dtype, start)


@pytest.fixture(scope="module")
def simt() -> Gelu:
    return Gelu()


@pytest.mark.parametrize("approximate", range(len(formulas.APPROXIMATIONS)), ids=formulas.APPROXIMATIONS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_gelu(simt: Gelu, dtype: torch.dtype, approximate: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in [(1,), (), (0, 3), (5, 7), (2, 1030)]:  # 5 * 7: cotangents start off a 16-byte boundary; two blocks
        x = (3 * torch.randn(shape, generator=generator)).to(dtype)
        for shift in range(2):
            check_gelu(simt, x, approximate, cotangents=3, shift=shift)


@pytest.mark.parametrize("approximate", range(len(formulas.APPROXIMATIONS)), ids=formulas.APPROXIMATIONS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_gelu_of_extreme_values(simt: Gelu, dtype: torch.dtype, approximate: int) -> None:
    large = torch.finfo(dtype).max
    # where the gate goes to 0 and 1, and where squares and cubes overflow; each alone, its error relative to itself
    for value in [0.0, -0.0, 1e-4, -1e-4, -5.0, -9.0, -14.5, 20.0, -40.0, 1e4, -1e4, large, -large]:
        check_gelu(simt, torch.tensor([value], dtype=torch.float64).to(dtype), approximate, cotangents=1)


@pytest.mark.parametrize("approximate", range(len(formulas.APPROXIMATIONS)), ids=formulas.APPROXIMATIONS)
def test_gelu_passes_nan_on(simt: Gelu, approximate: int) -> None:
    x, out, gradient = torch.tensor([torch.nan, 1.0]), torch.zeros(2), torch.ones(1, 2)
    simt.gelu_out(x, approximate, out=out)
    simt.gelu_backward_(gradient, x, approximate)
    assert out.isnan().tolist() == gradient[0].isnan().tolist() == [True, False]


FAULTS = {
    "read behind the end": Fault(
        "gelu.cu", "load(slopes, x + begin, valid", "load(slopes, x + begin, N", says="read .* outside"
    ),
    "input written": Fault(
        "gelu.cu", "store(here, values, valid", "store(const_cast<T*>(x) + begin, values, valid", says="wrote .* into"
    ),
    "pack behind the end": Fault(
        "gelu.cu", "store(out + begin, values, valid", "store(out + begin, values, N", says="outside"
    ),
}


def small_case(simt: Gelu, seed: int) -> None:
    check_gelu(simt, torch.randn(1, generator=torch.Generator().manual_seed(seed)), approximate=0, shift=3)
    check_gelu(simt, torch.randn(1030, generator=torch.Generator().manual_seed(seed)), approximate=0)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], Gelu, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: Gelu) -> None:
    run_case(simt, small_case)
