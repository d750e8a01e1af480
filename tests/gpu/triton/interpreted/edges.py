"""Guards the sums along edges on Triton, forward and backward, against the formula in float64."""

import math

import pytest
import torch

from prograd_fast import functional
from prograd_fast.ops.edges import edge_softmax_sum_formula
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES
from tests.ops.test_edges import graph
from tests.tolerances import assert_close

# batch, nodes, further edges, width
CASES = {
    "two blocks of features": (1, 3, 3, 1030),
    "two blocks of rows": (1, 33, 2, 1),
    "more samples than are added at a time": (35, 2, 2, 3),
    "one node without an edge": (2, 1, 0, 3),
    "nothing": (0, 4, 3, 5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared", [True, False], ids=["one graph", "a graph for each"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_softmax_sum(dtype, shared, case):
    batch, nodes, more, width = CASES[case]
    rows, columns = graph(nodes, more)
    shapes = (batch, nodes, width), (batch, nodes, width), (len(rows),) if shared else (batch, len(rows))
    inputs = [draw(*shape, dtype=dtype, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    cotangent = draw(batch, nodes, width, seed=7)
    for transposed in (False, True):
        y = functional.edge_softmax_sum(*inputs, rows, columns, transposed)
        expected = edge_softmax_sum_formula(*wide, rows, columns, transposed)
        assert_close(y, expected, "formula", dtype)
        gradients = torch.autograd.grad(y, inputs, cotangent.to(dtype))
        for ours, theirs in zip(gradients, torch.autograd.grad(expected, wide, cotangent), strict=True):
            assert_close(ours, theirs, "formula", dtype)


def test_large_and_excluded_logits_and_wrong_ends():
    """A softmax that would overflow; an edge of no weight; edges to no node, which a GPU cannot refuse, bring NaN."""
    rows, columns = graph(5, 6)
    own, other, logits = draw(2, 5, 4), draw(2, 5, 4, seed=1), 300 * draw(len(rows), seed=2)
    logits[3] = -math.inf
    y = functional.edge_softmax_sum(own, other, logits, rows, columns)
    assert_close(y, edge_softmax_sum_formula(own, other, logits, rows, columns), "formula", torch.float64)
    columns[0], rows[1] = 5, -1
    for transposed in (False, True):
        y = functional.edge_softmax_sum(own, other, logits, rows, columns, transposed)
        receiver = columns[1] if transposed else rows[0]
        assert y[:, receiver].isnan().all()
        assert y.isfinite().any()
        gradients = ops.edge_softmax_sum_backward(y.nan_to_num(), own, other, logits, rows, columns, transposed)
        assert gradients[2][[0, 1]].isnan().all()
        assert gradients[2].isfinite().any()
