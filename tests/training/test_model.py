"""Models load by name, frozen, and a name, tag or device that cannot be is told."""

import pytest

from prograd_fast.training import load_model


@pytest.mark.parametrize(
    ("name", "pretrained", "device", "message"),
    [
        ("emoji-light", None, None, "unknown model 'emoji-light'; expected emoji-lite, emoji-lite-named"),
        ("emoji-lite", "openai", None, "brings its own weights"),
        ("local-dir:somewhere", "openai", None, "brings its own weights"),
        ("local-dir:/no/such/folder", None, None, "cannot load model 'local-dir:/no/such/folder'"),
        ("ViT-B-32", None, None, "needs weights: give --pretrained as a checkpoint file or one of .*openai"),
        ("ViT-B-32", "no such file.pt", None, "cannot load model 'ViT-B-32' with weights 'no such file.pt'"),
        ("emoji-lite", None, "gpu", "cannot use device 'gpu'"),
        ("emoji-lite", None, "meta", "cannot use device 'meta'"),  # a device, but one without values
    ],
)
def test_models_that_cannot_be_loaded(name, pretrained, device, message):
    with pytest.raises(ValueError, match=message):
        load_model(name, pretrained, device)


def test_loaded_model_is_frozen_and_in_evaluation_mode(clip):
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.model.parameters())
