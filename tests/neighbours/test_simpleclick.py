"""SimpleClick: click maps, loss, network and gradients against the authors' code; evaluation by simulated clicks."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from prograd_fast import functional
from prograd_fast.neighbours import simpleclick as sc
from tests.neighbours.golden import DTYPES, Golden
from tests.ops.support import normal
from tests.tolerances import assert_close


def renamed(name: str) -> str:
    """The authors' name of a parameter in our words."""
    for pattern, ours in (
        (r"^backbone\.pos_embed", "backbone.position"),
        (r"mlp\.fc1", "mlp.0"),
        (r"mlp\.fc2", "mlp.2"),
        (r"^neck\.down_(\d+)\.", lambda m: f"pyramid.levels.{('4', '8', '16', '32').index(m[1])}."),
        (r"^(head\.convs\.\d)\.conv", r"\1.0"),
        (r"^head\.fusion_conv\.conv", "head.fusion.0"),
        (r"^head\.conv_seg", "head.logit"),
    ):
        name = re.sub(pattern, ours, name)
    return name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_clicks_and_loss(dtype: torch.dtype) -> None:
    golden = Golden("simpleclick", dtype)
    for kind in ("disk", "tanh"):
        points = golden[f"clicks_{kind}_points"].float()  # as the source
        golden.dtype = torch.float32
        golden.close(sc.click_maps(points, (40, 32), disk=kind == "disk"), f"clicks_{kind}_maps")
        golden.dtype = dtype
    for i, settings in enumerate(golden.recipe["loss"]["settings"]):
        logits = golden.leaf(f"loss{i}_logits")
        losses = functional.normalised_focal_loss(logits, golden[f"loss{i}_labels"], **settings)
        golden.close(losses, f"loss{i}_per_sample")
        golden.close(torch.autograd.grad(losses.mean(), logits)[0], f"loss{i}_grad_logits")
    assert {name for name in golden.unused if not name.startswith("net_")} == set()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_network(dtype: torch.dtype) -> None:
    golden = Golden("simpleclick", dtype)
    for prefix in ("net_", "net_grad_"):  # the entry of a class token that is not there
        name = f"{prefix}backbone.pos_embed"
        golden.arrays[name] = golden.arrays[name][:, 1:]
    net = sc.SimpleClick(8, 8, 2, 448, 56, 4, (4, 6, 8, 10), 8)
    net.backbone = sc.PlainViT(8, 8, 2, 8, 4, 2)
    golden.load(net, "net_", renamed, strict=False)  # without the patch embeddings: tokens are given
    net.eval()
    picture = golden.leaf("net_image_tokens")
    features = net.backbone(picture, golden["net_click_tokens"])
    golden.close(features.flatten(2).transpose(1, 2), "net_backbone_output")
    maps = net.pyramid(features)
    for scale, m in zip((4, 8, 16, 32), maps, strict=True):
        golden.close(m.mean((0, 2, 3)), f"net_pyramid_mean_{scale}")
        golden.close(m.std((0, 2, 3)), f"net_pyramid_std_{scale}")
    golden.close(maps[2], "net_pyramid_16")
    golden.close(maps[3], "net_pyramid_32")
    logits = net.head(maps)
    golden.close(logits, "net_logits")
    up = torch.nn.functional.interpolate(logits, scale_factor=3, mode="bilinear", align_corners=True)
    golden.close(up[:, :, ::5, ::5], "net_logits_up3_every5")
    loss = functional.normalised_focal_loss(logits, golden["net_labels"]).mean()
    golden.close(loss, "net_loss")
    loss.backward()
    golden.close(picture.grad, "net_grad_image_tokens")
    golden.gradients_close(net, "net_grad_", renamed)
    # up_conv: weights that the network of this size holds and never uses
    assert {name for name in golden.unused if name.startswith("net_") and "up_conv" not in name} == set()


def test_distances_are_scipys() -> None:
    masks = torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(0)) < 0.9
    masks[2] = True  # only the border is outside
    expected = [distance_transform_edt(np.pad(m.numpy(), 1))[1:-1, 1:-1] for m in masks]
    assert_close(sc.distance_to_outside(masks), np.stack(expected), "formula", torch.float32)


def test_the_next_click() -> None:
    """In the larger error, the first of its deepest pixels, not where one was, nor where nothing is asked."""
    truth = torch.zeros(1, 12, 12, dtype=torch.int64)
    truth[0, 1:6, 1:6] = 1
    masks = torch.zeros_like(truth, dtype=torch.bool)
    nowhere = torch.zeros_like(masks)
    place, positive = sc.next_clicks(masks, truth, nowhere)
    assert (place.tolist(), positive.tolist()) == ([[3, 3]], [True])
    clicked = nowhere.clone()
    clicked[0, 3, 3] = True
    assert sc.next_clicks(masks, truth, clicked)[0].tolist() == [[2, 2]]
    masks[0, 1:6, 1:6] = masks[0, 8:11, 4:7] = True
    place, positive = sc.next_clicks(masks, truth, nowhere)
    assert (place.tolist(), positive.tolist()) == ([[9, 5]], [False])
    truth[0, 9, 5] = -1
    assert sc.next_clicks(masks, truth, nowhere)[0].tolist() == [[8, 4]]


def test_simulated_clicks_end_where_the_mask_is_right() -> None:
    """A predictor that paints a disk at each positive click; its IoU by hand, and the number of clicks."""
    truth = torch.zeros(2, 16, 16, dtype=torch.int64)
    truth[0, 2:7, 2:7] = truth[1, 2:7, 2:7] = truth[1, 9:14, 9:14] = 1
    seen = []

    def predict(clicks: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        seen.append((clicks.clone(), previous))
        squares = torch.zeros_like(previous)
        for b, rows in enumerate(clicks[:, :5]):
            for row, column, _ in rows[rows[:, 0] >= 0].int().tolist():
                squares[b, 0, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = 1
        return squares

    ious = sc.simulate_clicks(predict, truth, most=5)
    assert ious[:, 0].tolist() == [1.0, 0.5]
    assert ious[1, 1] == 1
    assert sc.clicks_needed(ious[:, :2], 0.9).tolist() == [1, 2]
    assert sc.clicks_needed(torch.tensor([[0.1, 0.2]]), 0.9).tolist() == [2]
    assert seen[1][0][1, :2].tolist() == [[4, 4, 0], [11, 11, 1]]
    assert torch.equal(seen[1][1], predict(seen[0][0], seen[0][1]))


def test_whole_network_finer_heads_and_an_empty_click_list() -> None:
    torch.manual_seed(0)
    for upsample in (1, 2, 4):
        net = sc.SimpleClick(8, 8, 2, 32, 4, 4, (4, 6, 8, 10), 4, upsample).eval()
        clicks = torch.full((2, 4, 3), -1.0)
        maps = net.head(net.pyramid(net.backbone(torch.zeros(2, 64, 8), torch.zeros(2, 64, 8))))
        assert maps.shape[2] == 32 * upsample
        logits = net(torch.randn(2, 3, 32, 32), clicks, torch.zeros(2, 1, 32, 32))
        assert logits.shape == (2, 1, 32, 32)
    assert not sc.click_maps(torch.full((1, 2, 3), -1.0), (4, 4)).any()


def test_windows_do_not_see_each_other() -> None:
    """Until the first block that attends over the whole grid."""
    torch.manual_seed(0)
    net = sc.PlainViT(8, 8, 2, 8, 4).double()
    tokens = normal(1, 8, 8, 8).requires_grad_()
    for blocks, sees in ((1, 16), (2, 64)):
        out = net.blocks[:blocks](tokens)[0, 1, 2].sum()
        assert (torch.autograd.grad(out, tokens)[0].abs().sum(3) > 0).sum() == sees


def run(
    pictures: tuple[int, ...] = (2, 3, 32, 32), clicks: int = 2, previous: tuple[int, ...] = (2, 1, 32, 32)
) -> torch.Tensor:
    net = sc.SimpleClick(8, 8, 2, 32, 4, 4, (4, 6, 8, 10), 4)
    return net(torch.zeros(pictures), torch.full((clicks, 4, 3), -1.0), torch.zeros(previous))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sc.PlainViT(8, 6, 2, 8, 4), "depth: expected a multiple of 4 above 4, got 6"),
        (lambda: sc.PlainViT(8, 8, 2, 8, 3), "window: expected a divisor of the 8 tokens a side, got 3"),
        (lambda: sc.MaskHead((4, 4, 4, 4), 4, 3), "upsample: expected 1, 2 or 4, got 3"),
        (lambda: sc.PlainViT(8, 8, 3, 8, 4), "heads: expected a divisor of the width 8, got 3"),
        (lambda: sc.SimpleClick(8, 8, 2, 34, 4, 4), "patch: expected a divisor of the side 34, got 4"),
        (lambda: run(pictures=(2, 3, 16, 64)), r"got \(\(2, 3, 16, 64\), 2, "),  # as many tokens as 32 by 32
        (lambda: run(pictures=(2, 3, 33, 33)), r"expected \(\(2, 3, 32, 32\), 2, \(2, 1, 32, 32\)\)"),
        (lambda: run(previous=(2, 32, 32)), r"got .* \(2, 32, 32\)\)"),
        (lambda: run(clicks=1), r"got \(\(2, 3, 32, 32\), 1, "),
        (
            lambda: sc.simulate_clicks(lambda _, p: p, torch.zeros(0, 4, 4), 2),
            r"B and clicks above 0, got \(0, 4, 4\) and 2",
        ),
        (lambda: sc.simulate_clicks(lambda _, p: p, torch.zeros(1, 4, 4), 0), r"got \(1, 4, 4\) and 0"),
        (lambda: sc.click_maps(torch.zeros(1, 3, 3), (4, 4)), r"clicks: expected shape \(batch, 2·clicks, 2 or more\)"),
    ],
)
def test_wrong_calls(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
