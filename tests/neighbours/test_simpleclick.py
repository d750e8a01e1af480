"""SimpleClick: click maps, loss, network and gradients against the authors' code; evaluation by simulated clicks."""

import re

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from prograd_fast import functional
from prograd_fast.neighbours import simpleclick as sc
from tests.neighbours.golden import DTYPES, Golden
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
    assert {name for name in golden.unused if name.startswith("net_") and "up_conv" not in name} == set()
