"""Guards torch.compile, torch.export and torch.func over prompts: the numbers of eager mode, in one graph, once."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.clip.packed import compiled
from tests.tiny_clip import CLASS_NAMES, CUT, TOKENIZER, WHOLE, tiny_clip
from tests.tolerances import assert_close

# PyTorch compiles its own rules of forward mode with torch.jit.script; dynamo and opcheck look at .grad of any tensor
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.*:FutureWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def prompted(model: Any = None, **options: Any) -> pf.clip.PromptedCLIP:
    torch.manual_seed(0)
    return pf.clip.PromptedCLIP(tiny_clip() if model is None else model, TOKENIZER, CLASS_NAMES, 4, **options)


def image_features(net: pf.clip.PromptedCLIP) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return F.normalize(torch.randn(7, 24, dtype=torch.float64, generator=generator), dim=-1).to(net.tower.dtype)


def both(logits: Tensor, net: pf.clip.PromptedCLIP) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the context."""
    return logits, torch.autograd.grad(logits.square().sum(), net.prompt.ctx)[0]


CASES = {
    "a shared context": lambda: prompted(),
    "class-specific, in front": lambda: prompted(class_specific=True, class_token_position="front"),
    "bfloat16, in the middle": lambda: prompted(tiny_clip(dtype=torch.bfloat16), class_token_position="middle"),
    "in chunks": lambda: prompted(max_memory=4e5),
    "other blocks": lambda: prompted(CUT["other attention block"]()),
}


@pytest.mark.parametrize(
    "case", [*list(CASES)[:3], *(pytest.param(c, marks=pytest.mark.slow) for c in list(CASES)[3:])]
)
def test_logits_compile_in_one_graph_and_once(case: str) -> None:
    """Whatever the context is, and whatever becomes of the frozen weights."""
    net = CASES[case]()
    x = image_features(net)
    counter = CompileCounterWithBackend("aot_eager")
    logits = torch.compile(net.logits, fullgraph=True, backend=counter)
    kind = "tower" if x.dtype == torch.bfloat16 else "formula"
    before = net.logits(x).detach()
    for change in (net.prompt.ctx, net.tower.text.transformer.resblocks[1].ln_2.weight, net.tower.embedding.weight):
        for got, want in zip(both(logits(x), net), both(net.logits(x), net), strict=True):
            assert_close(got, want, kind, x.dtype)
        with torch.no_grad():
            change.mul_(-1.5)
        assert not torch.allclose(net.logits(x), before, rtol=1e-2)
    assert_close(logits(x), net.logits(x), kind, x.dtype)
    assert counter.frame_count == 1


def test_a_tower_that_is_moved_to_another_dtype() -> None:
    """Features alone, whose graph has no other tensor of the model's."""
    net = prompted(tiny_clip(dtype=torch.float32))
    features = torch.compile(lambda: net.class_features(), fullgraph=True, backend="eager")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        net.model.to(dtype)
        got, want = features(), net.class_features()
        assert got.dtype == want.dtype == dtype
        assert_close(got, want, "tower" if dtype == torch.bfloat16 else "formula", dtype)


@pytest.mark.slow
def test_a_compiled_net_is_trained_as_the_net() -> None:
    """Under autocast, by two backwards that each take the graph."""
    labels, teacher = torch.arange(7) % 5, torch.randn(7, 5)
    contexts = []
    for compiler in (None, "inductor"):
        net = prompted(tiny_clip(dtype=torch.float32))
        x = image_features(net)
        forward = net.logits if compiler is None else torch.compile(net.logits, fullgraph=True, backend=compiler)
        opt, criterion = pf.ProGradSGD(net.prompt.parameters(), lr=0.1), pf.DualLoss()
        for _ in range(3):
            opt.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = forward(x)
            opt.backward(*criterion(logits, teacher, labels))
            opt.step()
        contexts.append(net.prompt.ctx.detach())
    assert_close(contexts[1], contexts[0], "autocast training", torch.bfloat16)
    assert not torch.allclose(contexts[0], prompted(tiny_clip(dtype=torch.float32)).prompt.ctx, atol=1e-3)


def test_pictures_compile_in_one_graph() -> None:
    net = prompted()
    pictures = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    forward = torch.compile(net, fullgraph=True, backend="eager")
    for got, want in zip(both(forward(pictures), net), both(net(pictures), net), strict=True):
        assert_close(got, want, "formula", torch.float64)


def test_contexts_and_deep_prompts() -> None:
    """Several contexts at once, as many as come, with deep prompts, with and without a gradient."""
    net = prompted()
    features = torch.compile(net.class_features, fullgraph=True, backend="aot_eager")
    deep = torch.randn(1, 4, 32, dtype=torch.float64, requires_grad=True)
    for groups in (2, 3):
        context = torch.randn(groups, 4, 32, dtype=torch.float64, requires_grad=True)
        got, want = features(context, deep), net.class_features(context, deep)
        for a, b in zip(*(torch.autograd.grad(y.sin().sum(), (context, deep)) for y in (got, want)), strict=True):
            assert_close(a, b, "formula", torch.float64)
        assert_close(got, want, "formula", torch.float64)
        with torch.no_grad():
            assert_close(features(context, deep, False), net.class_features(context, deep, False), "formula", got.dtype)


def arguments(net: pf.clip.PromptedCLIP, *, unit: bool, groups: int = 2) -> tuple[Any, ...]:
    dtype = torch.float64
    sizes = compiled._sizes(net.encoder._number, groups, dtype, unit, True)
    assert sizes is not None
    context = torch.randn(groups, *net.prompt.ctx.shape, dtype=torch.float64, requires_grad=True)
    return context, None, net.encoder._number, dtype, sizes, unit, True


@pytest.mark.parametrize("options", [{}, {"max_memory": 4e5}], ids=["at once", "in chunks"])
def test_opcheck(options: dict[str, Any]) -> None:
    """What the operators say of their results without computing is what they give."""
    net = prompted(**options)
    operators = torch.ops.prograd_fast
    args = arguments(net, unit=not options)
    # shapes that are symbols never reach them
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(operators.encode_prompts.default, args, test_utils=checks)
    results = [x.detach() for x in operators.encode_prompts(*args)]
    context, _, encoder, dtype, _, unit, _ = args
    backward = (torch.randn_like(results[0]), context.detach(), None, results, encoder, dtype, unit)
    torch.library.opcheck(operators.encode_prompts_backward.default, backward, test_utils=checks)


def test_ranks_that_share_classes() -> None:
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        net = prompted(class_group=dist.group.WORLD)
        x = image_features(net)
        logits = torch.compile(net.logits, fullgraph=True, backend="aot_eager")
        for got, want in zip(both(logits(x), net), both(net.logits(x), net), strict=True):
            assert_close(got, want, "formula", x.dtype)
    finally:
        dist.destroy_process_group()


def test_what_a_compiled_graph_refuses() -> None:
    net = prompted()
    args = arguments(net, unit=True)
    net.tower.text.transformer.requires_grad_(True)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"as it was when this was compiled.*reset\(\)"):
        torch.ops.prograd_fast.encode_prompts(*args)
    net.tower.text.transformer.requires_grad_(False)
    features = torch.ops.prograd_fast.encode_prompts(*args)[0]
    (gradient,) = torch.autograd.grad(features.sin().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="class_features: expected to be differentiated once"):
        gradient.sum().backward()
    del net
    with torch.no_grad(), pytest.raises(RuntimeError, match="one that is gone"):
        torch.ops.prograd_fast.encode_prompts(*args[:2], 1 << 40, *args[3:])


def test_a_tower_with_replaced_embeddings_says_why_it_is_not_in_the_graph() -> None:
    net = prompted(WHOLE["appended CLS"]())
    x = image_features(net)
    # torch 2.6 can only name the function
    with pytest.raises(Exception, match=r"cannot trace; compile without fullgraph=True|_encode_text"):
        torch.compile(net.logits, fullgraph=True, backend="eager")(x)
    assert_close(torch.compile(net.logits, backend="eager")(x), net.logits(x), "formula", x.dtype)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this torch does not tell that it exports")
def test_export() -> None:
    """The program has the tower's own code, and with it the weights."""

    class Scores(torch.nn.Module):
        def __init__(self, net: pf.clip.PromptedCLIP) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net.logits(x)

    net = prompted()
    x = image_features(net)
    program = torch.export.export(Scores(net), (x,))
    assert not any("prograd_fast" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(x), net.logits(x), "formula", x.dtype)


def test_torch_func() -> None:
    """Reverse mode goes through the packed tower; all that it has no rule for through the tower's own code."""
    net = prompted()
    context, tangent = net.prompt.ctx.detach(), torch.randn(4, 32, dtype=torch.float64)

    def features(context: Tensor) -> Tensor:
        return net.class_features(context)[:2, :2]

    jacobian = torch.func.jacrev(features)(context)
    expected = torch.autograd.functional.jacobian(features, context)
    assert_close(jacobian, expected, "formula", context.dtype)
    along = torch.einsum("cdmk,mk->cd", expected, tangent)
    assert_close(torch.func.jvp(features, (context,), (tangent,))[1], along, "formula", context.dtype)
    assert_close(torch.func.jacfwd(features)(context), expected, "formula", context.dtype)
    two = torch.stack([context, tangent])
    of_two = torch.func.vmap(torch.func.grad(lambda c: features(c).sum()))(two)
    assert_close(of_two[0], expected.sum((0, 1)), "formula", context.dtype)
    assert_close(torch.func.vmap(features)(two)[1], features(tangent), "formula", context.dtype)
    curvature = torch.func.hessian(lambda size: features(context + size * tangent).sum())(context.new_zeros(()))
    step = 1e-4
    slopes = [torch.func.jvp(features, (context + s * step * tangent,), (tangent,))[1].sum() for s in (1, -1)]
    assert curvature.item() == pytest.approx(float(slopes[0] - slopes[1]) / (2 * step), rel=1e-4)


def test_a_batch_of_cotangents() -> None:
    net = prompted()
    features = net.class_features()
    cotangents = torch.randn(3, *features.shape, dtype=torch.float64)

    def gradient(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(features, net.prompt.ctx, cotangent, retain_graph=True)[0]

    with pytest.raises(RuntimeError, match=r"is_grads_batched=True. Take torch.func.vmap"):
        torch.autograd.grad(features, net.prompt.ctx, cotangents, is_grads_batched=True, retain_graph=True)
    assert_close(torch.func.vmap(gradient)(cotangents)[2], gradient(cotangents[2]), "formula", torch.float64)
