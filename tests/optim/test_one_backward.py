"""Guards the one backward for both gradients, through nodes that take two cotangents at once."""

import pytest
import torch
from torch import Tensor, nn

import prograd_fast as pf
from prograd_fast.clip.packed import encode
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close

IMAGE_FEATURES = torch.nn.functional.normalize(
    torch.randn(7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1
)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many cotangents each backward of the tower had."""
    found: list[int] = []
    original = encode.backward

    def backward(part, cotangents, *others):
        found.append(len(cotangents))
        return original(part, cotangents, *others)

    monkeypatch.setattr(encode, "backward", backward)
    return found


@pytest.fixture
def net():
    torch.manual_seed(0)
    return pf.clip.PromptedCLIP(tiny_clip(), TOKENIZER, CLASS_NAMES, 4)


def losses(net: pf.clip.PromptedCLIP, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
    teacher = pf.clip.ZeroShotTeacher(net.model, TOKENIZER, CLASS_NAMES, "a photo of a {}.")
    logits = net.logits(IMAGE_FEATURES, features)
    return pf.DualLoss(temperature=2.0)(logits, teacher.logits(IMAGE_FEATURES), LABELS)


def check(optimizer, params, task, general) -> None:
    """What `backward` accumulates is what autograd.grad gives for each loss."""
    a = torch.autograd.grad(task, params, retain_graph=True, allow_unused=True)
    b = torch.autograd.grad(general, params, retain_graph=True, allow_unused=True)
    optimizer.backward(task, general)
    for p, x, y in zip(params, a, b, strict=True):
        for got, want in ((p.grad, x), (optimizer._general.get(p), y)):
            assert (got is None) == (want is None)
            if want is not None:
                assert_close(got, want, "formula", torch.float64)


def test_one_pass_for_both(net, passes):
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=0.1)
    task, general = losses(net)
    optimizer.backward(task, general)
    assert passes == [2]
    with pytest.raises(RuntimeError, match="second time"):  # and the graph is freed
        torch.autograd.grad(task, net.prompt.ctx)
    optimizer.zero_grad()
    check(optimizer, [net.prompt.ctx], *losses(net))


def test_retained_graph(net, passes):
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=0.1)
    task, general = losses(net)
    optimizer.backward(task, general, retain_graph=True)
    once = net.prompt.ctx.grad.clone()
    optimizer.backward(task, general)
    assert passes == [2, 2]
    assert_close(net.prompt.ctx.grad, 2 * once, "formula", torch.float64)


def test_parameters_before_and_behind_the_tower(net, passes):
    """A network that makes the context (CoCoOp), a shift of the features (LASP), and one that only one loss reaches."""
    make, shift, other = nn.Linear(24, 32).double(), torch.zeros(24, dtype=torch.float64), torch.ones(()).double()
    shift.requires_grad_()
    other.requires_grad_()
    params = [net.prompt.ctx, *make.parameters(), shift, other]
    optimizer = pf.ProGradSGD(params, lr=0.1)
    contexts = net.prompt.ctx + make(IMAGE_FEATURES[:2])[:, None]
    features = (net.class_features(contexts) + shift).mean(0)
    task, general = losses(net, features)
    check(optimizer, params, task + other**2, general)
    assert passes[-1] == 2


def test_two_sets_of_classes(net, passes):
    """Two nodes: one both losses reach, one only the task loss."""
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=0.1)
    task, general = losses(net)
    check(optimizer, [net.prompt.ctx], task + net.with_classes(["tulip", "rose"]).class_features().sum(), general)
    assert sorted(passes[-2:]) == [1, 2]


def test_a_parameter_on_both_sides_has_two_backwards(net, passes):
    """Weight on the context itself: no cut separates it."""
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=0.1)
    task, general = losses(net)
    check(optimizer, [net.prompt.ctx], task + net.prompt.ctx.square().sum(), general)
    assert passes[-2:] == [1, 1]


def test_a_differentiable_gradient_has_two_backwards(net, passes):
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=0.1)
    optimizer.backward(*losses(net), create_graph=True)
    assert passes == [1, 1]


def test_an_infinite_general_loss_leaves_the_task_gradient_alone(net, passes):
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=0.1)
    task, general = losses(net)
    (expected,) = torch.autograd.grad(task, net.prompt.ctx, retain_graph=True)
    optimizer.backward(task, general * torch.inf)
    assert passes == [1, 2]
    assert_close(net.prompt.ctx.grad, expected, "formula", torch.float64)
    optimizer.step()
    assert net.prompt.ctx.isfinite().all()


def test_deep_prompts_are_parameters_too(net, passes):
    deep = nn.Parameter(torch.randn(1, 4, 32, dtype=torch.float64))
    optimizer = pf.ProGradSGD([net.prompt.ctx, deep], lr=0.1)
    check(optimizer, [net.prompt.ctx, deep], *losses(net, net.class_features(deep=deep)))
    assert passes[-1] == 2


def test_autocast(net, passes):
    net.float()
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.logits(IMAGE_FEATURES.float())
        task, general = pf.DualLoss()(logits, logits.detach().roll(1, 1), LABELS)
    check_task = torch.autograd.grad(task, net.prompt.ctx, retain_graph=True)[0]
    optimizer.backward(task, general)
    assert passes == [1, 2]
    assert_close(net.prompt.ctx.grad, check_task, "autocast", torch.bfloat16)
