"""LoRA of peft on either tower of a CLIP model is trained, and is in the features with and without gradients."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.nn import functional as F

import prograd_fast as pf
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])


def with_lora(tower: str) -> Any:
    """A prompted net with adapters in one tower, of any size that shows."""
    model = tiny_clip(dtype=torch.float32)
    net = pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, n_ctx=None, ctx_init="a photo of a")
    part = model.visual if tower == "visual" else model.transformer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["c_fc", "c_proj"], init_lora_weights=False), part)
    return net


def lora_of(net: Any) -> list[Tensor]:
    return [p for name, p in net.named_parameters() if "lora_" in name]


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_it_is_trained(tower: str) -> None:
    """Its gradients are those of the tower's own code, and the frozen weights stay."""
    net = with_lora(tower)
    teacher = pf.clip.ZeroShotTeacher(tiny_clip(dtype=torch.float32), TOKENIZER, CLASS_NAMES, "a photo of a {}.")
    lora = lora_of(net)
    frozen = {name: p.clone() for name, p in net.model.named_parameters() if not p.requires_grad}
    assert len(lora) >= 4
    opt = pf.ProGradSGD([net.prompt.ctx, *lora], lr=0.1)

    x = net.image_features(IMAGES)
    assert x.requires_grad == (tower == "visual")
    opt.backward(*pf.DualLoss()(net.logits(x), teacher.logits(x), LABELS))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora)
    before = [p.detach().clone() for p in lora]
    opt.step()
    assert not any(torch.equal(p, old) for p, old in zip(lora, before, strict=True))
    assert all(torch.equal(p, frozen[name]) for name, p in net.model.named_parameters() if name in frozen)


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_features_have_it_with_and_without_gradients(tower: str) -> None:
    """The packed tower reads the weights of linear layers; LoRA's must not be left out in evaluation."""
    net = with_lora(tower)
    ids = TOKENIZER(["a photo of a " + name.replace("_", " ") + "." for name in CLASS_NAMES])
    with torch.no_grad():
        expected = F.normalize(net.model.encode_text(ids), dim=-1), F.normalize(net.model.encode_image(IMAGES), dim=-1)
        found = net.class_features(), net.image_features(IMAGES)
    for one, other, again in zip(found, expected, (net.class_features(), net.image_features(IMAGES)), strict=True):
        assert_close(one, other, "tower", torch.float32)
        assert_close(again, other, "tower", torch.float32)


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_other_classes_do_not_freeze_it(tower: str) -> None:
    net = with_lora(tower)
    other = net.with_classes(["fox", "owl"])
    assert all(p.requires_grad for p in lora_of(net))
    assert not any(p.requires_grad for name, p in other.model.named_parameters() if "lora_" not in name)


def test_a_frozen_tower_makes_no_graph() -> None:
    net = pf.clip.PromptedCLIP(tiny_clip(dtype=torch.float32), TOKENIZER, CLASS_NAMES, n_ctx=2)
    assert not net.image_features(IMAGES).requires_grad


def test_text_adapters_that_are_taken_away_are_gone() -> None:
    """After peft's unload the tower is CLIP's again, and so are the features."""
    net = with_lora("text")
    plain = copy.deepcopy(net)
    for block in plain.model.transformer.resblocks:
        for name in ("c_fc", "c_proj"):
            setattr(block.mlp, name, getattr(block.mlp, name).base_layer)
    never = pf.clip.PromptedCLIP(
        tiny_clip(dtype=torch.float32), TOKENIZER, CLASS_NAMES, n_ctx=None, ctx_init="a photo of a"
    )
    assert torch.equal(plain.class_features(), never.class_features())
    assert not torch.equal(net.class_features(), never.class_features())
