"""Guards attention with a shared prefix on Triton, forward and backward, against its formulas in float64."""

from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch

from prograd_fast.backends.triton_kernels import attention as kernels
from prograd_fast.ops import attention as formulas
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES
from tests.tolerances import assert_close


@dataclass(frozen=True)
class Shape:
    lengths: tuple[int, ...]  # of the segments
    n_prefix: int
    heads: int
    width: int
    n_groups: int = 1
    n_cotangents: int = 2
    leading: bool = False  # the prefix is the first rows


SHAPES = {
    # segments that end within tiles, several programs, the last of them with fewer segments; a prefix of one tile
    "typical": Shape((5, 2, 14, 1, 7, 3, 9), 17, 2, 32),
    # groups, more than two cotangents, heads that are not a power of two wide
    "groups": Shape((3, 1, 6), 5, 2, 24, n_groups=2, n_cotangents=3),
    # a segment over several tiles of queries and of keys, beside short ones; a prefix of two tiles
    "long": Shape((2, 70, 3), 40, 1, 16, n_cotangents=1),
    # nothing but the rows; a head below the least width of a product
    "no prefix": Shape((4, 1, 2), 0, 1, 8),
    # one query, which sees itself alone
    "one row": Shape((1,), 0, 1, 1, n_cotangents=1),
    # the prefix in the same call: several programs, and the one of its rows; groups
    "leading": Shape((5, 2, 14, 1, 7, 3, 9), 17, 2, 32, n_groups=2, leading=True),
    # leading rows over several tiles of queries and of keys, also as the queries of the gradient of a key
    "long, leading": Shape((2, 3), 70, 1, 16, n_cotangents=1, leading=True),
    "one leading row": Shape((4, 1), 1, 1, 8, leading=True),
    # the prefix alone: its rows attend to themselves
    "leading rows alone": Shape((), 17, 2, 16, leading=True),
}


@pytest.fixture(autouse=True)
def several_programs(monkeypatch):
    """The interpreter is slow: several programs from few rows."""
    monkeypatch.setattr(kernels, "PROGRAM_ROWS", 16)


def inputs(shape, last, dtype):
    """(gradient, query, key_value, prefix, leading, offsets, heads, scale, last)."""
    offsets = torch.tensor([0, *accumulate(shape.lengths)])
    leading = shape.n_prefix if shape.leading else 0
    d, n_rows = shape.heads * shape.width, leading + int(offsets[-1])
    n_queries = len(shape.lengths) if last else n_rows
    return (
        draw(shape.n_cotangents, shape.n_groups, n_queries, d, dtype=dtype),
        draw(shape.n_groups, n_queries, d, dtype=dtype, seed=1),
        draw(shape.n_groups, n_rows, 2 * d, dtype=dtype, seed=2),
        None if shape.leading else draw(shape.n_groups, shape.n_prefix, 2 * d, dtype=dtype, seed=3),
        leading, offsets, shape.heads, shape.width**-0.5, last,
    )  # fmt: skip


def run(gradient, query, key_value, prefix, *options):
    """The result, and the gradients of query, key_value and prefix; all written over NaN."""
    out = torch.full_like(query, torch.nan)
    gradients = [
        None if x is None else x.new_full((len(gradient), *x.shape), torch.nan) for x in (query, key_value, prefix)
    ]
    ops.shared_prefix_attention_out(query, key_value, prefix, *options, out=out)
    names = ("d_query", "d_key_value", "d_prefix")
    ops.shared_prefix_attention_backward_out(
        gradient, query, key_value, prefix, *options, **dict(zip(names, gradients, strict=True))
    )
    return [out, *gradients]


def check(results, gradient, query, key_value, prefix, *options, terms=1e-2):
    """Compare with the formulas; ds is a difference, and may be 0 where its terms are of magnitude `terms`."""
    dtype = query.dtype
    kind = "16-bit products" if query.element_size() == 2 else "formula"
    exact = [None if x is None else x.double() for x in (gradient, query, key_value, prefix)]
    assert_close(results[0], formulas.shared_prefix_attention(*exact[1:], *options), kind, dtype)
    for actual, expected in zip(results[1:], formulas.shared_prefix_attention_backward(*exact, *options), strict=True):
        if expected is None:
            assert actual is None
        else:
            assert_close(actual, expected, kind, dtype, scale=expected.abs().clamp(min=terms))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"), [("groups", dtype) for dtype in DTYPES] + [(s, torch.float32) for s in SHAPES if s != "groups"]
)
def test_attention(shape, dtype, last):
    arguments = inputs(SHAPES[shape], last, dtype)
    check(run(*arguments), *arguments)


def test_columns_of_one_product():
    """Queries, keys and values side by side in one matrix, a prefix that all groups share, and gradients likewise."""
    shape = SHAPES["groups"]
    gradient, _, key_value, _, *options = inputs(shape, False, torch.float32)
    d, n_rows = shape.heads * shape.width, key_value.shape[1]
    product = draw(shape.n_groups, n_rows + 2, 3 * d, dtype=torch.float32)
    query, key_value = product[:, 1:-1].split([d, 2 * d], -1)
    prefix = draw(shape.n_prefix, 3 * d, dtype=torch.float32)[None, :, d:].expand(shape.n_groups, -1, -1)
    d_product = torch.full((shape.n_groups, shape.n_cotangents, n_rows + 2, 3 * d), 7.0)
    d_query, d_key_value = d_product.transpose(0, 1)[:, :, 1:-1].split([d, 2 * d], -1)
    d_all_prefix = torch.full((shape.n_cotangents, shape.n_groups, shape.n_prefix, 3 * d), 7.0)
    all_out = torch.full((shape.n_groups, n_rows, 2 * d), 7.0)

    ops.shared_prefix_attention_out(query, key_value, prefix, *options, out=all_out[..., d:])
    ops.shared_prefix_attention_backward_out(
        gradient.transpose(0, 1).contiguous().transpose(0, 1), query, key_value, prefix, *options,
        d_query=d_query, d_key_value=d_key_value, d_prefix=d_all_prefix[..., d:],
    )  # fmt: skip
    check([all_out[..., d:], d_query, d_key_value, d_all_prefix[..., d:]], gradient, query, key_value, prefix, *options)
    for untouched in (all_out[..., :d], d_all_prefix[..., :d], d_product[:, :, :1], d_product[:, :, -1:]):
        assert (untouched == 7).all()


@pytest.mark.parametrize("last", [False, True])
def test_scores_beyond_the_range_of_exp(last):
    """Whole numbers, so that float32 holds the scores exactly: up to thousands, where exp is 0 or infinite."""
    gradient, *matrices, leading, offsets, heads, _, _ = inputs(SHAPES["groups"], last, torch.float32)
    arguments = (gradient, *((8 * x).round() for x in matrices), leading, offsets, heads, 1.0, last)
    results = run(*arguments)
    check(results, *arguments, terms=8 * 8 * SHAPES["groups"].width ** 0.5)  # of e, times a key


def test_attention_of_no_segments():
    """The prefix has a gradient of zero."""
    gradient, query, key_value, prefix, *options = inputs(SHAPES["groups"], False, torch.float32)
    options[1] = torch.zeros(1, dtype=torch.int64)
    *_, d_prefix = run(gradient[:, :, :0], query[:, :0], key_value[:, :0], prefix, *options)
    assert torch.equal(d_prefix, torch.zeros_like(d_prefix))


@pytest.mark.parametrize("last", [False, True])
def test_leading_rows_are_a_prefix(last):
    """The same numbers, bit for bit, as with the same rows as a prefix of another pass; without a copy of them."""
    shape = SHAPES["leading"]
    gradient, query, key_value, _, leading, *options = inputs(shape, last, torch.float32)
    rows = slice(None) if last else slice(leading, None)
    out, d_query, d_key_value, _ = run(gradient, query, key_value, None, leading, *options)
    apart = run(gradient[:, :, rows], query[:, rows], key_value[:, leading:], key_value[:, :leading], 0, *options)
    assert torch.equal(out[:, rows], apart[0])
    assert torch.equal(d_query[:, :, rows], apart[1])
    assert torch.equal(d_key_value[:, :, leading:], apart[2])
    if last:  # else the leading rows' own queries come on top
        assert torch.equal(d_key_value[:, :, :leading], apart[3])
