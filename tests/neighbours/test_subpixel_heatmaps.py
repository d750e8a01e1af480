"""Sub-pixel heat maps: decoders, their gradients and face-alignment's own encoding against their authors' code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prograd_fast import functional
from prograd_fast.neighbours import subpixel_heatmaps as sh
from tests.neighbours.golden import DTYPES, Golden
from tests.ops.support import normal
from tests.tolerances import assert_close


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_local_soft_argmax(dtype: torch.dtype) -> None:
    golden = Golden("local_soft_argmax", dtype)
    for i, settings in enumerate(golden.recipe["settings"]):
        maps = golden.leaf("heatmaps")
        points = functional.local_soft_argmax(maps, settings["window"], settings["t"])
        golden.close(points.flip(2), f"s{i}_row_col")
        points.flip(2).backward(golden[f"s{i}_cotangent"])
        golden.close(maps.grad, f"s{i}_grad_heatmaps")
    assert (points.flip(2) - golden["true_centres_row_col"]).abs().max() < 0.2
    assert golden.unused == set()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_face_alignment(dtype: torch.dtype) -> None:
    golden = Golden("face_alignment_decode", dtype)
    maps = (golden["heatmaps_times_4095"].float() / 4095).to(dtype)
    points = sh.quarter_offset(maps) + 0.5
    golden.close(points, "preds")
    golden.close(points, "preds_only")
    golden.close(maps.amax((2, 3)), "scores")
    assert (sh.integer_argmax(maps) - golden["true_centres"]).abs().max() < 1
    centre, scale = golden["center"], float(golden.arrays["scale"])
    golden.unused.discard("scale")
    golden.close(sh.crop_transform(points, centre, scale), "preds_orig")
    points = golden["transform_points"]
    golden.close(sh.crop_transform(points, centre, scale, back=False), "transform_forward")
    golden.close(sh.crop_transform(points, centre, scale, 384), "transform_back")
    alone = sh.rounded_maps(golden["encode_points"][:, None])
    golden.close(alone, "encode_maps")
    golden.close(sh.rounded_maps(torch.tensor([[[30, 30], [33, 31]]])), "encode_overlap_30_30_33_31")
    golden.close(sh.rounded_maps(torch.tensor([[[32, 32]]]))[0, 25:38, 25:38], "kernel")
    assert golden.unused == set()


EYE = torch.eye(2, dtype=torch.float64)


def drawn(sigma: float = 1.5, count: int = 40, side: int = 24) -> tuple[Tensor, Tensor]:
    points = 4 + (side - 8) * torch.rand(2, count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return points, sh.gaussian_maps(points, (side, side + 3), sigma)


def test_loss_without_target_maps() -> None:
    """Value and gradient are those of stored targets; only tensors of the maps' own size are kept, and one of them."""
    points, target = drawn()
    maps = normal(*target.shape).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        loss = sh.heatmap_loss(maps, points, 1.5)
    expected = (maps - target).square().mean()
    assert_close(loss, expected, "formula", torch.float64)
    gradients = (torch.autograd.grad(value, maps)[0] for value in (loss, expected))
    assert_close(*gradients, "formula", torch.float64)
    assert len({x.data_ptr() for x in kept if x.numel() >= maps.numel()}) == 1
    assert sh.heatmap_loss(target, points, 1.5) < 1e-30


def test_decoders_in_order() -> None:
    """On clean maps: the parabola is exact for any σ and height, the others as their definitions allow."""
    for sigma, height in ((0.8, 1.0), (1.5, 0.3), (3.0, 7.0)):
        points, maps = drawn(sigma)
        assert_close(sh.log_parabola(height * maps), points, "formula", torch.float64)
    points, maps = drawn(2.0)
    errors = [
        (decode(maps) - points).abs().max()
        for decode in (sh.integer_argmax, sh.quarter_offset, functional.local_soft_argmax)
    ]
    assert errors[0] <= 0.5
    assert errors[1] <= 0.25
    assert errors[2] <= 0.015  # τ 10 at σ 2, as the documentation says


def test_borders_and_plateaus() -> None:
    """At a border, and beside zeros or equal values, the log-parabola and the quarter offset keep the pixel."""
    maps = torch.zeros(1, 3, 5, 6, dtype=torch.float64)
    maps[0, 0, 0, 2] = 1.0  # on the first row, alone
    maps[0, 1] = 0.5  # flat
    maps[0, 2, 2, 2], maps[0, 2, 2, 3] = 1.0, 0.5
    assert sh.log_parabola(maps)[0].tolist() == [[2, 0], [0, 0], [2, 2]]
    assert sh.quarter_offset(maps)[0].tolist() == [[2, 0], [0, 0], [2.25, 2]]


def test_views_agree_when_they_are_mapped_back() -> None:
    points = 10 * normal(2, 5, 2)
    matrices = [torch.cat([EYE + 0.3 * normal(2, 2, 2, seed=k), normal(2, 2, 1, seed=k + 2)], 2) for k in (1, 4)]
    views = [points @ m[:, :, :2].transpose(1, 2) + m[:, None, :, 2] for m in matrices]
    assert sh.siamese_loss(*views, *matrices) < 1e-20
    shifted = views[0] + 2 * matrices[0][:, None, :, 0]  # two pixels of the picture along x
    assert_close(sh.siamese_loss(shifted, views[1], *matrices), torch.tensor(4.0), "formula", torch.float64)


def test_the_trap_of_face_alignment() -> None:
    """Its Gaussian is moved near the left border, and only there."""

    def peak(x: int) -> int:
        return int(sh.rounded_maps(torch.tensor([[[x, 30]]]))[0, 29].argmax()) + 1

    assert [peak(x) for x in (1, 5, 6, 7, 20, 64)] == [3, 7, 7, 7, 20, 64]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sh.heatmap_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2), 1.0),
            ValueError,
            "points: expected shape",
        ),
        (lambda: sh.heatmap_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2), 0.0), ValueError, "sigma: expected"),
        (
            lambda: sh.rounded_maps(torch.ones(1, 2, 2)),
            TypeError,
            "points: expected integers, as face-alignment rounds",
        ),
        (
            lambda: sh.crop_transform(torch.ones(1, 2), torch.ones(2), 0.0),
            ValueError,
            "scale: expected a number above 0",
        ),
        (
            lambda: sh.siamese_loss(torch.ones(2, 3, 2), torch.ones(2, 4, 2), *torch.ones(2, 2, 2, 3)),
            ValueError,
            r"got \(2, 3, 2\), \(2, 4, 2\), \(2, 2, 3\)",
        ),
        (lambda: sh.log_parabola(torch.zeros(2, 4, 4)), ValueError, r"maps: expected shape \(batch, landmarks"),
        (lambda: sh.quarter_offset(torch.zeros(1, 2, 4, 4).long()), TypeError, "maps: expected a floating-point"),
    ],
)
def test_wrong_calls(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
