"""Models load by name, frozen, and a name, tag or device that cannot be is told."""

import pytest

from prograd_fast.training import load_model


@pytest.mark.parametrize(
    ("name", "pretrained", "device", "message"),
    [
        (
            "emoji-light",
            None,
            None,
            r"unknown model 'emoji-light' \(did you mean emoji-lite or .*`prograd-fast models`",
        ),
        ("emoji-lite", "openai", None, "brings its own weights"),
        ("local-dir:somewhere", "openai", None, "brings its own weights"),
        ("local-dir:/no/such/folder", None, None, "cannot load model 'local-dir:/no/such/folder'"),
        ("ViT-B-32", None, None, "needs weights: give --pretrained as a file or a tag, openai"),
        ("ViT-B/32", "openai", None, r"unknown model 'ViT-B/32' \(did you mean ViT-B-32"),
        ("vit_b_16", "openai", None, r"unknown model 'vit_b_16' \(did you mean ViT-B-16"),
        ("openai/clip-vit-base-patch16", None, None, "unknown model .* hf-hub:OWNER/REPO"),
        ("x" * 10_000, None, None, "unknown model 'xxx"),
        ("ViT-B-32", "opnai", None, r"no such file, and ViT-B-32 has no such tag \(did you mean openai"),
        ("ViT-B-16-SigLIP-gelu", "webli", None, "unknown model"),
        ("ViT-B-32-gelu", "openai", None, "trained with QuickGELU; give --model ViT-B-32"),
        ("ViT-B-32", "no such file.pt", None, "cannot load model 'ViT-B-32' with weights 'no such file.pt'"),
        ("emoji-lite", None, "gpu", "cannot use device 'gpu'"),
        ("emoji-lite", None, "meta", "cannot use device 'meta'"),  # a device, but one without values
    ],
)
def test_models_that_cannot_be_loaded(name, pretrained, device, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_model(name, pretrained, device)
    assert len(str(caught.value)) < 600


def test_loaded_model_is_frozen_and_in_evaluation_mode(clip):
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.model.parameters())
