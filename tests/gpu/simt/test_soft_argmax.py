"""The CUDA kernels of the local soft-argmax, run on the CPU by simt.h, against the formula in float64."""

import math
from ctypes import Structure, byref, c_double, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops.soft_argmax import local_soft_argmax_backward
from prograd_fast.reference import local_soft_argmax
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import STORAGES, Guarded, Library, accumulation, draw, pointer, storage_of
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class HeatMaps(Structure):
    _fields_ = (
        ("values", c_void_p),
        ("maps", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("window", c_int64),
        ("temperature", c_double),
    )


class SoftArgmax(Library):
    stem = "soft_argmax"

    def local_soft_argmax_out(
        self, maps: Tensor, window: int, temperature: float, *, points: Tensor, peaks: Tensor
    ) -> None:
        packed = _packed(maps, window, temperature)
        self.call("local_soft_argmax", storage_of(maps), byref(packed), pointer(points), pointer(peaks))

    def local_soft_argmax_backward_out(
        self, gradient: Tensor, maps: Tensor, peaks: Tensor, window: int, temperature: float, *, d_maps: Tensor
    ) -> None:
        packed = _packed(maps, window, temperature)
        pointers = map(pointer, (peaks, gradient, d_maps))
        self.call("local_soft_argmax_backward", storage_of(maps), byref(packed), *pointers)


def _packed(maps: Tensor, window: int, temperature: float) -> HeatMaps:
    batch, points, height, width = maps.shape
    return HeatMaps(maps.data_ptr(), batch * points, height, width, window, temperature)


@pytest.fixture(scope="module")
def simt() -> SoftArgmax:
    return SoftArgmax()


def check_soft_argmax(simt: SoftArgmax, maps: Tensor, window: int, temperature: float, shift: int = 0) -> None:
    guarded, acc = Guarded(shift), accumulation(maps.dtype)
    values, gradient = guarded.input(maps), guarded.input(draw(*maps.shape[:2], 2, dtype=acc, seed=1))
    points = guarded(torch.full(gradient.shape, math.nan, dtype=acc))
    peaks = guarded(torch.full(maps.shape[:2], -1))
    d_maps = guarded(torch.full(maps.shape, math.nan, dtype=maps.dtype))
    simt.local_soft_argmax_out(values, window, temperature, points=points, peaks=peaks)
    simt.local_soft_argmax_backward_out(gradient, values, peaks, window, temperature, d_maps=d_maps)
    guarded.check()
    wide, expected_peaks = maps.double(), maps.flatten(2).argmax(2)
    side = torch.tensor(float(max(maps.shape)))
    assert_close(points, local_soft_argmax(wide, window, temperature), "formula", acc, side)
    assert torch.equal(peaks, expected_peaks)
    expected = local_soft_argmax_backward(gradient.double(), wide, expected_peaks, window, temperature)
    assert_close(d_maps, expected, "formula", maps.dtype, expected.abs().clamp(min=temperature))


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("shape", "window", "temperature"),
    [
        ((1, 1, 1, 1), 1, 1.0),  # one pixel
        ((2, 3, 4, 3), 7, 0.3),  # a window larger than the map; maps that start off a 16-byte boundary
        ((1, 2, 19, 33), 5, 0.5),  # several warps, an incomplete pack at either end
        ((1, 1, 70, 65), 63, 0.1),  # the largest window: several weights for a thread, several packs
    ],
)
def test_soft_argmax(
    simt: SoftArgmax, dtype: torch.dtype, shape: tuple[int, ...], window: int, temperature: float
) -> None:
    for seed, order in enumerate(("random", "greedy", "reverse")):
        simt.schedule(order, seed)
        check_soft_argmax(simt, draw(*shape, dtype=dtype, seed=seed), window, temperature, shift=seed)


def test_peaks_in_every_corner(simt: SoftArgmax) -> None:
    """The window reaches over each side of the map; zeros there outweigh a negative peak."""
    for height, sign in ((3.0, 1.0), (-1e-3, 1.0), (3.0, -1.0)):
        maps = torch.full((1, 4, 9, 11), min(height, 0.0) - 0.5)
        for n, (row, column) in enumerate(((0, 0), (0, 10), (8, 0), (8, 10))):
            maps[0, n, row, column] = height
        check_soft_argmax(simt, sign * maps, 5, 2.0)


def test_ties_and_special_values(simt: SoftArgmax) -> None:
    """The first of equal values, whatever thread has it; NaN wins, in its map alone; -inf has no weight."""
    maps = torch.zeros(1, 6, 40, 50)
    maps[0, 1, 30, 7] = maps[0, 1, 20, 49] = maps[0, 1, 39, 0] = 60.0
    maps[0, 2, 1, 1], maps[0, 2, 0, 0] = math.nan, 9.0
    maps[0, 3], maps[0, 3, 20, 30] = -math.inf, 1.0
    maps[0, 4, 5, 5] = math.inf
    maps[0, 5, 13, 17] = 3e38
    points, peaks = torch.zeros(1, 6, 2), torch.zeros(1, 6).long()
    for seed, order in enumerate(("random", "greedy", "reverse")):
        simt.schedule(order, seed)
        simt.local_soft_argmax_out(maps, 3, 1.0, points=points, peaks=peaks)
        assert points[0, [0, 1, 3, 5]].tolist() == [[0.0, 0.0], [49.0, 20.0], [30.0, 20.0], [17.0, 13.0]]
        assert points[0, [2, 4]].isnan().all()
        assert peaks[0].tolist() == [0, 20 * 50 + 49, 51, 20 * 50 + 30, 5 * 50 + 5, 13 * 50 + 17]


def test_no_maps_and_launches(simt: SoftArgmax) -> None:
    simt.launches()
    for maps, launches in ((0, 0), (2, 1)):
        points, peaks = torch.zeros(maps, 3, 2), torch.zeros(maps, 3).long()
        simt.local_soft_argmax_out(torch.zeros(maps, 3, 4, 4), 3, 1.0, points=points, peaks=peaks)
        assert simt.launches() == launches


def test_no_peak_is_outside(simt: SoftArgmax) -> None:
    """A caller's own peaks may be anything: the backward stays inside of the maps."""
    guarded = Guarded(0)
    maps, gradient = guarded.input(draw(1, 4, 5, 6, dtype=torch.float32)), guarded.input(torch.ones(1, 4, 2))
    d_maps = guarded(torch.full(maps.shape, math.nan))
    peaks = guarded.input(torch.tensor([[-1, 30, -(2**63), 2**63 - 1]]))
    simt.local_soft_argmax_backward_out(gradient, maps, peaks, 3, 1.0, d_maps=d_maps)
    guarded.check()
    expected = local_soft_argmax_backward(gradient, maps, peaks.clamp(0, 29), 3, 1.0)
    assert_close(d_maps, expected, "formula", torch.float32)


FAULTS = {
    "the last of equal values": Fault(
        "soft_argmax.cu", "is_nan()) && place < other.place", "is_nan()) && place > other.place"
    ),
    "peaks of one warp": Fault("soft_argmax.cu", "b.before(a) ? b : a;", "b.before(a) ? a : a;"),
    "no zeros outside": Fault("soft_argmax.cu", "(values[at_row * width + at_column]) : A(0))", "(values[0]) : A(1))"),
    "top without the zeros outside": Fault(
        "soft_argmax.cu", "top <= A(0)) top = A(0);", "top <= A(0)) top = top;", says="relative error"
    ),
    "zero for the last value": Fault(
        "soft_argmax.cu", "read(pack, from, begin, end, aligned);", "read(pack, from, begin, end - 1, aligned);"
    ),
    "the peak of another map": Fault("soft_argmax.cu", "given_peaks[map]", "given_peaks[0]"),
    "a peak behind the map": Fault(
        "soft_argmax.cu",
        "if (i < begin || i >= end) continue;\n      const Peak",
        "if (i < begin) continue;\n      const Peak",
        says="relative error",
    ),
    "written behind the map": Fault(
        "soft_argmax.cu",
        "store<N, T>(to, slopes, begin, end, aligned)",
        "store<N, T>(to, slopes, begin, N, aligned)",
        says="outside",
    ),
    "gradient of the neighbour's column": Fault(
        "soft_argmax.cu", "((A(column) - window.x) * g_x", "((A(column + 1) - window.x) * g_x"
    ),
}


def small_case(simt: SoftArgmax, seed: int) -> None:
    maps = draw(1, 3, 7, 29, dtype=torch.float32, seed=seed)
    maps[0, 0, 2, 3] = maps[0, 0, 5, 20] = 30.0  # a tie between warps
    maps[0, 1] = -40.0  # the first pixel, with zeros around that outweigh it
    check_soft_argmax(simt, maps, 5, 3.0, shift=1)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], SoftArgmax, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: SoftArgmax) -> None:
    run_case(simt, small_case)
