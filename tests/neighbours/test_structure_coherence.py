"""Structure coherence: graphs, both graph networks and both losses against the authors' code, and its traps."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prograd_fast.functional import soft_wing
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


def test_graph_of_points() -> None:
    """Points that move together are neighbours, in either direction and however far; a point at rest is nobody's."""
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 50, 1, 2, generator=g)
    noise = 0.01 * torch.randn(50, 6, 2, generator=g)
    points = torch.cat([first, 3 - 2 * first, first + 9, second, -second, 5 * second], 1) + noise
    points = torch.cat([points, torch.ones(50, 1, 2)], 1)
    rows, columns = sc.graph_from_points(points, 2)
    assert rows.tolist() == [n for n in range(7) for _ in range(2)]
    assert columns[:12].tolist() == [1, 2, 0, 2, 0, 1, 4, 5, 3, 5, 3, 4]
    assert not (rows == columns).any()


def test_convolution_is_dense_attention_with_two_matrices() -> None:
    edges = sc.with_loops_both_ways(torch.tensor([[0, 1], [1, 2]]))
    assert edges.tolist() == [[0, 0, 1, 1, 1, 2, 2], [0, 1, 0, 1, 2, 1, 2]]
    x, weight, bias = normal(2, 3, 4), normal(2, 4, 5, seed=1), normal(5, seed=2)
    logits = normal(2, 7, seed=3)
    own, other = (x[..., None, :] @ w for w in weight)
    for transposed in (False, True):
        y = sc.edge_softmax_conv(x, weight, bias, logits, edges, transposed)
        for b in range(2):
            share = dense(edges, 3, logits[b].exp())
            share = share / share.sum(1, keepdim=True)
            share = share.T if transposed else share
            for i in range(3):
                parts = [share[i, j] * (own if i == j else other)[b, j, 0] for j in range(3)]
                assert_close(y[b, i], sum(parts) + bias, "formula", torch.float64)


def test_landmarks_from_a_map() -> None:
    """Each landmark owns its channels of the map, and every parameter learns."""
    torch.manual_seed(0)
    edges = sc.graph_from_points(normal(9, 5, 2), 2)
    both = sc.with_loops_both_ways(edges)
    to_nodes, logits = sc.MapToNode(6, 5, 2, 7), sc.EdgeLogits(6, both.shape[1])
    nets = sc.GraphNet(2 * 3 * 4, both, 8, 1), sc.GraphNet(2 * 3 * 4, both, 8, 1, dynamic=True)
    feature_map = torch.randn(4, 6, 3, 4)
    nodes = to_nodes(feature_map)
    assert torch.equal(nodes[:, 1].reshape(4, 2, 3, 4), to_nodes.layers(feature_map)[:, 2:4])
    points = nets[0](nodes), nets[1](nodes, logits(feature_map))
    target = torch.randn(4, 5, 2)
    sum(loss for p in points for loss in sc.structure_loss(p, target, edges)).backward()
    for module in (to_nodes, logits, *nets):
        for name, p in module.named_parameters():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name


def test_reductions_and_measures() -> None:
    edges = sc.graph_from_points(normal(9, 5, 2), 2)
    x, t = 5 * normal(3, 5, 2), normal(3, 5, 2, seed=1)
    mean, batch = (torch.stack(sc.structure_loss(x, t, edges, reduction=r)) for r in ("mean", "batchmean"))
    assert_close(batch, 10 * mean, "formula", torch.float64)
    assert_close(batch[0], soft_wing(x, t), "formula", torch.float64)
    moved = sc.structure_loss(x + 3, x, edges)[1]
    assert moved < 1e-5  # offsets do not see a shift
    assert_close(sc.nme(x, t, torch.tensor([1.0, 2.0, 4.0]))[2], (x - t)[2].norm(dim=1).mean() / 4, "formula", t.dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sc.graph_from_points(torch.zeros(1, 5, 2)), r"points: expected shape \(pictures > 1, landmarks, 2\)"),
        (lambda: sc.graph_from_points(torch.zeros(4, 3, 2), 3), r"k: expected 1 \.\.\. 2 neighbours among 3 landmarks"),
        (lambda: sc.GraphNet(4, torch.tensor([[0, 1], [1, 0]])), "edges: expected a loop at each of 2 landmarks"),
        (lambda: sc.GraphNet(4, torch.zeros(3, 2)), r"edges: expected integers \(2, edges\), got torch.float32"),
        (
            lambda: sc.GraphNet(4, torch.zeros(2, 1).long(), dynamic=True)(torch.zeros(1, 1, 4)),
            r"logits: expected \(B, E\)",
        ),
        (
            lambda: sc.GraphNet(4, torch.zeros(2, 1).long())(torch.zeros(1, 1, 4), torch.zeros(1, 1)),
            "logits: expected None, since the graph has logits of its own",
        ),
        (
            lambda: sc.GraphNet(4, torch.zeros(2, 1).long())(torch.zeros(1, 2, 4)),
            r"x: expected \(B, 1 landmarks of the graph, I\), got \(1, 2, 4\)",
        ),
        (
            lambda: sc.nme(torch.zeros(2, 3, 2), torch.zeros(1, 3, 2), torch.ones(2)),
            r"\(2, 3, 2\), \(1, 3, 2\), \(2,\)",
        ),
        (lambda: sc.structure_loss(torch.zeros(2, 3), torch.zeros(2, 3), EDGE), "prediction: expected shape"),
        (
            lambda: sc.structure_loss(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), EDGE),
            "edges: expected a neighbour for each of 3 landmarks, got none for landmark 2. Use graph_from_points",
        ),
        (lambda: sc.offsets(torch.zeros(1, 3, 2), EDGE), "edges: expected a neighbour for each of 3 landmarks"),
        (lambda: sc.offsets(torch.zeros(1, 2, 2), torch.zeros(3, 2)), r"edges: expected shape \(2, edges\)"),
        (
            lambda: sc.structure_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), EDGE, reduction="sum"),
            "reduction: expected 'mean' or 'batchmean', got 'sum'",
        ),
    ],
)
def test_wrong_calls(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


EDGE = torch.tensor([[0, 1], [1, 0]])
