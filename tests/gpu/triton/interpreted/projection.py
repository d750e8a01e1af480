"""Guards Gram entries and projection on Triton, over lists of tensors."""

import math

import pytest
import torch

from tests.gpu.triton.support import SCOPES, draw, expected_entries, expected_projection, ops, prograd, tensors, units
from tests.ops import floors
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close


def gram(a, b, scope, dtype=torch.float32):
    entries = torch.full((len(units(a, scope)), 3), 7.0, dtype=dtype)
    ops.gram_out(a, b, SCOPES[scope], entries=entries)
    return entries


def project(task, general, projected, coefficients=None, scope="tensor", lambda_=1.0, floor=0.0):
    entries = torch.full((len(units(task, scope)), 3), 7.0, dtype=accumulation(task[0].dtype))
    ops.project_out(task, general, coefficients, lambda_, floor, SCOPES[scope], entries=entries, projected=projected)
    return entries


@pytest.mark.parametrize("dtype", [*DTYPES, "mixed"])
@pytest.mark.parametrize("scope", SCOPES)
def test_gram_and_project(shapes, dtype, scope):
    a, b = tensors(shapes, dtype), tensors(shapes, dtype, seed=1)
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    entries = gram(a, b, scope, accumulated)
    expected = expected_entries(a, b, scope)
    assert_close(entries, expected, "formula", accumulated)
    assert torch.equal(entries, gram(a, b, scope, accumulated))

    projected = [torch.full_like(x, math.nan) for x in a]
    assert torch.equal(project(a, b, projected, scope=scope, lambda_=0.7), entries)
    for actual, e, x in zip(projected, expected_projection(a, b, scope, prograd(expected, 0.7)), a, strict=True):
        assert_close(actual, e, "formula", actual.dtype, x)
    in_place = [x.clone() for x in a]
    project(in_place, b, in_place, scope=scope, lambda_=0.7)
    assert all(torch.equal(x, y) for x, y in zip(in_place, projected, strict=True))

    coefficients = draw(len(entries), 2, dtype=accumulated)
    coefficients[::3] = torch.tensor([1.0, 0.0])
    assert (project(a, b, projected, coefficients, scope) == 7).all()
    for actual, e in zip(projected, expected_projection(a, b, scope, coefficients), strict=True):
        assert_close(actual, e, "formula", actual.dtype)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_gradient_is_that_of_the_updates(shapes, scope):
    """The first step starts the momentum with it."""
    a, b = tensors(shapes, torch.float32), tensors(shapes, torch.float32, seed=1)
    projected, params, buffers = ([torch.zeros_like(x) for x in a] for _ in range(3))
    entries = project(a, b, projected, scope=scope, lambda_=0.7)
    of_update = torch.zeros_like(entries)
    ops.project_sgd_(
        params, a, b, buffers, of_update, None, None, 0.1, 0.9, 0.0, 0.0, 0.7, 0.0, SCOPES[scope], False, False, True,
        None,
    )  # fmt: skip
    assert torch.equal(entries, of_update)
    assert all(torch.equal(x, y) for x, y in zip(projected, buffers, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_floor(dtype):
    def projected(around):
        results = [torch.full_like(a, math.nan) for a in around.task]
        project(around.task, around.general, results, None, list(SCOPES)[around.scope], floor=around.floor)
        return results

    for scope in range(3):
        for around in floors.arounds(dtype, scope, [(7,), (3, 11)]):
            floors.check(around, projected)
    for around in floors.extremes() if dtype == torch.float32 else ():
        floors.check(around, projected)


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
        project([a[1]], [b[1]], [view], coefficients[: len(a[1]) if scope == "row" else 1], scope)
        assert_close(view, 2 * a[1] - 0.5 * b[1], "formula", torch.float32)
        assert torch.equal(buffer[1::3], big[1::3])
        assert torch.equal(buffer[::3, ::2], big[::3, ::2])


def test_project_leaves_what_is_not_projected():
    """(1, 0) keeps every bit, NaN and infinities in either gradient included."""
    a, b = torch.tensor([1.0, math.nan, -0.0, math.inf]), torch.tensor([math.nan, math.inf, 1.0, 1.0])
    in_place, result = a.clone(), torch.zeros(4)
    project([in_place], [b], [in_place], torch.tensor([[1.0, 0.0]]))
    project([a], [b], [result], torch.tensor([[1.0, 0.0]]))
    for x in (in_place, result):
        assert torch.equal(x.view(torch.int32), a.view(torch.int32))
    project([a[2:3]], [b[:1]], [a[2:3]], torch.tensor([[3.0, 0.0]]))
    assert a[2] == 0


@pytest.mark.parametrize("bad", [0.0, 1e-30, math.nan, math.inf])  # 1e-30: ‖b‖² vanishes in float32
def test_unusable_general_gradient(bad):
    """A zero, vanishing or non-finite general gradient leaves the task gradient."""
    a, result = draw(9, dtype=torch.float32), torch.zeros(9)
    project([a], [torch.full((9,), -bad) * a.sign()], [result])
    assert torch.equal(result, a)


def test_results_that_share_memory_are_refused():
    x = torch.ones(8)
    with pytest.raises(ValueError, match=r"projected\[0\]: expected memory of its own"):
        project([x[:4]], [torch.ones(4)], [x[2:6]])
