"""AU-ViT: both heads, both losses and all gradients against the authors' code, and its traps."""

import re

import pytest
import torch
from torch import nn

from prograd_fast.neighbours import auvit
from tests.neighbours.golden import DTYPES, Golden
from tests.ops.support import normal

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
