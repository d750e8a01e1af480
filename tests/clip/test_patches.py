"""Features of patches: those of the tower when each position attends to itself, or when there is a single position."""

import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.clip.emoji_lite import averages
from prograd_fast.clip.patches import patch_features
from tests.tiny_clip import tiny_clip
from tests.tolerances import assert_close


def test_a_transformer_whose_last_attention_looks_at_each_position_alone() -> None:
    """By open_clip's own blocks: a mask that leaves the diagonal, with layer scale and three blocks."""
    model = tiny_clip(dtype=torch.float64)
    torch.manual_seed(1)
    model.visual = open_clip.transformer.VisionTransformer(16, 4, 32, 3, 2, 4.0, ls_init_value=0.3, output_dim=24)
    model.double().eval()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    tower = model.visual
    with torch.no_grad():
        x = tower._embeds(images)
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = block(x)
        alone = torch.full((17, 17), float("-inf"), dtype=torch.float64).fill_diagonal_(0)
        expected = F.normalize(tower.ln_post(last(x, attn_mask=alone)[:, 1:]) @ tower.proj, dim=-1)
    found = patch_features(model, images)
    assert found.shape == (3, 4, 4, 24)
    assert not found.requires_grad
    assert_close(found.flatten(1, 2), expected, "formula", torch.float64)


def test_a_resnet_whose_pooling_looks_at_each_position_alone() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.visual = ModifiedResNet((1, 1, 1, 1), output_dim=24, heads=4, image_size=64, width=8).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    reached: list[torch.Tensor] = []
    handle = model.visual.attnpool.register_forward_pre_hook(lambda _, args: reached.append(args[0]))
    with torch.no_grad():
        model.visual(images)
    handle.remove()
    pool = model.visual.attnpool
    found = patch_features(model, images)
    assert found.shape == (2, 2, 2, 24)
    for row in range(2):
        for column in range(2):
            x = reached[0][:, :, row, column] @ pool.v_proj.weight.T + pool.v_proj.bias
            expected = F.normalize(x @ pool.c_proj.weight.T + pool.c_proj.bias, dim=-1)
            assert_close(found[:, row, column].detach(), expected.detach(), "formula", torch.float64)


def test_a_single_patch_is_the_picture() -> None:
    """emoji-lite makes one position of 32 pixels: then its dense feature is the picture's own."""
    model = pf.clip.load_emoji_lite()[0]
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = patch_features(model, images)
    assert found.shape == (4, 1, 1, 256)
    assert_close(found[:, 0, 0], F.normalize(model.encode_image(images), dim=-1), "tower", torch.float32)


def test_emoji_lites_head_reads_the_part_of_its_finer_maps_at_a_position() -> None:
    """By slices of maps of 96 x 160 pixels. Sides that are no multiples of 32 are taken too."""
    model = pf.clip.load_emoji_lite()[0]
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    maps, found = model.visual.maps(images), patch_features(model, images)
    assert found.shape == (2, 3, 5, 256)
    for row in range(3):
        for column in range(5):
            fine = [map[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] for map in maps[:2]]
            coarse = [map[:, :, row, column] for map in maps[2:]]
            read = [fine[0].mean((2, 3)), fine[1].flatten(1), coarse[0].repeat_interleave(4, 1), coarse[1], coarse[2]]
            expected = F.normalize(model.visual.head(torch.cat(read, 1)), dim=-1)
            assert_close(found[:, row, column], expected, "formula", torch.float32)
    assert patch_features(model, images[:, :, :76, :100]).shape == (2, 3, 4, 256)


def test_the_mean_of_emoji_lites_parts_is_the_picture_but_for_the_quarters() -> None:
    model = pf.clip.load_emoji_lite()[0]
    maps = model.visual.maps(torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    whole, mean = averages(maps, 1, 1)[:, 0, 0], averages(maps, 4, 4).mean((1, 2))
    of_quarters = torch.zeros(2896, dtype=torch.bool).index_fill_(0, torch.arange(80, 80 + 4 * (112 + 192)), True)
    assert_close(mean[:, ~of_quarters], whole[:, ~of_quarters], "formula", torch.float32)
    of_parts = torch.stack([maps[1][:, :, i::2, j::2].mean((2, 3)) for i in range(2) for j in range(2)], -1)
    assert_close(mean[:, 80:528], of_parts.flatten(1), "formula", torch.float32)


@pytest.mark.parametrize("how", ["attentional pool", "mean of all tokens", "other attention"])
def test_towers_whose_patches_have_no_place(how: str) -> None:
    model = nn.Module()
    options = {
        "attentional pool": {"attentional_pool": True},
        "mean of all tokens": {"pool_type": "avg"},
        "other attention": {"block_type": "custom", "qk_norm": True},
    }[how]
    model.visual = open_clip.transformer.VisionTransformer(16, 8, 32, 1, 2, 4.0, output_dim=24, **options).eval()
    with pytest.raises(ValueError, match="got VisionTransformer, whose patches have no place among the class features"):
        patch_features(model, torch.rand(1, 3, 16, 16))


def test_a_tower_with_a_layer_between_its_mean_and_its_head() -> None:
    model = nn.Module()
    model.visual = open_clip.timm_model.TimmModel("mobilenetv3_small_050", 8, 32, "avg", "linear").eval()
    with pytest.raises(ValueError, match="got TimmModel, whose patches have no place among the class features"):
        patch_features(model, torch.rand(1, 3, 32, 32))


def test_training_mode_is_refused() -> None:
    """Its batch norm would take the statistics of the pictures, and keep them."""
    model = pf.clip.load_emoji_lite()[0].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"in evaluation mode, got one in training mode.*model.eval\(\)"):
        patch_features(model, torch.rand(1, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
