"""The examples of methods that train the image tower: they start at the model, and train what they say."""

import argparse

import pytest
import torch

from examples.image_towers import clip_lora, clip_svd, common, maple, promptsrc
from examples.image_towers.visual_prompts import visual_prompts
from prograd_fast.clip import LoadedClip
from prograd_fast.data import load
from tests.tolerances import assert_close

METHODS = {
    "maple": ("MaPLe", maple.MaPLe),
    "promptsrc": ("PromptSRC, visual half", promptsrc.VisualPromptSRC),
    "clip_lora": ("CLIP-LoRA", clip_lora.CLIPLoRA),
    "clip_svd": ("CLIP-SVD", clip_svd.CLIPSVD),
}
NAMES = ("cat", "a slice of pizza", "dog")
IMAGES = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def small() -> LoadedClip:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "FITTED_TO", 40)
        return common.small_model(load("emoji"))


def test_low_rank_and_singular_values_start_at_the_untouched_model(small):
    untouched = common.Tuned(small, 0.0).see(IMAGES, common.Tuned(small, 0.0).class_features(NAMES))
    for method in (clip_lora.CLIPLoRA, clip_svd.CLIPSVD):
        tuned = method(small)
        found = tuned.see(IMAGES, tuned.class_features(NAMES))
        assert_close(found.features.detach(), untouched.features, "tower", torch.float32)
        assert_close(found.logits.detach(), untouched.logits, "tower", torch.float32)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_trained_moves_and_the_projection_changes_it(small, name):
    shots = common.Pictures(IMAGES, torch.tensor([2, 2, 1, 0]), NAMES)
    untouched, after = common.Tuned(small, 0.0), {}
    for project in (False, True):
        torch.manual_seed(0)
        tuned = METHODS[name][1](small)
        trained = {key: p.detach().clone() for key, p in tuned.named_parameters() if p.requires_grad}
        frozen = {key: p.detach().clone() for key, p in tuned.named_parameters() if not p.requires_grad}
        common.train(tuned, untouched, shots, epochs=6, batch=4, project=project)
        after[project] = dict(tuned.named_parameters())
        assert all(not torch.equal(after[project][key], value) for key, value in trained.items())
        for key, value in frozen.items():  # peft adds its change to a weight in each forward and takes it away again
            assert_close(after[project][key], value, "tower", torch.float32)
    assert any(not torch.equal(after[False][key], after[True][key]) for key in trained)
    sizes = {key: p.numel() for key, p in tuned.named_parameters() if p.requires_grad}
    blocks, width, text_blocks, text_width = 3, 64, 3, 128
    expected = {
        "maple": 2 * 128 * 3 + 3 * (128 * 64 + 64),  # two tokens before three blocks, and three maps
        "promptsrc": 3 * 4 * 64,
        "clip_lora": 2 * (blocks * 6 * width + text_blocks * 6 * text_width),  # of (3d, d): 2·4d, of (d, d): 2·2d
        "clip_svd": 6 * (blocks * width + text_blocks * text_width),
    }
    assert sum(sizes.values()) == expected[name]


def test_prompts_stand_behind_the_picture_s_tokens_and_are_replaced_block_by_block(small):
    tower = common.Tuned(small, 0.0).model.visual
    prompts, seen = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0)), []
    handles = [
        block.register_forward_hook(lambda module, arguments, out: seen.append((arguments[0], out)))
        for block in tower.transformer.resblocks
    ]
    with visual_prompts(tower, list(prompts)):
        tower(IMAGES)
    for handle in handles:
        handle.remove()
    (first, first_out), (second, second_out), (third, _) = seen
    assert first.shape == (4, 1 + 8 * 8 + 4, 64)
    assert_close(first[:, -4:], tower.ln_pre(prompts[0]).expand(4, -1, -1), "tower", torch.float32)
    assert torch.equal(second[:, -4:], prompts[1].expand(4, -1, -1))
    assert torch.equal(second[:, :-4], first_out[:, :-4])
    assert torch.equal(third, second_out)  # two of three blocks have their own
    assert tower(IMAGES).shape == (4, 256)
    with visual_prompts(tower, list(prompts[:1])):
        assert not torch.equal(tower(IMAGES), common.Tuned(small, 0.0).model.visual(IMAGES))
    assert torch.equal(tower(IMAGES), common.Tuned(small, 0.0).model.visual(IMAGES))  # the tower is as it was


def test_promptsrc_keeps_the_weighted_mean_of_its_epochs(small):
    tuned, passed = promptsrc.VisualPromptSRC(small), []
    for epoch in range(1, 5):
        with torch.no_grad():
            tuned.prompts.fill_(epoch)
        passed.append(epoch)
        tuned.epoch_ended(epoch, 4)
    weights = torch.tensor([-2.0, -0.5, 0.0, -0.5]).exp()  # around epoch 3
    mean = (weights / weights.sum() * torch.tensor(passed)).sum()
    assert_close(tuned.prompts.detach(), mean.expand_as(tuned.prompts), "tower", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_example(name, small, capsys, monkeypatch):
    """With tiny settings: the table has all ways, and the last line says how much the figures mean."""
    monkeypatch.setattr(common, "small_model", lambda pictures: small)
    common.main(*METHODS[name], ["--shots", "1", "--epochs", "1"])
    title, *rows, said, warned = capsys.readouterr().out.splitlines()
    assert title.split()[-3:] == ["new", "harmonic", "mean"]
    assert [row[:36].strip() for row in rows] == ["untouched", "without projection", "with projection"]
    assert said.startswith("With the projection the accuracy on the new classes is")
    assert "mean little" in warned


def test_the_sentence_says_what_the_numbers_say():
    numbers = {"without projection": (40.0, 20.0), "with projection": (39.5, 23.0)}
    assert "new classes is 3.0 points higher than without, and on the base classes it is 0.5 points lower." in (
        common.sentence(numbers)
    )


def test_another_model_is_loaded_as_it_is(small, monkeypatch):
    """`--model` and `--pretrained` go to `load_model`, and nothing is fitted."""
    asked = []

    def load_model(*arguments):
        asked.append(arguments)
        return small

    monkeypatch.setattr(common, "load_model", load_model)
    monkeypatch.setattr(common, "small_model", lambda pictures: pytest.fail("not the small one"))
    options = argparse.Namespace(model="ViT-B-16", pretrained="openai", draws=0)
    assert common.compare(clip_lora.CLIPLoRA, options) == {}
    assert asked == [("ViT-B-16", "openai", "cpu")]
