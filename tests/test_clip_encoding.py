"""The prompt engine against the authors' formulation at 77 tokens, and against the model's own encode_text."""

import logging

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.clip import text_tower
from prograd_fast.reference.prompt import assemble_prompts, encode_prompts
from tests.tiny_clip import CLASS_NAMES, CUT, TOKENIZER, WHOLE, tiny_clip
from tests.tolerances import assert_close

READABLE = [name.replace("_", " ") for name in CLASS_NAMES]


@pytest.fixture(scope="module")
def models():
    return {"CLIP": tiny_clip(), "CustomTextCLIP": tiny_clip(CustomTextCLIP)}


def reference_features(model, ctx, position):
    """CoOp's way: tokenise "X ... X name.", embed, put the context in class by class, encode all 77 positions."""
    prefix = " ".join(["X"] * ctx.shape[-2])
    token_ids = TOKENIZER([f"{prefix} {name}." for name in READABLE])
    name_lengths = [len(TOKENIZER.encode(name)) for name in READABLE]
    embeddings = getattr(model, "text", model).token_embedding(token_ids).detach()
    return encode_prompts(model, assemble_prompts(embeddings, ctx, name_lengths, position), token_ids)


@pytest.mark.parametrize("cls", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("n_ctx", [1, 5])  # 1: `middle` has no token before the name; 5: odd, so halves differ
def test_features_and_gradient_are_the_authors(models, cls, position, class_specific, n_ctx):
    model = models[cls]
    net = pf.clip.PromptedCLIP(
        model, TOKENIZER, CLASS_NAMES, n_ctx, class_specific=class_specific, class_token_position=position
    )
    expected = reference_features(model, net.prompt.ctx, position)
    actual = net.tower.encode(net.prompt(), net.prompt.token_ids)
    assert net.prompt.token_ids.shape[1] < 77  # it is the cut prompt that is compared
    cotangent = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected_grad,) = torch.autograd.grad(expected, net.prompt.ctx, cotangent)
    (actual_grad,) = torch.autograd.grad(actual, net.prompt.ctx, cotangent)
    assert_close(actual, expected, "formula", torch.float64)
    assert_close(actual_grad, expected_grad, "formula", torch.float64)


@pytest.mark.parametrize("tower", [*CUT, *WHOLE])
def test_context_of_words_is_the_sentence(tower):
    """A context that holds the embeddings of "a photo of a" must give what the model makes of "a photo of a NAME."."""
    model = (CUT | WHOLE)[tower]()
    net = pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, n_ctx=None, ctx_init="a photo of a")
    sentences = TOKENIZER([f"a photo of a {name}." for name in READABLE])
    with torch.no_grad():
        assert_close(net.class_features(), model.encode_text(sentences, normalize=True), "formula", torch.float64)
    assert (net.prompt.token_ids.shape[1] < 77) == (tower in CUT)


@pytest.mark.parametrize("tower", WHOLE)
def test_whole_towers_say_why(tower, caplog):
    text_tower._say_once.cache_clear()
    model = WHOLE[tower]()
    with caplog.at_level(logging.WARNING, logger="prograd_fast"):
        reason = pf.clip.TextTower(model).full_length_reason
        pf.clip.TextTower(model)
    assert reason is not None
    assert caplog.text.count(reason) == 1


def test_cut_towers_say_nothing(caplog):
    assert pf.clip.TextTower(tiny_clip()).full_length_reason is None
    assert not caplog.records


@pytest.mark.parametrize("tower", ["CLIP", "not causal"])  # one of each way through the tower
@pytest.mark.parametrize("class_specific", [False, True], ids=["shared", "class-specific"])
def test_gradcheck(tower, class_specific):
    model = (CUT | WHOLE)[tower]()
    net = pf.clip.PromptedCLIP(model, TOKENIZER, ["cat", "grand piano"], 2, class_specific=class_specific)

    def features(ctx):
        prompts = torch.func.functional_call(net.prompt, {"ctx": ctx})
        return F.normalize(net.tower.encode(prompts, net.prompt.token_ids), dim=-1)

    assert torch.autograd.gradcheck(features, net.prompt.ctx)
