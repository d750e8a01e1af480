"""The CUDA kernels of the normalised focal loss, run on the CPU by simt.h, against the formula in float64."""

import math
from ctypes import Structure, byref, c_double, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.reference import normalised_focal_loss
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import ORDERS, STORAGES, Guarded, Library, accumulation, draw, storage_of
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Masks(Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("labels", c_void_p),
        ("pictures", c_int64),
        ("pixels", c_int64),
        ("alpha", c_double),
        ("gamma", c_double),
        ("max_mult", c_double),
        ("eps", c_double),
        ("losses", c_void_p),
        ("cotangents", c_void_p),
    )


class NormalisedFocal(Library):
    stem = "normalised_focal"

    def normalised_focal_loss_out(
        self, logits: Tensor, labels: Tensor, *options: float, losses: Tensor, cotangents: Tensor
    ) -> None:
        pointers = logits.data_ptr(), labels.data_ptr()
        masks = Masks(*pointers, *logits.shape, *options, losses.data_ptr(), cotangents.data_ptr())
        self.call("normalised_focal_loss", storage_of(logits), byref(masks))


@pytest.fixture(scope="module")
def simt() -> NormalisedFocal:
    return NormalisedFocal()


SETTINGS = ((0.5, 2.0, -1.0, 1e-12), (0.25, 1.0, 1.5, 1e-12), (0.9, 0.5, -1.0, 1e-3))


def check_focal(
    simt: NormalisedFocal, z: Tensor, labels: Tensor, settings: tuple[float, ...], shift: int = 0, of_labels: int = 0
) -> None:
    """`of_labels`: elements by which labels miss a 16-byte boundary in another way than logits."""
    guarded, acc = Guarded(shift), accumulation(z.dtype)
    losses = guarded(torch.full(z.shape[:1], math.nan, dtype=acc))
    cotangents = guarded(torch.full(z.shape, math.nan, dtype=acc))
    simt.normalised_focal_loss_out(
        guarded.input(z), Guarded(shift + of_labels).input(labels), *settings, losses=losses, cotangents=cotangents
    )
    guarded.check()
    wide = z.double().requires_grad_()
    expected = normalised_focal_loss(wide, labels, *settings)
    assert_close(losses, expected, "formula", acc)
    for got, want in zip(cotangents, torch.autograd.grad(expected.sum(), wide)[0], strict=True):
        assert_close(got, want, "formula", acc)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("pictures", "pixels"),
    [
        (2, 1),  # less than a pack
        (3, 257),  # several warps, pictures that start off a 16-byte boundary
        (2, 8192 + 2),  # two blocks of a picture
    ],
)
def test_normalised_focal(simt: NormalisedFocal, dtype: torch.dtype, pictures: int, pixels: int) -> None:
    labels = torch.randint(-1, 2, (pictures, pixels), generator=torch.Generator().manual_seed(1))
    labels[-1] = -1  # none of its pixels counts
    for seed, (order, settings) in enumerate(zip(ORDERS, SETTINGS, strict=True)):
        simt.schedule(order, seed)
        check_focal(simt, draw(pictures, pixels, dtype=dtype, seed=seed), labels, settings, shift=seed)


def test_sure_pixels(simt: NormalisedFocal) -> None:
    """1 - p of a sure pixel is below what float32 has beside 1; all pixels of the second picture are sure."""
    z = torch.tensor([[30.0, 20.0, -25.0, 90.0, -200.0], [25.0, 24.0, -22.0, 60.0, 23.0]])
    labels = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 0, 1, 1]])
    for one in (labels, 1 - labels):
        check_focal(simt, z, one, SETTINGS[0])


def test_unknown_labels(simt: NormalisedFocal) -> None:
    """Make NaN of the loss of their picture, and of no other."""
    labels = torch.tensor([[1, 0, 2], [-2, -1, 0], [1, 0, -1]])
    losses, cotangents = torch.zeros(3), torch.zeros(3, 3)
    simt.normalised_focal_loss_out(torch.zeros(3, 3), labels, *SETTINGS[0], losses=losses, cotangents=cotangents)
    assert losses.isnan().tolist() == [True, True, False]


def test_nothing_and_launches(simt: NormalisedFocal) -> None:
    simt.launches()
    check_focal(simt, torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64), SETTINGS[0])
    assert simt.launches() == 0
    check_focal(simt, torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64), SETTINGS[0])
    assert simt.launches() == 2


FAULTS = {
    "ignored pixels count": Fault("normalised_focal.cu", "if (label[i] != -1) visit", "if (label[i] != -2) visit"),
    "another picture's weights": Fault(
        "normalised_focal.cu", "double(all.weights[first + part])", "double(all.weights[part])"
    ),
    "tickets of one picture": Fault("normalised_focal.cu", "all.tickets + picture, unsigned", "all.tickets, unsigned"),
    "the loss by the first chunk": Fault(
        "normalised_focal.cu",
        "if (!is_last_block(all.tickets + picture, unsigned(all.chunks))) return;",
        "if (blockIdx.x % all.chunks != 0) return;",
    ),
    "slopes of the pack before": Fault(
        "normalised_focal.cu",
        "for (int i = 0; i < N; ++i) slopes[i] = A(0);",
        "for (int i = N; i < N; ++i) slopes[i] = A(0);",
    ),
    "labels at a misaligned address": Fault(
        "normalised_focal.cu", "if (labels.aligned && begin == 0", "if (begin == 0", says="misaligned|outside"
    ),
    "written behind the picture": Fault(
        "normalised_focal.cu",
        "store<N, A>(to + place, slopes, begin, end,",
        "store<N, A>(to + place, slopes, begin, end + 1,",
        says="outside|relative error",
    ),
}


def small_case(simt: NormalisedFocal, seed: int) -> None:
    labels = torch.randint(-1, 2, (3, 8197), generator=torch.Generator().manual_seed(seed))
    check_focal(simt, draw(3, 8197, dtype=torch.float32, seed=seed), labels, SETTINGS[0], shift=1, of_labels=seed)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], NormalisedFocal, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: NormalisedFocal) -> None:
    run_case(simt, small_case)
