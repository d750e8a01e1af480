"""Hugging Face's SigLIP under open_clip's names: the same features. Random weights, two blocks a tower.

The activation is GELU in both: Hugging Face takes its tanh form, which open_clip does not (below 1e-4 in a feature).
"""

import pytest
import timm
import torch
from open_clip.model import CustomTextCLIP

from prograd_fast.clip.pretrained.fill import fill
from prograd_fast.clip.pretrained.weights import read_weights

transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 2}
TOWER |= {"hidden_act": "gelu"}
TEXT = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2, "no_causal_mask": True}
TEXT |= {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
VISION = {"image_size": 32, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"}


@pytest.fixture(scope="module")
def theirs():
    config = transformers.SiglipConfig(
        text_config={**TOWER, "vocab_size": 100, "max_position_embeddings": 16, "projection_size": 64},
        vision_config={**TOWER, "image_size": 32, "patch_size": 16},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.SiglipModel(config).eval()
        for p in model.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def ours():
    make = timm.create_model
    with pytest.MonkeyPatch.context() as patch:  # timm's SigLIP, smaller than any that it has
        small = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32}
        patch.setattr(timm, "create_model", lambda *given, **options: make(*given, **options | small))
        return CustomTextCLIP(64, VISION, TEXT, init_logit_bias=-10.0).eval()


@pytest.mark.parametrize("prefix", ["", "module.", "model.siglip."])
def test_features_are_the_same(theirs, ours, tmp_path, prefix):
    torch.save({f"{prefix}{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "weights.bin")
    weights = read_weights(tmp_path / "weights.bin")
    assert weights.source == "Hugging Face"
    fill(ours, weights.state)
    images = torch.randn(2, 3, 32, 32)
    ids = torch.randint(2, 100, (3, 16))
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=images)
        image, text = ours.encode_image(images, normalize=True), ours.encode_text(ids, normalize=True)
        torch.testing.assert_close(image, expected.image_embeds, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text, expected.text_embeds, rtol=1e-4, atol=1e-5)
        logits = ours.get_logits(images, ids)[0]
        torch.testing.assert_close(logits, expected.logits_per_image, rtol=1e-4, atol=1e-4)
