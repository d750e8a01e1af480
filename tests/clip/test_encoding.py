"""Guards the prompt engine: equal to the authors' formulation at 77 tokens, and to the model's own encode_text."""

import logging

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.clip import text_tower
from prograd_fast.ops.prompt import assemble_prompts, encode_prompts
from tests.tiny_clip import CLASS_NAMES, CUT, TOKENIZER, WHOLE, tiny_clip
from tests.tolerances import assert_close

READABLE = [name.replace("_", " ") for name in CLASS_NAMES]


@pytest.fixture(scope="module")
def models():
    return {"CLIP": tiny_clip(), "CustomTextCLIP": tiny_clip(CustomTextCLIP)}


def reference_features(model, ctx, position, names=READABLE):
    """CoOp's way: tokenise "X ... X name.", embed, put the context in class by class, encode all 77 positions."""
    prefix = " ".join(["X"] * ctx.shape[-2])
    token_ids = TOKENIZER([f"{prefix} {name}." for name in names])
    name_lengths = [len(TOKENIZER.encode(name)) for name in names]
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
    actual = net.encoder(net.prompt.ctx[None])[0]
    assert net.encoder.token_ids.shape[1] < 77  # it is the cut prompt that is compared
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
    assert (net.encoder.token_ids.shape[1] < 77) == (tower in CUT)


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


@pytest.mark.parametrize("class_specific", [False, True], ids=["shared", "class-specific"])
def test_gradcheck(models, class_specific):
    net = pf.clip.PromptedCLIP(models["CLIP"], TOKENIZER, ["cat", "grand piano"], 2, class_specific=class_specific)
    assert torch.autograd.gradcheck(net.class_features, net.prompt.ctx)


@pytest.mark.parametrize("tower", ["CLIP", "not causal"])
@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("class_specific", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("groups", [1, 3])  # 1: the leading size stays; 3: unlike any other size here
def test_several_contexts_are_each_context_alone(tower, position, class_specific, groups):
    model = (CUT | WHOLE)[tower]()
    options = {"class_specific": class_specific, "class_token_position": position}
    net = pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, 4, **options)
    generator = torch.Generator().manual_seed(2)
    contexts = torch.randn(groups, *net.prompt.ctx.shape, dtype=torch.float64, generator=generator).requires_grad_()
    actual = net.class_features(contexts)
    expected = torch.stack([net.class_features(context) for context in contexts])
    cotangent = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    assert_close(actual, expected, "formula", torch.float64)
    (actual_grad,) = torch.autograd.grad(actual, contexts, cotangent)
    (expected_grad,) = torch.autograd.grad(expected, contexts, cotangent)
    assert_close(actual_grad, expected_grad, "formula", torch.float64)


@pytest.mark.parametrize("layers", [1, 2])  # of 3: the last block without and with a deep prompt
@pytest.mark.parametrize(
    "names", [READABLE, ["cat"], ["red cat", "red dog"]]
)  # shared rows end with the context, or do not
def test_deep_prompts_replace_the_rows_of_the_context(layers, names):
    """Against hooks on the blocks of the whole 77-token tower, as PromptSRC's blocks do it."""
    model = tiny_clip(layers=3)
    net = pf.clip.PromptedCLIP(model, TOKENIZER, names, 4)
    generator = torch.Generator().manual_seed(2)
    deep = torch.randn(layers, 4, 32, dtype=torch.float64, generator=generator).requires_grad_()

    def replace(block, args):
        i = list(model.transformer.resblocks).index(block)
        if not 1 <= i <= layers:
            return args
        return (torch.cat([args[0][:, :1], deep[i - 1].expand(len(args[0]), -1, -1), args[0][:, 5:]], 1), *args[1:])

    hooks = [block.register_forward_pre_hook(replace) for block in model.transformer.resblocks]
    expected = F.normalize(reference_features(model, net.prompt.ctx, "end", names), dim=-1)
    for hook in hooks:
        hook.remove()
    actual = net.class_features(deep=deep)
    cotangent = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    assert_close(actual, expected, "formula", torch.float64)
    for got, want in zip(
        torch.autograd.grad(actual, (deep, net.prompt.ctx), cotangent),
        torch.autograd.grad(expected, (deep, net.prompt.ctx), cotangent),
        strict=True,
    ):
        assert_close(got, want, "formula", torch.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": torch.zeros(3, 32)}, r"context: expected shape \(4, 32\) or \(G, 4, 32\), got \(3, 32\)"),
        ({"context": torch.zeros(1, 1, 4, 32)}, r"got \(1, 1, 4, 32\)"),
        ({"deep": torch.zeros(2, 4, 32)}, r"\(J, 4, 32\) with J below the tower's 2 layers, got \(2, 4, 32\)"),
        ({"deep": torch.zeros(1, 3, 32)}, r"got \(1, 3, 32\)"),
        ({"context": torch.zeros(0, 4, 32)}, r"got \(0, 4, 32\)"),
        ({"before": 1}, r"deep: expected class tokens of shape \(5, 4, 32\) for before=1, got None"),
    ],
    ids=["tokens", "groups of groups", "too deep", "deep tokens", "no context", "no class tokens"],
)
def test_contexts_that_do_not_fit(models, arguments, message):
    net = pf.clip.PromptedCLIP(models["CLIP"], TOKENIZER, CLASS_NAMES, 4)
    with pytest.raises(ValueError, match=message):
        net.class_features(**arguments)


def test_deep_prompts_without_a_place():
    net = pf.clip.PromptedCLIP(tiny_clip(), TOKENIZER, CLASS_NAMES, 4, class_token_position="middle")
    with pytest.raises(ValueError, match=r"deep: expected a shared context at 'end'.*'middle'"):
        net.class_features(deep=torch.zeros(1, 4, 32))
    net = pf.clip.PromptedCLIP(tiny_clip(no_causal_mask=True), TOKENIZER, CLASS_NAMES, 4)
    with pytest.raises(ValueError, match="deep: expected a causal tower"):
        net.class_features(deep=torch.zeros(1, 4, 32, dtype=torch.float64))


@pytest.mark.parametrize("before", [1, 2])  # of 3: an inner block and the last one
@pytest.mark.parametrize("names", [READABLE, ["cat"], ["red cat", "red dog"]])
@pytest.mark.parametrize("memory", [None, 6e5])  # bytes: all classes at once; in chunks
def test_class_tokens_replace_the_rows_of_the_context_in_one_block(before, names, memory):
    """Against a hook on the block of the whole 77-token tower, as TCP's blocks do it."""
    model = tiny_clip(layers=3)
    net = pf.clip.PromptedCLIP(model, TOKENIZER, names, 4, max_memory=memory)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(len(names), 4, 32, dtype=torch.float64, generator=generator).requires_grad_()
    contexts = torch.stack([net.prompt.ctx.detach(), torch.randn(4, 32, generator=generator)]).requires_grad_()

    def replace(block, args):
        return (torch.cat([args[0][:, :1], tokens, args[0][:, 5:]], 1), *args[1:])

    hook = model.transformer.resblocks[before].register_forward_pre_hook(replace)
    expected = torch.stack([reference_features(model, context, "end", names) for context in contexts])
    hook.remove()
    actual = net.class_features(contexts, tokens, before=before)
    cotangent = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    assert_close(actual, F.normalize(expected, dim=-1), "formula", torch.float64)
    for got, want in zip(
        torch.autograd.grad(actual, (contexts, tokens), cotangent),
        torch.autograd.grad(F.normalize(expected, dim=-1), (contexts, tokens), cotangent),
        strict=True,
    ):
        assert_close(got, want, "formula", torch.float64)
