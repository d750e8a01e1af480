"""Image features from before the visual projection: with the projection they are the tower's own."""

from types import SimpleNamespace

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch.nn import functional as F

from prograd_fast.clip import load_model
from prograd_fast.clip.before_projection import before_projection, visual_projection
from tests.tiny_clip import tiny_clip


def resnet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=16, image_size=32)
        model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=CLIPTextCfg(width=32, heads=2, layers=1))
        model.visual.attnpool.c_proj.bias.data.normal_()
    return model.double().eval()


def timm_with_an_mlp():
    with torch.random.fork_rng():
        vision = CLIPVisionCfg(timm_model_name="test_efficientnet", timm_pool="avg", timm_proj="mlp", image_size=32)
        model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=CLIPTextCfg(width=32, heads=2, layers=1))
    return model.double().eval()


@pytest.mark.parametrize(("make", "side"), [(tiny_clip, 16), (resnet, 32), (timm_with_an_mlp, 32)])
@torch.no_grad()
def test_the_projection_of_what_stands_before_it(make, side):
    model = make()
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = model.encode_image(images)
    twin, (weight, bias) = before_projection(model), visual_projection(model)
    x = twin.encode_image(images)
    assert x.shape == (3, twin.image_width) == (3, len(weight) + (bias is not None))
    whole = weight if bias is None else torch.cat([weight, bias[None]])
    torch.testing.assert_close(x @ whole, expected)
    torch.testing.assert_close(F.normalize(F.normalize(x, dim=-1) @ whole, dim=-1), F.normalize(expected, dim=-1))
    torch.testing.assert_close(model.encode_image(images), expected)  # the model itself is as it was
    assert twin.visual is not model.visual
    shared = set(map(id, model.parameters())) & set(map(id, twin.parameters()))
    assert len(shared) == len(list(model.parameters())) - (1 if bias is None else 2)


@torch.no_grad()
def test_embedded_model():
    clip = load_model("emoji-lite", device="cpu")
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    weight, bias = visual_projection(clip.model)
    assert (weight.shape, bias.shape) == ((2896, 256), (256,))
    x = clip.before_projection().model.encode_image(images)
    expected = clip.model.encode_image(images)
    torch.testing.assert_close(x @ torch.cat([weight, bias[None]]), expected, rtol=1e-4, atol=1e-5)


def test_a_tower_without_a_projection_is_refused():
    with pytest.raises(ValueError, match=r"SimpleNamespace has no visual projection .*another method"):
        before_projection(SimpleNamespace(visual=SimpleNamespace(proj=None)))
