"""Guards PromptedCLIP as an object: the start of its context, its one parameter, copies, precision, other classes."""

import copy
import pickle

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import nn

import prograd_fast as pf
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import TOLERANCES, assert_close, relative_error

IMAGES = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return tiny_clip()


def prompted(model, n_ctx=4, **options):
    return pf.clip.PromptedCLIP(model, TOKENIZER, CLASS_NAMES, n_ctx, **options)


# ---- how the context starts


def test_words_fill_the_last_rows(model):
    """ProGrad's start: rows before the words are zero."""
    ctx = prompted(model, 6, ctx_init="a photo of a").prompt.ctx
    words = model.token_embedding(TOKENIZER(["a photo of a"])[0, 1:5])
    assert torch.equal(ctx[:2], torch.zeros_like(ctx[:2]))
    assert torch.equal(ctx[2:], words)


def test_words_with_a_comma_are_counted_in_tokens(model):
    """8 words, 9 tokens: the comma is one."""
    net = prompted(model, None, ctx_init="a type of pet, a photo of a")
    assert net.n_ctx == len(net.prompt.ctx) == 9


def test_class_specific_words(model):
    """Every class starts from the words."""
    shared = prompted(model, ctx_init="a_photo_of_a").prompt.ctx  # underscores are spaces, as in CoOp's settings
    specific = prompted(model, ctx_init="a photo of a", class_specific=True).prompt.ctx
    assert torch.equal(specific, shared.expand(len(CLASS_NAMES), -1, -1))


def test_random_start(model):
    """N(0, 0.02^2), and the same for the same seed."""
    torch.manual_seed(5)
    first = prompted(model, 16, class_specific=True).prompt.ctx
    torch.manual_seed(5)
    assert torch.equal(prompted(model, 16, class_specific=True).prompt.ctx, first)
    assert first.shape == (len(CLASS_NAMES), 16, 32)
    assert 0.019 < first.detach().std() < 0.021  # 2560 draws: standard error 0.0003


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": 3, "ctx_init": "a photo of a"}, "at least the 4 tokens.*got 3"),
        ({"n_ctx": None}, "got None without words"),
        ({"n_ctx": 0}, "1 or more.*got 0"),
        ({"n_ctx": 2.0}, "got 2.0"),
        ({"n_ctx": 4, "ctx_init": ""}, "has no tokens"),
        ({"n_ctx": 4, "ctx_init": "a photo of a {}."}, "only the words before the name"),
        ({"n_ctx": 4, "ctx_init": torch.zeros(5, 32)}, r"\(4, 32\), shared.*\(5, 32\).*n_ctx=None"),
        ({"n_ctx": None, "ctx_init": torch.zeros(4, 64)}, r"32\), shared.*got torch.float32 of shape \(4, 64\)"),
        ({"n_ctx": None, "ctx_init": torch.zeros(3, 4, 32), "class_specific": True}, "specific to 5 classes"),
        ({"n_ctx": None, "ctx_init": torch.zeros(4, 32, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_starts_that_do_not_fit(model, options, message):
    with pytest.raises(ValueError, match=message):
        prompted(model, **options)
    assert all(p.requires_grad for p in model.parameters())  # nothing was done to the model


def test_tower_that_cannot_take_context(model):
    """Embeddings out of reach: the zero-shot teacher needs none."""
    model.text = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"Linear has no token embedding .*zero-shot or linear-probe"):
        prompted(model)


# ---- what is trainable, and what is saved


def test_only_the_context_is_trainable(model):
    net = prompted(model)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["prompt.ctx"]
    assert list(net.prompt.parameters()) == [net.prompt.ctx]
    assert list(net.prompt.state_dict()) == ["ctx"]
    net(IMAGES).square().sum().backward()
    assert net.prompt.ctx.grad.abs().max() > 0
    assert all(p.grad is None for p in model.parameters())


def test_image_features_have_no_graph(model):
    features = prompted(model).image_features(IMAGES.requires_grad_())
    assert not features.requires_grad
    assert_close(features.norm(dim=1), torch.ones(3), "formula", torch.float64)


def test_train_mode_leaves_the_model_alone():
    """Batch norm in an image tower must keep its statistics."""
    model = tiny_clip()
    norm = nn.BatchNorm1d(3 * 16 * 16)
    model.visual = nn.Sequential(nn.Flatten(), norm, nn.Linear(3 * 16 * 16, 24)).double()
    net = prompted(model.train()).train()
    assert net.training
    assert net.prompt.training
    before = norm.running_mean.clone()
    net(IMAGES)
    assert torch.equal(norm.running_mean, before)


def test_logits_are_the_models():
    """With the context as words, logits are those of open_clip's own `get_logits`; a bias (SigLIP) included."""
    model = tiny_clip(CustomTextCLIP, init_logit_bias=-10.0)
    net = prompted(model, None, ctx_init="a photo of a")
    sentences = TOKENIZER([f"a photo of a {name}." for name in net.class_names])
    expected, _ = model.get_logits(IMAGES, sentences)
    assert_close(net(IMAGES), expected, "formula", torch.float64)
    given = net.logits(net.image_features(IMAGES), net.class_features())
    assert torch.equal(given, net(IMAGES))


# ---- copies, other classes, precision


def test_deepcopy_and_pickle(model):
    net = prompted(model)
    twin, prompt = copy.deepcopy(net), pickle.loads(pickle.dumps(net.prompt))
    assert torch.equal(twin(IMAGES), net(IMAGES))
    assert torch.equal(prompt.ctx, net.prompt.ctx)
    with torch.no_grad():
        twin.prompt.ctx.zero_()
    assert not torch.equal(twin(IMAGES), net(IMAGES))  # a copy has its own context


def test_other_classes_share_the_context(model):
    state = torch.get_rng_state()
    net = prompted(model)
    after = torch.get_rng_state()
    new = net.with_classes(["tulip", "grand piano"])
    assert new.prompt.ctx is net.prompt.ctx
    assert not torch.equal(state, after)
    assert torch.equal(after, torch.get_rng_state())  # looking at other classes must not change what training draws
    with torch.no_grad():
        net.prompt.ctx.add_(1)
    fresh = pf.clip.PromptedCLIP(model, TOKENIZER, ["tulip", "grand piano"], None, net.prompt.ctx.detach())
    assert torch.equal(new.class_features(), fresh.class_features())
    assert fresh.prompt.ctx is not net.prompt.ctx  # a plain tensor is copied


def test_class_specific_context_has_no_other_classes(model):
    net = prompted(model, class_specific=True)
    with pytest.raises(ValueError, match="class_specific=False"):
        net.with_classes(["tulip"])
    assert net.with_classes(CLASS_NAMES).prompt.ctx is net.prompt.ctx


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_context_is_float32_or_wider(dtype):
    """In a half-precision model, too: the context's small updates need the bits."""
    net = prompted(tiny_clip(dtype=dtype))
    assert net.prompt.ctx.dtype == torch.float32
    assert net.class_features().dtype == dtype


def test_double_and_back(model):
    """Buffers follow the module, so a net may be converted after it was built."""
    net = prompted(tiny_clip(dtype=torch.float32))
    expected = net(IMAGES.float())
    assert_close(net.double()(IMAGES), expected, "formula", torch.float32)


def test_autocast():
    """bfloat16 autocast: close, finite, and the context's gradient is float32."""
    net = prompted(tiny_clip(dtype=torch.float32))
    with torch.no_grad():
        expected = net.class_features()
    with torch.autocast("cpu", torch.bfloat16):
        features = net.class_features()
        net(IMAGES.float()).square().sum().backward()
    assert_close(features, expected, "autocast", torch.bfloat16)
    assert relative_error(features, expected) > TOLERANCES["formula", torch.float32]  # it did run in bfloat16
    assert net.prompt.ctx.grad.dtype == torch.float32
    assert net.prompt.ctx.grad.isfinite().all()
