"""Guards the packed tower: the rows that it computes, their values in every kind of tower, changes of the model."""

import copy
import itertools
import pickle

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import prograd_fast as pf
from prograd_fast.clip.packed import encode
from prograd_fast.clip.packed.chunks import BACKWARD, KEPT
from prograd_fast.clip.packed.forward import mlp_rows
from prograd_fast.clip.packed.packing import Packing, Placing, PromptRows
from tests.tiny_clip import CLASS_NAMES, CUT, TOKENIZER, tiny_clip
from tests.tolerances import assert_close

PACKED = [name for name in CUT if name != "other attention block"]
POSITIONS = ["end", "middle", "front"]


def prompted(model, n_ctx=4, names=CLASS_NAMES, **options):
    torch.manual_seed(0)
    return pf.clip.PromptedCLIP(model, TOKENIZER, names, n_ctx, **options)


def cotangents(features: Tensor, n: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *features.shape, dtype=torch.float64, generator=generator).to(features.dtype)


def own_way(net: pf.clip.PromptedCLIP, context: Tensor | None = None) -> Tensor:
    """Class features through the tower's own code, prompt by prompt."""
    context = net.prompt.ctx if context is None else context
    single = context.ndim == net.prompt.ctx.ndim
    features = net.encoder._encode_unpacked(context[None] if single else context, None)
    features = torch.nn.functional.normalize(features, dim=-1)
    return features[0] if single else features


# ---- which rows


def packing(ids: list[list[int]], ends: list[int], context: list[list[int]], class_specific: bool = False) -> Packing:
    return Packing.of(
        torch.tensor(ids), torch.tensor(ends), torch.tensor(context).reshape(len(ids), -1).long(), class_specific
    )


def test_rows_of_a_shared_context_at_the_end():
    # [1 | ctx ctx | 5 9 . .] and [1 | ctx ctx | 5 6 7 9]: the 5 that both names begin with is shared, too
    found = packing([[1, 0, 0, 5, 9, 0, 0], [1, 0, 0, 5, 6, 7, 9]], [4, 6], [[1, 2], [1, 2]])
    assert found.prefix.positions.tolist() == [0, 1, 2, 3]
    assert found.prefix.at.tolist() == [1, 2]
    assert found.prefix.context.tolist() == [0, 1]
    assert found.suffixes.token_ids.tolist() == [9, 6, 7, 9]
    assert found.suffixes.positions.tolist() == [4, 4, 5, 6]
    assert found.offsets.tolist() == [0, 1, 4]
    assert len(found.suffixes.at) == 0


@pytest.mark.parametrize(
    ("at", "context", "n_context", "start"),
    [
        ([1, 2], [0, 1], 2, 1),
        ([1, 2], [1, 0], 2, None),  # in another order
        ([1, 3], [0, 1], 2, None),  # with a word between
        ([1, 2], [0, 1], 3, None),  # not all of it
        ([1, 3], [0, 0], 1, None),  # twice
        ([], [], 0, None),
    ],
)
def test_a_context_in_its_places(at, context, n_context, start):
    """A context in one piece is put between the words in one go, any other row by row: the same rows and gradients."""
    rows = PromptRows(*(torch.tensor(x).long() for x in ([0] * 4, range(4), at, context)))
    placing = Placing.of(rows, n_context)
    assert placing.start == start
    words, given = torch.randn(4, 5), torch.randn(2, n_context, 5)
    placed = placing.into(words, given)
    d_rows, expected, d_expected = torch.randn(3, 2, 4, 5), words.repeat(2, 1, 1), torch.zeros(3, 2, n_context, 5)
    for row, of_context in zip(at, context, strict=True):
        expected[:, row] = given[:, of_context]
        d_expected[:, :, of_context] += d_rows[:, :, row]
    assert torch.equal(placed, expected)
    assert_close(placing.out_of(d_rows, given), d_expected, "formula", torch.float32)
    behind = placing.followed_by(placing, 4)
    assert torch.equal(behind.into(words.repeat(2, 1), given), expected.repeat(1, 2, 1))


def test_a_context_that_stands_elsewhere_is_not_shared():
    # [1 | 5 | ctx | 9] and [1 | 5 6 | ctx | 9], as "front" lays them out
    found = packing([[1, 5, 0, 9, 0], [1, 5, 6, 0, 9]], [3, 4], [[2], [3]])
    assert found.prefix.token_ids.tolist() == [1, 5]
    assert found.suffixes.at.tolist() == [0, 3]
    assert found.suffixes.context.tolist() == [0, 0]


def test_class_specific_contexts_are_not_shared():
    found = packing([[1, 0, 5, 9], [1, 0, 6, 9]], [3, 3], [[1], [1]], class_specific=True)
    assert found.prefix.token_ids.tolist() == [1]
    assert found.suffixes.at.tolist() == [0, 3]
    assert found.suffixes.context.tolist() == [0, 1]


@pytest.mark.parametrize("n", [1, 3])  # prompts that are the same leave each class its end of text
def test_same_prompts(n):
    found = packing([[1, 0, 5, 9, 0]] * n, [3] * n, [[1]] * n)
    assert found.prefix.positions.tolist() == [0, 1, 2]
    assert found.suffixes.token_ids.tolist() == [9] * n


def test_the_number_of_rows_is_small():
    """1000 ImageNet classes with 16 context tokens: 4 188 rows, of 77 000."""
    from open_clip import IMAGENET_CLASSNAMES

    names = list(dict.fromkeys(IMAGENET_CLASSNAMES))
    net = prompted(tiny_clip(dtype=torch.float32), 16, names)
    tokens = sum(len(TOKENIZER.encode(f"{name}.")) + 1 for name in names)
    assert len(net.encoder._packing.suffixes.token_ids) == tokens
    assert len(net.encoder._packing.prefix.token_ids) == 17


# ---- right in every kind of tower


# every layout in a tower of two blocks and in one whose first block is its last; the other towers differ in weights
@pytest.mark.parametrize(
    ("tower", "position", "class_specific"),
    [
        *itertools.product(["CLIP", "one block"], POSITIONS, [False, True]),
        *((tower, "middle", False) for tower in PACKED if tower not in ("CLIP", "one block")),
    ],
)
def test_packed_is_the_towers_own_way(tower, position, class_specific):
    net = prompted(CUT[tower](), class_token_position=position, class_specific=class_specific)
    assert net.tower.unpackable_reason is None
    actual, expected = net.class_features(), own_way(net)
    assert_close(actual, expected, "formula", torch.float64)
    for cotangent in cotangents(actual, 2):
        (got,) = torch.autograd.grad(actual, net.prompt.ctx, cotangent, retain_graph=True)
        (want,) = torch.autograd.grad(expected, net.prompt.ctx, cotangent, retain_graph=True)
        assert_close(got, want, "formula", torch.float64)


@pytest.mark.parametrize("names", [["cat"], ["cat", "cat fish", "cat fish pond"]], ids=["one class", "names in names"])
@pytest.mark.parametrize("position", POSITIONS)
def test_few_or_similar_names(names, position):
    net = prompted(tiny_clip(), 2, names, class_token_position=position)
    actual, expected = net.class_features(), own_way(net)
    assert_close(actual, expected, "formula", torch.float64)
    (got,) = torch.autograd.grad(actual, net.prompt.ctx, cotangents(actual)[0])
    (want,) = torch.autograd.grad(expected, net.prompt.ctx, cotangents(expected)[0])
    assert_close(got, want, "formula", torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision(dtype):
    """Features and gradients of a tower of 6 blocks against float64, both with the weights as `dtype` holds them."""
    model = tiny_clip(layers=6, width=64, heads=4, dtype=dtype)
    net, exact = prompted(model), prompted(copy.deepcopy(model).double())
    with torch.no_grad():
        net.prompt.ctx.copy_(exact.prompt.ctx.to(dtype))
        exact.prompt.ctx.copy_(net.prompt.ctx)
    actual, expected = net.class_features(), exact.class_features()
    cotangent = cotangents(expected)[0].to(dtype)
    (got,) = torch.autograd.grad(actual, net.prompt.ctx, cotangent)
    (want,) = torch.autograd.grad(expected, exact.prompt.ctx, cotangent.double())
    assert_close(actual, expected, "tower", dtype)
    assert_close(got, want, "tower", dtype)


def test_autocast():
    net = prompted(tiny_clip(dtype=torch.float32))
    expected = net.class_features()
    with torch.autocast("cpu", torch.bfloat16):
        actual = net.class_features()
    assert not torch.equal(actual, expected)  # it did compute in bfloat16
    assert_close(actual, expected, "autocast", torch.bfloat16)
    (got,) = torch.autograd.grad(actual, net.prompt.ctx, cotangents(actual)[0])
    (want,) = torch.autograd.grad(expected, net.prompt.ctx, cotangents(expected)[0])
    assert_close(got, want, "autocast", torch.bfloat16)


# ---- backward in every way


def test_backward_in_every_way():
    net = prompted(tiny_clip())
    ctx = net.prompt.ctx
    first, second = cotangents(net.class_features(), 2)
    features = net.class_features()
    (expected,) = torch.autograd.grad(own_way(net), ctx, first)
    (kept,) = torch.autograd.grad(features, ctx, first, retain_graph=True)
    torch.autograd.grad(features, ctx, second, retain_graph=True)
    (again,) = torch.autograd.grad(features, ctx, first)
    assert torch.equal(kept, again)
    assert_close(kept, expected, "formula", torch.float64)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(features, ctx, first)
    (net.class_features() * first).sum().backward()
    assert torch.equal(ctx.grad, kept)
    (checkpointed,) = torch.autograd.grad(checkpoint(net.class_features, use_reentrant=False), ctx, first)
    assert torch.equal(checkpointed, kept)
    functional = torch.func.grad(lambda ctx: (net.class_features(ctx) * first).sum())(ctx)
    assert torch.equal(functional, kept)
    both = torch.func.vmap(lambda c: torch.autograd.grad(net_features, ctx, c)[0])
    net_features = net.class_features()
    assert_close(both(torch.stack([first, second]))[0], expected, "formula", torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_unit_rows_are_those_of_normalize(dtype):
    """Their norms are a part of the tower's node; a row of zeros stays one, and its gradient what `normalize` gives."""
    net = prompted(tiny_clip(dtype=dtype))
    plain, unit = net.class_features(unit=False), net.class_features()
    expected = torch.nn.functional.normalize(plain, dim=-1)
    assert torch.equal(unit, expected)
    (cotangent,) = cotangents(unit)
    (got,) = torch.autograd.grad(unit, net.prompt.ctx, cotangent)
    (want,) = torch.autograd.grad(expected, net.prompt.ctx, cotangent)
    assert_close(got, want, "tower" if dtype == torch.bfloat16 else "formula", dtype)
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    wanted = torch.nn.functional.normalize(features, dim=-1)
    gradient = torch.tensor([[1.0, -2.0], [0.5, 2.0]], dtype=torch.float64)
    norms = features.detach().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    got = encode._norm_backward(gradient[None], wanted.detach(), norms)[0]
    assert_close(got, torch.autograd.grad(wanted, features, gradient)[0], "formula", torch.float64)


def test_no_second_derivative():
    net = prompted(tiny_clip())
    (gradient,) = torch.autograd.grad(net.class_features().sum(), net.prompt.ctx, create_graph=True)
    with pytest.raises(RuntimeError, match="class_features: expected to be differentiated once"):
        gradient.sum().backward()


def test_what_the_backward_keeps():
    """No more than 9·d numbers for each row and block, and statistics."""
    net = prompted(tiny_clip(layers=4, dtype=torch.float32))
    sizes = {}

    def pack(x):
        sizes[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        features = net.encoder(net.prompt.ctx[None])
    rows = sum(len(part.token_ids) for part in (net.encoder._packing.prefix, net.encoder._packing.suffixes))
    blocks, d = 4, 32
    assert features.requires_grad
    assert sum(sizes.values()) <= rows * (blocks * (KEPT * d + 4) + 2 * d)


# ---- chunks


@pytest.mark.parametrize(
    ("tower", "position", "groups"),
    [("layers", "end", 1), ("layers", "end", 2), ("layers", "middle", 1), ("no projection", "front", 1)],
)
def test_chunks_change_nothing_but_rounding(tower, position, groups, monkeypatch):
    model = tiny_clip(layers=3) if tower == "layers" else CUT[tower]()
    whole = prompted(model, class_token_position=position)
    # enough for about one class at a time: the longest suffix has up to 14 rows, the prefix up to 5
    bound = groups * 20 * 32 * 8 * (whole.tower.n_layers * KEPT + BACKWARD)
    parts = prompted(model, class_token_position=position, max_memory=bound)
    contexts = torch.randn(groups, *whole.prompt.ctx.shape, dtype=torch.float64).requires_grad_()
    deep = None
    if position == "end":
        deep = torch.randn(2, 4, 32, dtype=torch.float64, requires_grad=True)
    classes = []
    forward = encode.forward

    def counted(part, *others, **options):
        classes.append(len(part.offsets) - 1)
        return forward(part, *others, **options)

    with monkeypatch.context() as patch:
        patch.setattr(encode, "forward", counted)
        actual = parts.class_features(contexts, deep)
    assert classes[0] == 0  # the prefix alone
    assert len(classes) > 2  # and several chunks
    expected = whole.class_features(contexts, deep)
    assert_close(actual, expected, "formula", torch.float64)
    wanted = (contexts,) if deep is None else (contexts, deep)
    cotangent = cotangents(expected)[0]
    for got, want in zip(
        torch.autograd.grad(actual, wanted, cotangent), torch.autograd.grad(expected, wanted, cotangent), strict=True
    ):
        assert_close(got, want, "formula", torch.float64)


def test_many_classes_without_a_gradient():
    """Chunks of at most 4096 rows; the same features."""
    names = [f"cat {i}" for i in range(1500)]
    net = prompted(tiny_clip(dtype=torch.float32), 4, names)
    with torch.no_grad():
        actual = net.class_features()
    assert net.encoder._bounds[-1] > 4096
    assert_close(actual, net.class_features(), "formula", torch.float32)


def test_too_little_memory():
    net = prompted(tiny_clip(), max_memory=1000)
    with pytest.raises(ValueError, match=r"max_memory: expected at least [\d.]+ MB.*longest prompt.*Give more"):
        net.class_features()


def test_other_classes_have_the_same_memory():
    assert prompted(tiny_clip(), max_memory=1e9).with_classes(["tulip"]).encoder.max_memory == 1e9


# ---- what is done to the model


def _load_others(model: torch.nn.Module, assign: bool) -> None:
    state = {name: 1.1 * tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    model.requires_grad_(False)  # parameters that are assigned are new ones


def _replace_data(model: torch.nn.Module) -> None:
    weight = model.transformer.resblocks[1].attn.in_proj_weight
    weight.data = 1.5 * weight.data


def _new(values: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.rand_like(values), requires_grad=False)


def _replace_container(model: torch.nn.Module) -> None:
    norm = model.ln_final
    norm.__dict__["_parameters"] = {name: _new(p) for name, p in norm.named_parameters()}


def _replace_module(model: torch.nn.Module) -> None:
    blocks = model.transformer.resblocks
    blocks[0].mlp = copy.deepcopy(blocks[1].mlp)


def _replace_activations(model: torch.nn.Module) -> None:
    for block in model.transformer.resblocks:  # no weight changes
        block.mlp.gelu = QuickGELU()


class Adapted(torch.nn.Linear):
    """A layer with an adapter that is not trained any more: the weight alone is not what it computes."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.cumsum(-1).repeat(1, 1, self.out_features // self.in_features)


def _adapt(model: torch.nn.Module) -> None:
    mlp = model.transformer.resblocks[0].mlp
    mlp.c_fc = Adapted(mlp.c_fc)


def _replace_forward(model: torch.nn.Module) -> None:
    norm = model.transformer.resblocks[0].ln_1
    own = norm.forward
    norm.forward = lambda x: own(x).cumsum(-1)


# random: norms and unit rows do not show a shift or a factor of all
CHANGES = {
    "a weight in place": lambda model: model.transformer.resblocks[0].mlp.c_fc.weight.mul_(1.5),
    "the embedding": lambda model: model.token_embedding.weight.add_(torch.rand_like(model.token_embedding.weight)),
    "the positions": lambda model: model.positional_embedding.add_(torch.rand_like(model.positional_embedding)),
    "the projection": lambda model: model.text_projection.mul_(torch.rand_like(model.text_projection)),
    "another projection": lambda model: setattr(model, "text_projection", _new(model.text_projection)),
    "the memory of a weight": _replace_data,
    "a state, copied": lambda model: _load_others(model, assign=False),
    "a state, assigned": lambda model: _load_others(model, assign=True),
    "another parameter": lambda model: setattr(model.ln_final, "weight", _new(model.ln_final.weight)),
    "another container": _replace_container,
    "another module": _replace_module,
    "another activation": _replace_activations,
    "a module of another kind": _adapt,
    "a forward in the place of a module's": _replace_forward,
    "another dtype and back": lambda model: model.bfloat16().double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(change):
    """Each alone: whoever is not looked at shows."""
    model = tiny_clip()
    net = prompted(model)
    before = net.class_features()
    with torch.no_grad():
        CHANGES[change](model)
    after = net.class_features()
    assert (after - before).abs().max() > 1e-6
    assert_close(after, own_way(net), "formula", torch.float64)
    with torch.no_grad():
        assert_close(net.class_features(), own_way(net), "formula", torch.float64)


def test_what_did_not_change_is_not_read_again():
    net = prompted(tiny_clip())
    net.class_features()
    _, known = net.encoder._constants
    net.class_features()
    assert net.encoder._constants[1] is known
    other = net.with_classes(["tulip"])
    other.class_features()
    assert other.encoder._constants[1].part.weights is known.part.weights


def test_a_look_in_inference_mode_does_not_spoil_training():
    """What is kept between calls must not be inference tensors, which autograd refuses to save."""
    net = prompted(tiny_clip(dtype=torch.bfloat16))  # norms are converted: more is kept than views of weights
    with torch.inference_mode():
        expected = net.class_features()
    actual = net.class_features()
    assert torch.equal(actual, expected)
    (gradient,) = torch.autograd.grad(actual.sum(), net.prompt.ctx)
    assert gradient.isfinite().all()


def test_weights_of_inference_mode():
    """They count no changes, so that nothing that is read from them can be kept: the tower's own code runs."""
    with torch.inference_mode():
        net = prompted(tiny_clip())
        for _ in range(2):
            assert_close(net.class_features(), prompted(tiny_clip()).class_features(), "formula", torch.float64)
            net.tower.text.transformer.resblocks[0].mlp.c_fc.weight.mul_(-1)
            assert not torch.allclose(net.class_features(), prompted(tiny_clip()).class_features())
            net.tower.text.transformer.resblocks[0].mlp.c_fc.weight.mul_(-1)


def test_hooks_are_heard():
    model = tiny_clip()
    net = prompted(model)
    heard = []
    handle = model.transformer.resblocks[1].register_forward_hook(lambda *_: heard.append(1))
    net.class_features()
    assert heard
    handle.remove()
    net.class_features()
    assert len(heard) == 1


def test_hooks_in_a_new_place_are_heard():
    """As after `module._forward_hooks = OrderedDict()`, by which people take all hooks away."""
    model = tiny_clip()
    net = prompted(model)
    net.class_features()
    heard = []
    module = model.transformer.resblocks[1].ln_2
    module._forward_hooks = type(module._forward_hooks)()
    module.register_forward_hook(lambda *_: heard.append(1))
    net.class_features()
    assert heard


def test_trained_weights_get_gradients():
    model = tiny_clip()
    net = prompted(model)
    weight = model.transformer.resblocks[0].mlp.c_fc.weight.requires_grad_()
    assert torch.autograd.grad(net.class_features().sum(), weight)[0].abs().sum() > 0


def test_copies_do_not_carry_what_can_be_computed_again():
    net = prompted(tiny_clip())
    before = len(pickle.dumps(net))
    expected = net.class_features()
    assert len(pickle.dumps(net)) == before
    assert torch.equal(copy.deepcopy(net).class_features(), expected)


def test_towers_that_cannot_be_packed_say_why():
    assert "CustomResidualAttentionBlock" in pf.clip.TextTower(CUT["other attention block"]()).unpackable_reason


def test_an_mlp_goes_in_pieces_on_a_cpu_alone():
    """On a GPU pieces would be launches, and batched products in the backward, for nothing."""
    assert mlp_rows(torch.empty(5000, 8)) == mlp_rows(torch.empty(2, 5000, 8)) == 512
    assert mlp_rows(torch.empty(5000, 8, device="meta")) == mlp_rows(torch.empty(2, 5000, 8, device="meta")) == 5000
    assert mlp_rows(torch.empty(0, 8, device="meta")) == 1
