"""Guards Gram entries and projection on Triton, over lists of tensors."""

import math

import pytest
import torch

from tests.gpu.triton.support import SCOPES, draw, expected_entries, expected_projection, ops, tensors, units
from tests.ops.support import DTYPES
from tests.tolerances import assert_close


def gram(a, b, scope, dtype=torch.float32):
    entries = torch.full((len(units(a, scope)), 3), 7.0, dtype=dtype)
    ops.gram_out(a, b, SCOPES[scope], entries=entries)
    return entries


@pytest.mark.parametrize("dtype", [*DTYPES, "mixed"])
@pytest.mark.parametrize("scope", SCOPES)
def test_gram_and_project(shapes, dtype, scope):
    a, b = tensors(shapes, dtype), tensors(shapes, dtype, seed=1)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    entries = gram(a, b, scope, accumulated)
    assert_close(entries, expected_entries(a, b, scope), "formula", accumulated)
    assert torch.equal(entries, gram(a, b, scope, accumulated))

    coefficients = draw(len(entries), 2, dtype=accumulated)
    coefficients[::3] = torch.tensor([1.0, 0.0])
    projected = [x.clone() for x in a]
    ops.project_(projected, b, coefficients, SCOPES[scope])
    for actual, e in zip(projected, expected_projection(a, b, scope, coefficients), strict=True):
        assert_close(actual, e, "formula", actual.dtype)


def test_views():
    """Transposed, expanded and unaligned views of bigger buffers give the numbers of contiguous copies."""
    big = draw(12, 30, dtype=torch.float32)
    a = [big.t()[3:9], big[::3, 1::2], big.flatten()[1:300].reshape(13, 23), big[:1]]
    b = [draw(*x.shape, dtype=torch.float32, seed=1) for x in a[:-1]] + [torch.ones(1).expand(1, 30)]
    for scope in SCOPES:
        entries = gram([x.contiguous() for x in a], [x.contiguous() for x in b], scope)
        assert_close(gram(a, b, scope), entries, "formula", torch.float32)
        coefficients = torch.tensor([[2.0, -0.5]]).repeat(len(entries), 1)
        buffer = big.clone()
        view = buffer[::3, 1::2]
        ops.project_([view], [b[1]], coefficients[: len(a[1]) if scope == "row" else 1], SCOPES[scope])
        assert_close(view, 2 * a[1] - 0.5 * b[1], "formula", torch.float32)
        assert torch.equal(buffer[1::3], big[1::3])
        assert torch.equal(buffer[::3, ::2], big[::3, ::2])


def test_project_leaves_what_is_not_projected():
    """(1, 0) keeps every bit, NaN and infinities in either gradient included."""
    a, b = torch.tensor([1.0, math.nan, -0.0, math.inf]), torch.tensor([math.nan, math.inf, 1.0, 1.0])
    before = a.view(torch.int32).clone()
    ops.project_([a], [b], torch.tensor([[1.0, 0.0]]), 0)
    assert torch.equal(a.view(torch.int32), before)
    ops.project_([a[2:3]], [b[:1]], torch.tensor([[3.0, 0.0]]), 0)
    assert a[2] == 0
