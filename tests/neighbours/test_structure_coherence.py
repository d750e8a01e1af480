"""Structure coherence: graphs, both graph networks and both losses against the authors' code, and its traps."""

import re

import pytest
import torch
from torch import Tensor

from prograd_fast.neighbours import structure_coherence as sc
from tests.neighbours.golden import DTYPES, Golden
from tests.ops.support import normal
from tests.tolerances import assert_close


def renamed(name: str) -> str:
    """The authors' name of a parameter in our words."""
    rules = (
        (r"^relation_learner\.fc", "layers"),
        (r"^(gconv_input\.0|g_input)", "first"),
        (r"^(gconv|g)_layers", "pairs"),
        (r"\.(gconv|g_block)1\.", ".0."),
        (r"\.(gconv|g_block)2\.", ".1."),
        (r"^(gconv_output|g_out)", "last"),
        (r"\.(gconv|g_conv)\.", ".conv."),
        (r"\.bn\.", ".norm."),
    )
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    return name


def dense(edges: Tensor, n: int, values: Tensor | float = 1.0) -> Tensor:
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix[edges[0], edges[1]] = values
    return matrix


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden(dtype: torch.dtype) -> None:
    """Every array of the file: the 29-point static graph, the 98-point dynamic one, both losses, all gradients."""
    golden = Golden("structure_coherence", dtype)

    edges = sc.with_loops_both_ways(golden["edges"].long().T)
    shares = 1 / torch.bincount(edges[0]).double()[edges[0]]
    assert_close(dense(edges, 29, shares), golden["adjacency"], "formula", torch.float32)
    net = sc.GraphNet(6, edges, 5, 1)
    golden.load(net, "static_", renamed)
    for mode in ("eval", "train"):
        net.train(mode == "train")
        x = golden.leaf("static_input")
        y = net(x)
        golden.close(y, f"static_{mode}_output")
        net.zero_grad()
        y.backward(golden["static_cotangent"])
        golden.close(x.grad, f"static_{mode}_grad_input")
        golden.gradients_close(net, f"static_{mode}_grad_", renamed)

    nearest = golden["edges98_top3"].long().T
    edges = sc.with_loops_both_ways(nearest)
    assert torch.equal(dense(edges, 98), golden["adjacency98_top3"].double())
    net, learner = sc.GraphNet(4, edges, 3, 1, dynamic=True), sc.EdgeLogits(6, 470)
    golden.load(net, "dyn_", renamed)
    golden.load(learner, "dyn_", renamed)
    feature, x = golden.leaf("dyn_feature"), golden.leaf("dyn_input")
    logits = learner.eval()(feature)
    y = net.eval()(x, logits)
    golden.close(logits, "dyn_edge_logits")
    golden.close(y, "dyn_output")
    y.backward(golden["dyn_cotangent"])
    golden.close(feature.grad, "dyn_grad_feature")
    golden.close(x.grad, "dyn_grad_input")
    golden.gradients_close(net, "dyn_grad_", renamed)
    golden.gradients_close(learner, "dyn_grad_", renamed)

    target = golden["loss_target"].view(3, 98, 2)
    for i, settings in enumerate(golden.recipe["dynamic"]["wing"]):
        for name, k in (("task", 0), ("laplacian", 1)):
            x = golden.leaf("loss_prediction")
            loss = sc.structure_loss(x.view(3, 98, 2), target, nearest, settings["curvature"])[k]
            golden.close(loss, f"loss{i}_{name}")
            golden.close(torch.autograd.grad(loss, x)[0], f"loss{i}_grad_{name}")
    unit = torch.eye(98, dtype=dtype)[..., None].expand(98, 98, 2)
    matrix = sc.offsets(unit, nearest)[..., 0].T  # column n is L times the unit vector n
    golden.close(torch.stack([matrix.diagonal(), matrix.sum(1)]), "laplacian_diagonal_and_row_sums")
    assert golden.unused == set()
