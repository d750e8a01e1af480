"""AU-ViT: both heads, both losses and all gradients against the authors' code, and its traps."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import prograd_fast as pf
from prograd_fast.neighbours import auvit
from tests.neighbours.golden import DTYPES, Golden
from tests.ops.support import normal
from tests.tolerances import assert_close

HEADS = ("11", "12", "13", "21", "22", "23", "3")  # the authors' names of the seven patches


def renamed(name: str) -> str:
    """The authors' name of a parameter in our words."""
    if match := re.fullmatch(r"(norm|head)_AU(\d+)\.(\w+)", name):
        return f"au_head.{match[1]}s.{HEADS.index(match[2])}.{match[3]}"
    return re.sub(r"^transformers\.(\d)\.blocks", r"stages.\1", name).replace("pos_embed", "position")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden(dtype: torch.dtype) -> None:
    golden = Golden("auvit", dtype)
    net = auvit.AUViT(nn.Identity(), 8, depth=(1, 1), heads=2, mlp_ratio=2, convolutional_mlp=True)
    golden.load(net, "net_", renamed)
    x = golden.leaf("net_input")
    expressions, units = net.eval()(x)
    golden.close(expressions, "expression_logits")
    golden.close(units, "au_logits")
    ce, au = auvit.two_head_losses(
        expressions, units, golden["expression_labels"][:2], golden["au_labels"][2:], golden["pos_weight"]
    )
    golden.close(ce, "expression_loss")
    golden.close(au, "au_loss")
    golden.close(ce + 0.5 * au, "loss")
    (ce + 0.5 * au).backward()
    golden.close(x.grad, "grad_input")
    golden.gradients_close(net, "grad_", renamed)
    assert golden.unused == set()


def test_plain_blocks_and_one_picture() -> None:
    """The 512-wide form has linear MLPs; a single picture works, where the authors' code breaks."""
    torch.manual_seed(0)
    net = auvit.AUViT(nn.Conv2d(3, 16, 1), 16, 5, depth=(1, 1), heads=2, patches=2)
    expressions, units = net(torch.randn(1, 3, 14, 14))
    assert expressions.shape == (1, 5)
    assert units.shape == (1, 21)
    assert isinstance(net.stages[0][0].mlp[0], nn.Linear)


@pytest.mark.parametrize("patches", [2, 7])
def test_a_unit_sees_its_patches_alone(patches: int) -> None:
    torch.manual_seed(0)
    head = auvit.ActionUnitHead(4, patches).double()
    grid = normal(1, 4, 14, 14).requires_grad_()
    told = head(grid)
    for unit in range(21):
        (gradient,) = torch.autograd.grad(told[0, unit], grid, retain_graph=True)
        seen = gradient.abs().sum((0, 1)) > 0
        allowed = torch.zeros(14, 14, dtype=torch.bool)
        for patch in auvit.PATCHES[patches]:
            if unit in patch.units:
                allowed[patch.rows, patch.columns] = True
        assert not (seen & ~allowed).any(), unit
        assert seen.any()


def test_the_projection_leaves_the_other_head_to_its_own_optimizer() -> None:
    """As the module's docstring says: the trunk gets CE without what raises BCE, the head of units BCE alone."""
    torch.manual_seed(0)
    net = auvit.AUViT(nn.Conv2d(3, 8, 1), 8, depth=(1, 1), heads=2, patches=2).double()
    heads = list(net.au_head.parameters())
    shared = {name: p for name, p in net.named_parameters() if not name.startswith("au_head.")}
    optimizer = pf.ProGradAdamW(list(shared.values()))
    told = net(normal(6, 3, 14, 14))
    ce, au = auvit.two_head_losses(*told, torch.tensor([0, 1, 2]), (normal(3, 21) > 0).double())
    a = torch.autograd.grad(ce, list(shared.values()), retain_graph=True)
    b = torch.autograd.grad(au, list(shared.values()), retain_graph=True, allow_unused=True)
    of_heads = torch.autograd.grad(au, heads, retain_graph=True)
    au.backward(inputs=heads, retain_graph=True)
    optimizer.backward(ce, au)
    conflicts = 0
    for p, x, y in zip(shared.values(), a, b, strict=True):
        y = torch.zeros_like(x) if y is None else y
        inner = (x * y).sum()
        conflicts += bool(inner < 0)
        assert_close(p.grad, x - inner.clamp(max=0) / y.square().sum().clamp(min=1e-300) * y, "formula", torch.float64)
    assert 0 < conflicts < len(shared)
    for p, g in zip(heads, of_heads, strict=True):
        assert torch.equal(p.grad, g)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: auvit.ActionUnitHead(8, 5), ValueError, "patches: expected 2 or 7, got 5"),
        (lambda: auvit.AUViT(nn.Identity(), 10, heads=4), ValueError, "width: expected a multiple of the 4 heads"),
        (
            lambda: auvit.AUViT(nn.Identity(), 8, heads=2)(torch.zeros(2, 8, 7, 7)),
            ValueError,
            r"trunk: expected a map of shape \(2, 8, 14, 14\), got \(2, 8, 7, 7\)",
        ),
        (
            lambda: auvit.two_head_losses(*torch.zeros(2, 4, 21), torch.zeros(4).long(), torch.zeros(1, 21)),
            ValueError,
            "expression_logits: expected a row for each of 4 labels and 1 rows of units",
        ),
        (
            lambda: auvit.two_head_losses(*torch.zeros(2, 2, 21), torch.zeros(1).long(), torch.zeros(1, 20)),
            ValueError,
            r"units: expected a column for each of 21, got \(1, 20\)",
        ),
        (
            lambda: auvit.two_head_losses(torch.zeros(2, 7), torch.zeros(2, 21), torch.zeros(1), torch.zeros(1, 21)),
            TypeError,
            "labels: expected integer class indices",
        ),
    ],
)
def test_wrong_calls(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
