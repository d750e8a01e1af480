"""Sub-pixel heat maps: decoders, their gradients and face-alignment's own encoding against their authors' code."""

import pytest
import torch
from torch import Tensor

from prograd_fast.neighbours import subpixel_heatmaps as sh
from tests.neighbours.golden import DTYPES, Golden
from tests.ops.support import normal
from tests.tolerances import assert_close


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_local_soft_argmax(dtype: torch.dtype) -> None:
    golden = Golden("local_soft_argmax", dtype)
    for i, settings in enumerate(golden.recipe["settings"]):
        maps = golden.leaf("heatmaps")
        points = sh.local_soft_argmax(maps, settings["window"], settings["t"])
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
