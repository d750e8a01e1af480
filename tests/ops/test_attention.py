"""Guards attention with a shared prefix on every backend: against the float64 formula, naive loops and autograd."""

import itertools
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import attention as formulas
from tests.ops.support import BACKENDS, DTYPES, normal, running_on, scale_of, threads
from tests.tolerances import assert_close

operators = torch.ops.prograd_fast
SENTINEL = 77.0  # in memory that no operator may touch


class Case(NamedTuple):
    """Arguments of attention, as views of the result of one matrix product."""

    query: Tensor
    key_value: Tensor
    prefix: Tensor | None
    leading: int
    offsets: Tensor
    heads: int
    scale: float
    last: bool

    def to(self, dtype: torch.dtype) -> "Case":
        prefix = None if self.prefix is None else self.prefix.to(dtype)
        return self._replace(query=self.query.to(dtype), key_value=self.key_value.to(dtype), prefix=prefix)

    def double(self) -> "Case":
        return self.to(torch.float64)


def case(
    lengths: list[int], dtype: torch.dtype, groups: int = 1, prefix: int = 17, d: int = 64, heads: int = 1,
    last: bool = False, leading: bool = False,
) -> Case:  # fmt: skip
    """Attention to a prefix of another pass, or one of `leading` rows of this pass."""
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    n_leading = prefix if leading else 0
    packed = normal(groups, n_leading + int(offsets[-1]), 3 * d, seed=1).to(dtype)
    query, key_value = packed.split([d, 2 * d], -1)
    if last:
        query = normal(groups, len(lengths), d, seed=2).to(dtype)
    shared = None if leading else normal(groups, prefix, 2 * d, seed=3).to(dtype)
    return Case(query, key_value, shared, n_leading, offsets, heads, (heads / d) ** 0.5, last)


def forward(given: Case) -> Tensor:
    """Into a view of a larger tensor, whose other columns stay as they are."""
    groups, rows, d = given.query.shape
    buffer = torch.full((groups, rows, d + 5), SENTINEL, dtype=given.query.dtype)
    operators.shared_prefix_attention_out(*given, out=buffer[..., 2 : d + 2])
    assert (buffer[..., :2] == SENTINEL).all()
    assert (buffer[..., d + 2 :] == SENTINEL).all()
    return buffer[..., 2 : d + 2]


def backward(gradient: Tensor, given: Case) -> tuple[Tensor, ...]:
    """Into views of one tensor as the matrix products want it. Without a prefix of another pass, it has no gradient."""
    count, d = gradient.shape[0], gradient.shape[-1]
    like = {"dtype": gradient.dtype}
    packed = torch.full((count, *given.key_value.shape[:2], 3 * d + 1), SENTINEL, **like)
    d_query, d_key_value = packed[..., :d], packed[..., d : 3 * d]
    if given.last:
        d_query = torch.full(gradient.shape, SENTINEL, **like)
    d_prefix = None if given.prefix is None else torch.full((count, *given.prefix.shape), SENTINEL, **like)
    operators.shared_prefix_attention_backward_out(
        gradient, *given, d_query=d_query, d_key_value=d_key_value, d_prefix=d_prefix
    )
    assert (packed[..., 3 * d :] == SENTINEL).all()
    return (d_query, d_key_value) if d_prefix is None else (d_query, d_key_value, d_prefix)


def naive(query: Tensor, key_value: Tensor, prefix: Tensor | None, given: Case) -> Tensor:
    """One query, one head at a time, differentiable."""
    d, leading = query.shape[-1], given.leading
    bounds = [leading + offset for offset in given.offsets.tolist()]
    segments = [(begin, end - 1 if given.last else begin, end) for begin, end in itertools.pairwise(bounds)]
    rows = []
    for g in range(query.shape[0]):
        shared = key_value[g, :leading] if prefix is None else prefix[g]
        seen = [] if given.last else [key_value[g, : row + 1] for row in range(leading)]
        for begin, first, end in segments:
            seen += [torch.cat([shared, key_value[g, begin : row + 1]]) for row in range(first, end)]
        for q, keys in zip(query[g], seen, strict=True):
            for columns in torch.arange(d).chunk(given.heads):
                weights = torch.softmax(given.scale * keys[:, columns] @ q[columns], 0)
                rows.append(weights @ keys[:, d + columns])
    return torch.cat(rows).view_as(query) if rows else torch.empty_like(query)


# What each shape is for: CLIP's head of 64, BOS and 16 context tokens; heads that fill no register, and no prefix; a
# prefix of several registers, a head of several; one row; more rows than a block or a task takes, one longer segment;
# a prefix of exactly one register
SHAPES = {
    "clip": {"lengths": [2, 3, 14, 1, 5], "heads": 8, "d": 512},
    "no prefix": {"lengths": [4, 77, 1, 9], "prefix": 0, "heads": 3, "d": 30, "groups": 3},
    "long prefix": {"lengths": [3, 4], "prefix": 40, "heads": 2, "d": 160, "groups": 2},
    "one row": {"lengths": [1], "prefix": 0, "heads": 2, "d": 2},
    "many": {"lengths": [*range(1, 15)] * 4 + [70, 2], "prefix": 5, "heads": 2, "d": 16},
    "register": {"lengths": [16, 32, 15, 17], "prefix": 16, "heads": 1, "d": 16},
}


of_last_rows = pytest.mark.parametrize("last", [False, True], ids=["all", "last"])
of_leading_rows = pytest.mark.parametrize("leading", [False, True], ids=["given", "leading"])


def wanted_gradients(gradient: Tensor, given: Case) -> list[Tensor]:
    """The float64 formula's, without the prefix's where it has none."""
    results = formulas.shared_prefix_attention_backward(gradient.double(), *given.double())
    return [result for result in results if result is not None]


@of_leading_rows
@of_last_rows
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention(backend: str, dtype: torch.dtype, shape: str, last: bool, leading: bool) -> None:
    given = case(**SHAPES[shape], dtype=dtype, last=last, leading=leading)
    gradient = normal(2, *given.query.shape, seed=4).to(dtype)
    with running_on(backend):
        out = forward(given)
        gradients = backward(gradient, given)
    assert_close(out, formulas.shared_prefix_attention(*given.double()), "formula", dtype)
    wanted = wanted_gradients(gradient, given)
    for got, want in zip(gradients, wanted, strict=True):  # of one row without a prefix, those of query and key are 0
        assert_close(got, want, "formula", dtype, scale_of(*wanted))


@of_leading_rows
@of_last_rows
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("lengths", [[2, 1, 5, 3], []], ids=["segments", "prefix alone"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_what_a_loop_computes_and_autograd_derives(
    backend: str, lengths: list[int], prefix: int, last: bool, leading: bool
) -> None:
    given = case(lengths, torch.float64, groups=2, prefix=prefix, d=12, heads=3, last=last, leading=leading)
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in given[:3]]
    query, key_value, shared = leaves
    wanted = naive(query, key_value, shared, given)
    gradient = normal(3, *given.query.shape, seed=4)
    with running_on(backend):
        assert_close(forward(given), wanted, "formula", torch.float64)
        gradients = backward(gradient, given)
    inputs = [x for x in leaves if x is not None]
    for k in range(3):
        by_autograd = (
            torch.autograd.grad(wanted, inputs, gradient[k], retain_graph=True, materialize_grads=True)
            if wanted.requires_grad
            else [torch.zeros_like(x) for x in inputs]  # nobody asks, nothing depends on the keys
        )
        for got, want in zip(gradients, by_autograd, strict=True):
            assert_close(got[k], want, "formula", torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_of_extreme_scores(backend: str, dtype: torch.dtype) -> None:
    # scores up to ±1e4 in a row: exp overflows unless the largest is taken off first, and most weights vanish. They are
    # whole numbers, which every dtype has exactly: rounded scores of 1e4 would leave few digits to the weights
    given = case([2, 14, 5], torch.float64, heads=2, d=128)
    given.query.mul_(4).round_()
    given.key_value[..., :128].mul_(4).round_()
    assert given.prefix is not None
    given.prefix[..., :128].mul_(4).round_()
    given = given._replace(scale=25.0)
    assert (given.scale * given.query[0, :, :64] @ given.prefix[0, :, :64].T).abs().max() > 1e4
    gradient = normal(2, *given.query.shape, seed=4).to(dtype)
    rounded = given.to(dtype)
    with running_on(backend):
        out, gradients = forward(rounded), backward(gradient, rounded)
    assert_close(out, formulas.shared_prefix_attention(*rounded.double()), "formula", dtype)
    expected = wanted_gradients(gradient, rounded)
    for got, want in zip(gradients, expected, strict=True):  # where one weight is all, only the values have a gradient
        assert_close(got, want, "formula", dtype, scale_of(*expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_without_segments_or_groups(backend: str) -> None:
    for lengths, groups in (([], 2), ([2, 3], 0)):
        given = case(lengths, torch.float32, groups=groups, prefix=3, d=8, heads=2)
        with running_on(backend):
            assert forward(given).shape == (groups, sum(lengths), 8)
            gradients = backward(normal(2, *given.query.shape).float(), given)
        assert [len(part.flatten()) for part in gradients[:2]] == [0, 0]
        assert (gradients[2] == 0).all()  # nobody sees the prefix


@of_leading_rows
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_through_any_strides_of_rows_and_groups(backend: str, leading: bool) -> None:
    given = case([2, 3, 6], torch.float32, groups=2, prefix=4, d=8, heads=2, leading=leading)
    rows = given.query.shape[1]
    wanted = formulas.shared_prefix_attention(*given)
    swapped = given._replace(  # (T, G, d) in memory; every second row
        query=given.query.transpose(0, 1).contiguous().transpose(0, 1),
        key_value=given.key_value.repeat_interleave(2, 1)[:, ::2],
        prefix=None if given.prefix is None else given.prefix.transpose(0, 1).contiguous().transpose(0, 1),
    )
    gradient = normal(2, *given.query.shape, seed=4).float()
    with running_on(backend):
        assert_close(forward(swapped), wanted, "formula", torch.float32)
        d_prefix = None if leading else torch.empty(4, 2, 2, 16).permute(2, 1, 0, 3)
        d_query, d_key_value = torch.empty(rows, 2, 2, 8).permute(2, 1, 0, 3), torch.empty(2, 2, rows, 16)
        strided = gradient.repeat_interleave(3, 2)[:, :, ::3]
        operators.shared_prefix_attention_backward_out(
            strided, *swapped, d_query=d_query, d_key_value=d_key_value, d_prefix=d_prefix
        )
    expected = formulas.shared_prefix_attention_backward(gradient, *given)
    for got, want in zip((d_query, d_key_value, d_prefix), expected, strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            assert_close(got, want, "formula", torch.float32)


@of_leading_rows
def test_attention_on_any_number_of_threads_gives_the_same_bits(leading: bool) -> None:
    # enough segments for several tasks of each head, and for prefix gradients that are sums over tasks
    given = case([*range(1, 15)] * 12, torch.float32, groups=2, heads=4, d=128, leading=leading)
    gradient = normal(2, *given.query.shape, seed=4).float()
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append((forward(given), *backward(gradient, given)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([0, 2, 4], "offsets: expected 0 ... 5"), ([0, 0, 5], "no empty segment"), ([1, 2, 5], "expected 0")],
)
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_that_lead_outside_are_refused(backend: str, back: bool, lengths: list[int], message: str) -> None:
    given = case([2, 3], torch.float32, prefix=2, d=8, heads=2)._replace(offsets=torch.tensor(lengths))
    call = partial(backward, normal(2, 1, 5, 8).float()) if back else forward
    with running_on(backend), pytest.raises(ValueError, match=message):
        call(given)


@of_last_rows
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prefix_of_leading_rows_is_one_of_another_pass(backend: str, last: bool) -> None:
    # the same rows in one call and in two, in float32 bit for bit: a tower may be cut into chunks or not
    whole = case([2, 3, 6], torch.float32, groups=2, prefix=4, d=8, heads=2, last=last, leading=True)
    first = 0 if last else 4
    behind = whole._replace(
        query=whole.query[:, first:], key_value=whole.key_value[:, 4:], prefix=whole.key_value[:, :4], leading=0
    )
    gradient = normal(2, *whole.query.shape, seed=4).float()
    with running_on(backend):
        out, (d_query, d_key_value) = forward(whole), backward(gradient, whole)
        assert torch.equal(out[:, first:], forward(behind))
        behind_query, behind_key_value, d_prefix = backward(gradient[:, :, first:], behind)
        assert torch.equal(d_query[:, :, first:], behind_query)
        assert torch.equal(d_key_value[:, :, 4:], behind_key_value)
        if not last:
            alone = whole._replace(
                query=whole.query[:, :4], key_value=whole.key_value[:, :4], offsets=whole.offsets[:1]
            )
            assert torch.equal(out[:, :4], forward(alone))
            of_queries, of_keys = backward(gradient[:, :, :4], alone)
            assert torch.equal(d_query[:, :, :4], of_queries)
            d_prefix = of_keys + d_prefix
        assert torch.equal(d_key_value[:, :, :4], d_prefix)


@pytest.mark.parametrize("leading", [-1, 6, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_rows_that_are_not_there_are_refused(backend: str, leading: int) -> None:
    # fewer than none, more than all, and any beside a prefix of another pass
    given = case([2, 3], torch.float32, prefix=2, d=8, heads=2)._replace(leading=leading)
    if leading != 2:
        given = given._replace(prefix=None)
    with running_on(backend), pytest.raises(ValueError, match=r"leading: expected 0 \.\.\. "):
        forward(given)


@of_leading_rows
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prefix_has_a_gradient_where_there_is_one(backend: str, leading: bool) -> None:
    given = case([2, 3], torch.float32, prefix=2, d=8, heads=2, leading=leading)
    gradient = normal(1, *given.query.shape).float()
    results = {"d_query": torch.empty_like(gradient), "d_key_value": gradient.new_empty(1, *given.key_value.shape)}
    d_prefix = gradient.new_empty(1, 1, 2, 16) if leading else None
    with running_on(backend), pytest.raises(ValueError, match=r"d_prefix: expected (None|a tensor) as for prefix"):
        operators.shared_prefix_attention_backward_out(gradient, *given, **results, d_prefix=d_prefix)
