"""The operators of the prompt encoder on every backend: against the float64 reference, PyTorch and naive loops."""

import itertools
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.reference import transformer as reference
from tests.ops.support import BACKENDS, DTYPES, accumulation, normal, running_on, threads
from tests.tolerances import assert_close

operators = torch.ops.prograd_fast
APPROXIMATIONS = list(enumerate(reference.APPROXIMATIONS))
SENTINEL = 77.0  # in memory that no operator may touch


# ---- attention


class Case(NamedTuple):
    """Arguments of attention, as views of the result of one matrix product."""

    query: Tensor
    key_value: Tensor
    prefix: Tensor
    offsets: Tensor
    heads: int
    scale: float
    last: bool

    def to(self, dtype: torch.dtype) -> "Case":
        query, key_value, prefix = (x.to(dtype) for x in self[:3])
        return self._replace(query=query, key_value=key_value, prefix=prefix)

    def double(self) -> "Case":
        return self.to(torch.float64)


def case(
    lengths: list[int], dtype: torch.dtype, groups: int = 1, prefix: int = 17, d: int = 64, heads: int = 1,
    last: bool = False,
) -> Case:  # fmt: skip
    offsets = torch.tensor([0, *itertools.accumulate(lengths)])
    packed = normal(groups, int(offsets[-1]), 3 * d, seed=1).to(dtype)
    query, key_value = packed.split([d, 2 * d], -1)
    if last:
        query = normal(groups, len(lengths), d, seed=2).to(dtype)
    shared = normal(groups, prefix, 2 * d, seed=3).to(dtype)
    return Case(query, key_value, shared, offsets, heads, (heads / d) ** 0.5, last)


def scale_of(*terms: Tensor) -> Tensor:
    """What sums and differences of these are measured against."""
    return torch.cat([term.detach().flatten() for term in terms])


def forward(given: Case) -> Tensor:
    """Into a view of a larger tensor, whose other columns stay as they are."""
    groups, rows, d = given.query.shape
    buffer = torch.full((groups, rows, d + 5), SENTINEL, dtype=given.query.dtype)
    operators.shared_prefix_attention_out(*given, out=buffer[..., 2 : d + 2])
    assert (buffer[..., :2] == SENTINEL).all()
    assert (buffer[..., d + 2 :] == SENTINEL).all()
    return buffer[..., 2 : d + 2]


def backward(gradient: Tensor, given: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Into views of one tensor as the matrix products want it."""
    count, d = gradient.shape[0], gradient.shape[-1]
    like = {"dtype": gradient.dtype}
    packed = torch.full((count, *given.key_value.shape[:2], 3 * d + 1), SENTINEL, **like)
    d_query, d_key_value = packed[..., :d], packed[..., d : 3 * d]
    if given.last:
        d_query = torch.full(gradient.shape, SENTINEL, **like)
    d_prefix = torch.full((count, *given.prefix.shape), SENTINEL, **like)
    operators.shared_prefix_attention_backward_out(
        gradient, *given, d_query=d_query, d_key_value=d_key_value, d_prefix=d_prefix
    )
    assert (packed[..., 3 * d :] == SENTINEL).all()
    return d_query, d_key_value, d_prefix


def naive(query: Tensor, key_value: Tensor, prefix: Tensor, given: Case) -> Tensor:
    """One query, one head at a time, differentiable."""
    d = query.shape[-1]
    bounds = given.offsets.tolist()
    rows = []
    for g in range(query.shape[0]):
        for begin, end in itertools.pairwise(bounds):
            for row in [end - 1] if given.last else range(begin, end):
                seen = torch.cat([prefix[g], key_value[g, begin : row + 1]])
                q = query[g, bounds.index(end) - 1 if given.last else row]
                for columns in torch.arange(d).chunk(given.heads):
                    weights = torch.softmax(given.scale * seen[:, columns] @ q[columns], 0)
                    rows.append(weights @ seen[:, d + columns])
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


@pytest.mark.parametrize("last", [False, True], ids=["all", "last"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention(backend: str, dtype: torch.dtype, shape: str, last: bool) -> None:
    given = case(**SHAPES[shape], dtype=dtype, last=last)
    gradient = normal(2, *given.query.shape, seed=4).to(dtype)
    with running_on(backend):
        out = forward(given)
        gradients = backward(gradient, given)
    assert_close(out, reference.shared_prefix_attention(*given.double()), "formula", dtype)
    wanted = reference.shared_prefix_attention_backward(gradient.double(), *given.double())
    for got, want in zip(gradients, wanted, strict=True):  # of one row without a prefix, those of query and key are 0
        assert_close(got, want, "formula", dtype, scale_of(*wanted))


@pytest.mark.parametrize("last", [False, True], ids=["all", "last"])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_what_a_loop_computes_and_autograd_derives(backend: str, prefix: int, last: bool) -> None:
    given = case([2, 1, 5, 3], torch.float64, groups=2, prefix=prefix, d=12, heads=3, last=last)
    leaves = [x.detach().clone().requires_grad_() for x in given[:3]]
    wanted = naive(*leaves, given)
    gradient = normal(3, *given.query.shape, seed=4)
    with running_on(backend):
        assert_close(forward(given), wanted, "formula", torch.float64)
        gradients = backward(gradient, given)
    for k in range(3):
        by_autograd = torch.autograd.grad(wanted, leaves, gradient[k], retain_graph=True, materialize_grads=True)
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
    given.prefix[..., :128].mul_(4).round_()
    given = given._replace(scale=25.0)
    assert (given.scale * given.query[0, :, :64] @ given.prefix[0, :, :64].T).abs().max() > 1e4
    gradient = normal(2, *given.query.shape, seed=4).to(dtype)
    rounded = given.to(dtype)
    with running_on(backend):
        out, gradients = forward(rounded), backward(gradient, rounded)
    assert_close(out, reference.shared_prefix_attention(*rounded.double()), "formula", dtype)
    expected = reference.shared_prefix_attention_backward(gradient.double(), *rounded.double())
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_through_any_strides_of_rows_and_groups(backend: str) -> None:
    given = case([2, 3, 6], torch.float32, groups=2, prefix=4, d=8, heads=2)
    wanted = reference.shared_prefix_attention(*given)
    swapped = given._replace(  # (T, G, d) in memory; every second row
        query=given.query.transpose(0, 1).contiguous().transpose(0, 1),
        key_value=given.key_value.repeat_interleave(2, 1)[:, ::2],
        prefix=given.prefix.transpose(0, 1).contiguous().transpose(0, 1),
    )
    gradient = normal(2, *given.query.shape, seed=4).float()
    with running_on(backend):
        assert_close(forward(swapped), wanted, "formula", torch.float32)
        d_prefix = torch.empty(4, 2, 2, 16).permute(2, 1, 0, 3)
        d_query, d_key_value = torch.empty(11, 2, 2, 8).permute(2, 1, 0, 3), torch.empty(2, 2, 11, 16)
        strided = gradient.repeat_interleave(3, 2)[:, :, ::3]
        operators.shared_prefix_attention_backward_out(
            strided, *swapped, d_query=d_query, d_key_value=d_key_value, d_prefix=d_prefix
        )
    expected = reference.shared_prefix_attention_backward(gradient, *given)
    for got, want in zip((d_query, d_key_value, d_prefix), expected, strict=True):
        assert_close(got, want, "formula", torch.float32)


def test_attention_on_any_number_of_threads_gives_the_same_bits() -> None:
    # enough segments for several tasks of each head, and for prefix gradients that are sums over tasks
    given = case([*range(1, 15)] * 12, torch.float32, groups=2, heads=4, d=128)
    gradient = normal(2, *given.query.shape, seed=4).float()
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append((forward(given), *backward(gradient, given)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- norm


def norm_arguments(rows: int, width: int, dtype: torch.dtype, count: int = 2) -> dict[str, Tensor]:
    acc = accumulation(dtype)
    given = {
        "x": normal(rows, width, seed=1) + 2, "branch": normal(rows, width, seed=2),
        "d_total": normal(count, rows, width, seed=5), "d_normed": normal(count, rows, width, seed=6),
    }  # fmt: skip
    affine = {"weight": normal(width, seed=3, dtype=acc), "bias": normal(width, seed=4, dtype=acc)}
    return {name: tensor.to(dtype) for name, tensor in given.items()} | affine


def norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total, normed = torch.empty_like(x), torch.empty_like(x)
    statistics = torch.empty(len(x), 2, dtype=weight.dtype)
    operators.add_layer_norm_out(x, branch, weight, bias, 1e-5, total=total, normed=normed, statistics=statistics)
    return total, normed, statistics


# 1: a row of one element; 33: a rest beside registers; 512: CLIP's; 200 rows of 1030: several threads, and a rest
@pytest.mark.parametrize(("rows", "width"), [(3, 1), (5, 33), (4, 512), (200, 1030), (0, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_norm(backend: str, dtype: torch.dtype, rows: int, width: int) -> None:
    given = norm_arguments(rows, width, dtype)
    forward_names = ("x", "branch", "weight", "bias")
    with running_on(backend):
        total, normed, statistics = norm(*(given[name] for name in forward_names))
        actual = given["d_total"].clone()
        operators.layer_norm_backward_(actual, given["d_normed"], total, statistics, given["weight"])
    wide = {name: tensor.double() for name, tensor in given.items()}
    assert_close(total, wide["x"] + wide["branch"], "formula", dtype)
    # from the total as it is stored, by PyTorch and its autograd
    leaf = total.double().requires_grad_()
    wanted = F.layer_norm(leaf, (width,), wide["weight"], wide["bias"], 1e-5)
    assert_close(normed, wanted, "formula", dtype)
    mean = leaf.mean(1)
    rstd = ((leaf - mean[:, None]).square().mean(1) + 1e-5).rsqrt()
    assert_close(statistics, torch.stack([mean, rstd], 1), "formula", accumulation(dtype))
    for k in range(2):
        (through,) = torch.autograd.grad(wanted, leaf, wide["d_normed"][k], retain_graph=True)
        assert_close(actual[k], wide["d_total"][k] + through, "formula", dtype, scale_of(through, wide["d_total"][k]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_of_rows_far_from_zero_and_of_constant_rows(backend: str) -> None:
    # a mean of 1e4 would drown a variance computed as mean(x²) - mean(x)²; a constant row has none
    x = torch.stack([1e4 + normal(64, seed=1), torch.full((64,), 3.0).double(), 1e-20 * normal(64, seed=2)]).float()
    with running_on(backend):
        _, normed, _ = norm(x, torch.zeros_like(x), torch.ones(64), torch.zeros(64))
    wanted = F.layer_norm(x.double(), (64,), eps=1e-5)
    assert_close(normed[0], wanted[0], "far from zero", torch.float32)
    assert (normed[1] == 0).all()
    assert_close(normed[2], wanted[2], "formula", torch.float32)


# ---- GELU


def gelu(x: Tensor, approximate: int) -> Tensor:
    out = torch.empty_like(x)
    operators.gelu_out(x, approximate, out=out)
    return out


def gelu_in_torch(x: Tensor, name: str) -> Tensor:
    return x * torch.sigmoid(1.702 * x) if name == "sigmoid" else F.gelu(x, approximate=name)


@pytest.mark.parametrize(("approximate", "name"), APPROXIMATIONS)
# 0-d; one element; a rest beside registers; two blocks of the derivative and several threads
@pytest.mark.parametrize("shape", [(), (1,), (3, 19), (41, 1031), (0, 4)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu(backend: str, dtype: torch.dtype, shape: tuple[int, ...], approximate: int, name: str) -> None:
    x, gradient = (3 * normal(*shape, seed=1)).to(dtype), normal(2, *shape, seed=2).to(dtype)
    actual = gradient.clone()
    with running_on(backend):
        out = gelu(x, approximate)
        operators.gelu_backward_(actual, x, approximate)
    leaf = x.double().requires_grad_()
    wanted = gelu_in_torch(leaf, name)
    assert_close(out, wanted, "formula", dtype)
    for k in range(2):
        (by_autograd,) = torch.autograd.grad(wanted, leaf, gradient[k].double(), retain_graph=True)
        assert_close(actual[k], by_autograd, "formula", dtype)


@pytest.mark.parametrize(("approximate", "name"), APPROXIMATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_of_every_magnitude(backend: str, approximate: int, name: str) -> None:
    # where x, x² and x³ overflow, where the gate is all or nothing, and where it is one half; both signs
    sizes = torch.tensor([0.0, 1e-30, 1e-3, 0.1, 0.7, 1, 3, 5, 8, 12, 13.1, 20, 33, 89, 1e4, 1e13, 1e20, 3e38])
    x = torch.cat([sizes, -sizes])
    gradient = torch.ones(1, len(x))
    with running_on(backend):
        out = gelu(x, approximate)
        operators.gelu_backward_(gradient, x, approximate)
    leaf = x.double().requires_grad_()
    wanted = gelu_in_torch(leaf, name)
    assert ((out - wanted).abs() <= 3e-7 * x.abs()).all()  # of x·gate, the gate to float32
    (derivative,) = torch.autograd.grad(wanted.sum(), leaf)
    derivative = torch.where(leaf.abs() > 1e4, (leaf > 0).double(), derivative)  # autograd: 0 · inf
    assert_close(gradient[0], derivative, "formula", torch.float32)


@pytest.mark.parametrize(("approximate", "name"), APPROXIMATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_of_what_is_not_a_number(backend: str, approximate: int, name: str) -> None:
    x, gradient = torch.tensor([1.0, torch.nan, torch.inf]), torch.ones(1, 3)
    with running_on(backend):
        out = gelu(x, approximate)
        operators.gelu_backward_(gradient, x, approximate)
    assert out.isnan().tolist() == [False, True, False]
    assert out[2] == torch.inf
    assert gradient[0, :2].isnan().tolist() == [False, True]


def test_norm_and_gelu_on_any_number_of_threads_give_the_same_bits() -> None:
    given = norm_arguments(300, 515, torch.float32)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            total, normed, statistics = norm(*(given[name] for name in ("x", "branch", "weight", "bias")))
            d_total, gradient = given["d_total"].clone(), given["d_normed"].clone()
            operators.layer_norm_backward_(d_total, gradient, total, statistics, given["weight"])
            operators.gelu_backward_(gradient, given["x"], 0)
            results.append((total, normed, statistics, d_total, gelu(given["x"], 0), gradient))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- what is refused; the rest of it: test_ops_boundary.py


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
