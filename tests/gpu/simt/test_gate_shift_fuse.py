"""The CUDA kernels of gate, shift and fuse, run on the CPU by simt.h, against the reference in float64."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, byref, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import gate_shift_fuse as family
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, accumulation, draw, pointer, storage_of
from tests.neighbours.by_name import Golden
from tests.neighbours.golden_gsf import compare_with_the_authors
from tests.ops.support import running_on
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Clips(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "gate")),
        *((name, c_int64) for name in ("clips", "frames", "channels", "half", "positions")),
    )

    @classmethod
    def of(cls, x: Tensor, gate: Tensor, of_channels: Tensor) -> "Clips":
        batch, frames, channels, height, width = x.shape
        return cls(x.data_ptr(), gate.data_ptr(), batch, frames, channels, of_channels.shape[2], height * width)


class GateShiftFuse(Library):
    stem = "gate_shift_fuse"

    def gate_shift_means_out(self, x: Tensor, gate: Tensor, *, means: Tensor) -> None:
        self.call("gate_shift_means", storage_of(x), byref(Clips.of(x, gate, means)), pointer(means))

    def gate_shift_fuse_out(self, x: Tensor, gate: Tensor, phi: Tensor, *, out: Tensor) -> None:
        self.call("gate_shift_fuse", storage_of(x), byref(Clips.of(x, gate, phi)), pointer(phi), pointer(out))

    def gate_shift_slopes_out(self, gradient: Tensor, x: Tensor, gate: Tensor, *, d_phi: Tensor) -> None:
        clips = Clips.of(x, gate, d_phi)
        self.call("gate_shift_slopes", storage_of(x), byref(clips), pointer(gradient), pointer(d_phi))

    def gate_shift_fuse_backward_out(
        self, gradient: Tensor, x: Tensor, gate: Tensor, phi: Tensor, d_means: Tensor, *, d_x: Tensor, d_gate: Tensor
    ) -> None:
        tensors = map(pointer, (gradient, phi, d_means, d_x, d_gate))
        self.call("gate_shift_fuse_backward", storage_of(x), byref(Clips.of(x, gate, phi)), *tensors)


def check_clips(simt: GateShiftFuse, shape: tuple[int, ...], used: int, dtype: torch.dtype, shift: int = 0) -> None:
    """Each kernel against the reference kernel in float64; channels that are not used stay as they are."""
    acc, guarded = accumulation(dtype), Guarded(shift)
    batch, frames, _, *size = shape
    room = batch, 2, used // 2, frames
    x, gradient = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    gate = (draw(batch, 2, frames, *size, dtype=torch.float64, seed=2) / 4).tanh().to(dtype)
    phi = draw(*room, dtype=acc, seed=3).sigmoid()
    d_means = draw(batch, 4, *room[2:], dtype=acc, seed=4)
    calls = {
        "means": ((x, gate), (d_means,)),
        "fuse": ((x, gate, phi), (x,)),
        "slopes": ((gradient, x, gate), (phi,)),
        "backward": ((gradient, x, gate, phi, d_means), (x, gate)),
    }
    names = {"means": ["means"], "fuse": ["out"], "slopes": ["d_phi"], "backward": ["d_x", "d_gate"]}
    for name, (inputs, like) in calls.items():
        wide = {result: t.double().clone() for result, t in zip(names[name], like, strict=True)}
        results = {result: guarded(t) for result, t in zip(names[name], like, strict=True)}
        for result, of in results.items():  # what must be written is not what is there
            (of if result in ("means", "d_phi", "d_gate") else of[:, :, :used]).fill_(math.nan)
        operator = {"means": "gate_shift_means_out", "slopes": "gate_shift_slopes_out", "fuse": "gate_shift_fuse_out"}
        getattr(simt, operator.get(name, "gate_shift_fuse_backward_out"))(*guarded.inputs(inputs), **results)
        guarded.check()
        getattr(family, f"_{name}_kernel")(*(t.double() for t in inputs), **wide)
        for result, expected in wide.items():
            assert_close(results[result], expected, "formula", like[names[name].index(result)].dtype)


@pytest.fixture(scope="module")
def simt() -> GateShiftFuse:
    return GateShiftFuse()


# (B, T, C, H, W), used channels
CASES = {
    "planes of no whole pack": ((2, 3, 9, 3, 3), 8),
    "planes of whole packs": ((1, 2, 12, 4, 8), 12),
    "one frame": ((2, 1, 4, 2, 1), 4),
    "one position, several channels for a thread": ((1, 2, 2100, 1, 1), 2092),
    "several tiles, and packs for a lane": ((1, 2, 4, 23, 25), 4),
    "no positions": ((1, 2, 4, 0, 3), 4),
    "no clips": ((0, 2, 4, 3, 3), 4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_gate_shift_fuse(simt: GateShiftFuse, dtype: torch.dtype, case: str) -> None:
    shape, used = CASES[case]
    if 0 in shape:
        simt.gate_shift_fuse_out(*(torch.zeros(s, dtype=dtype) for s in (shape, (1,), (1, 1, used // 2))),
                                 out=torch.zeros(shape, dtype=dtype))  # fmt: skip
        return
    for order, seed in SCHEDULES if used < 2000 else SCHEDULES[:1]:
        simt.schedule(order, seed)
        check_clips(simt, shape, used, dtype, shift=seed)


@contextmanager
def in_the_operators_place(simt: GateShiftFuse) -> Iterator[None]:
    """The operators of the CPU run on these kernels."""
    names = ["gate_shift_means_out", "gate_shift_fuse_out", "gate_shift_slopes_out", "gate_shift_fuse_backward_out"]
    with running_on("reference"):
        library = torch.library.Library("prograd_fast", "IMPL")
        for name in names:
            library.impl(name, getattr(simt, name), "CPU")
        try:
            yield
        finally:
            library._destroy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_authors_module(simt: GateShiftFuse, dtype: torch.dtype) -> None:
    simt.schedule("random", 0)
    simt.launches()
    with in_the_operators_place(simt):
        compare_with_the_authors(Golden("gsf", dtype))
    assert simt.launches() > 0


FAULTS = {
    "a mean that is left out": Fault("gate_shift_fuse.cu", "(to + all.frames) % all.frames", "plane.t"),
    "moved the other way": Fault("gate_shift_fuse.cu", "return c < half ? 1 : -1;", "return c < half ? -1 : 1;"),
    "halves not interleaved": Fault("gate_shift_fuse.cu", "j % quarter * 2 + j / quarter", "j"),
    "what came from a frame too early": Fault("gate_shift_fuse.cu", "came[j] = passed;", "came[j] += passed;"),
    "sum of one slice": Fault("gate_shift_fuse.cu", "other < slices;", "other < 1;"),
    "no barrier": Fault("gate_shift_fuse.cu", "  __syncthreads();\n  if (slice", "  if (slice"),
    "pack behind the end": Fault(
        "gate_shift_fuse.cu", "left < kVector<T> ? left : kVector<T>", "kVector<T>", says="outside|relative"
    ),
    "sum of half the lanes": Fault("gate_shift_fuse.cu", "offset = kWarp / 2", "offset = kWarp / 4"),
    "channels of the next clip": Fault(
        "gate_shift_fuse.cu", "if (c >= 2 * all.half) return;", "", says="outside|relative|nan"
    ),
}


def small_case(simt: GateShiftFuse, seed: int) -> None:
    check_clips(simt, (2, 3, 9, 3, 3), 8, torch.float32, shift=seed)
    check_clips(simt, (1, 2, 4, 8, 17), 4, torch.float32)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], GateShiftFuse, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: GateShiftFuse) -> None:
    run_case(simt, small_case)
