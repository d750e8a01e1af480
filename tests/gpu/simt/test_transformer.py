"""The CUDA kernels of the prompt encoder, run on the CPU by tests/gpu/simt/simt.h, against the reference in float64."""

import dataclasses

import pytest
import torch

from prograd_fast.ops.gelu import APPROXIMATIONS
from tests.gpu.simt.build import compiler
from tests.gpu.simt.library import ORDERS, STORAGES
from tests.gpu.simt.transformer import (
    Attention,
    Case,
    Tower,
    check_add_layer_norm,
    check_gelu,
    check_layer_norm_backward,
)

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")
SCHEDULES = [(order, seed) for seed, order in enumerate(ORDERS)]

CASES = {
    "one row": Case([1], prefix=0, heads=1, width=1),
    "no prefix": Case([3, 1, 5], prefix=0, heads=2, width=16),
    "odd width": Case([2, 4], prefix=3, heads=3, width=5),  # no head starts on 16 bytes
    "half of the lanes": Case([4, 2, 9], prefix=5, heads=2, width=32, cotangents=1),
    "groups": Case([2, 14, 3], prefix=17, heads=2, width=64, groups=2),  # CLIP's heads
    "wide heads": Case([3, 7], prefix=5, heads=2, width=72),  # 16 lanes, not all of them used
    "widest": Case([5], prefix=2, heads=1, width=128, cotangents=1),
    "three cotangents": Case([6, 5], prefix=4, heads=1, width=16, cotangents=3),  # more than one launch takes
    "long segment": Case([70], prefix=1, heads=1, width=8),  # far more keys than a warp has lanes
    "chunks": Case([3] * 180, prefix=5, heads=1, width=8, cotangents=1),  # three blocks for a key of the prefix
}


@pytest.fixture(scope="module")
def simt() -> Tower:
    return Tower()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_attention(simt: Tower, dtype: torch.dtype, name: str, last: bool) -> None:
    simt.schedule(*SCHEDULES[len(name) % 3])
    Attention(dataclasses.replace(CASES[name], last=last), dtype).check(simt)


@pytest.mark.parametrize("dtype", STORAGES)
def test_attention_off_a_16_byte_boundary(simt: Tower, dtype: torch.dtype) -> None:
    Attention(CASES["groups"], dtype, shift=1).check(simt)


def test_attention_with_one_prefix_for_all_groups(simt: Tower) -> None:
    attention = Attention(CASES["groups"], torch.float32)
    query, key_value, prefix, *rest = attention.inputs
    attention.inputs = (query, key_value, prefix[:1].expand(2, -1, -1), *rest)
    attention.check(simt)


@pytest.mark.parametrize("dtype", STORAGES)
def test_attention_of_extreme_scores(simt: Tower, dtype: torch.dtype) -> None:
    # whole numbers, so that scores in the thousands have no rounding: most weights are 0, and ties share one
    attention = Attention(Case([3, 9], prefix=6, heads=2, width=8), dtype, scale=16.0)
    query, key_value, prefix, *_ = attention.inputs
    for tensor in (query, key_value, prefix):
        tensor.copy_((4 * tensor.double()).round())
    for keys, queries in ((key_value, [1, 2]), (prefix, [7, 8])):
        keys[0, 1, :16] = keys[0, 0, :16] = query[0, queries] = 2 * keys[0, 0, :16]  # above all others
        keys[0, 1, :16:8] += 5  # where those queries have 0: the scores tie, and yet the gradient is not 0
        query[0, queries, ::8] = 0
    attention.check(simt)


def test_attention_of_no_rows(simt: Tower) -> None:
    attention = Attention(Case([], prefix=4, heads=2, width=8), torch.float32)
    assert attention.forward(simt).numel() == 0
    d_query, d_key_value, d_prefix = attention.backward(simt)
    assert d_query.numel() == d_key_value.numel() == 0
    assert torch.equal(d_prefix, torch.zeros_like(d_prefix))


def test_attention_passes_nan_on(simt: Tower) -> None:
    attention = Attention(Case([4, 3], prefix=2, heads=2, width=8), torch.float32)
    attention.inputs[1][0, 2, :8] = torch.nan  # a key of the first head: rows 2 and 3 see it
    out = attention.forward(simt)[0]
    assert out[2:4, :8].isnan().all()
    assert out[[0, 1, 4, 5, 6]].isfinite().all()
    assert out[:, 8:].isfinite().all()


def test_attention_launches(simt: Tower) -> None:
    attention = Attention(CASES["groups"], torch.float32)
    simt.launches()
    attention.forward(simt)
    assert simt.launches() == 1
    attention.backward(simt)
    assert simt.launches() == 2


def test_attention_is_the_same_under_every_schedule(simt: Tower) -> None:
    attention, results = Attention(CASES["chunks"], torch.float32), []
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks=1 + 5 * seed)
        results.append((attention.forward(simt), *attention.backward(simt)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


NORMS = [
    (1, 1),
    (3, 5),  # less than one pack, and rows that start off a 16-byte boundary
    (9, 64),  # more rows than a block has
    (2, 513),  # several packs for a lane, and an incomplete one
]


@pytest.mark.parametrize(("rows", "columns"), NORMS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_add_layer_norm(simt: Tower, dtype: torch.dtype, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    x, branch = (torch.randn(2, rows, columns, generator=generator) + 0.5).to(dtype)
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_add_layer_norm(simt, x, branch, shift=seed)


def test_add_layer_norm_of_extreme_rows(simt: Tower) -> None:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).double()
    x[0] = 3.0  # no variance: what divides is the root of eps alone
    x[1] *= 1e6
    x[2] *= 1e-6
    x[3] += 1e3  # a mean far above the deviation
    x[4, 7] = 1e12
    check_add_layer_norm(simt, x, torch.zeros_like(x))
    # one at a time in float32, which cannot tell a deviation far below the mean
    for row in x[[0, 1, 2, 4], None].float():
        check_add_layer_norm(simt, row, torch.zeros_like(row))


@pytest.mark.parametrize("dtype", STORAGES)
def test_layer_norm_of_rows_of_which_a_block_holds_few(simt: Tower, dtype: torch.dtype) -> None:
    columns = 100_000 // dtype.itemsize  # two rows of 100 kB
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    check_add_layer_norm(simt, x, x)
    check_layer_norm_backward(simt, 2, 3, columns, dtype)


@pytest.mark.parametrize("cotangents", [1, 3])
@pytest.mark.parametrize(("rows", "columns"), NORMS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_layer_norm_backward(simt: Tower, dtype: torch.dtype, rows: int, columns: int, cotangents: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_layer_norm_backward(simt, cotangents, rows, columns, dtype, shift=seed)


@pytest.mark.parametrize("approximate", range(len(APPROXIMATIONS)), ids=APPROXIMATIONS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_gelu(simt: Tower, dtype: torch.dtype, approximate: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in [(1,), (), (0, 3), (5, 7), (2, 1030)]:  # 5 * 7: cotangents start off a 16-byte boundary; two blocks
        x = (3 * torch.randn(shape, generator=generator)).to(dtype)
        for shift in range(2):
            check_gelu(simt, x, approximate, cotangents=3, shift=shift)


@pytest.mark.parametrize("approximate", range(len(APPROXIMATIONS)), ids=APPROXIMATIONS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_gelu_of_extreme_values(simt: Tower, dtype: torch.dtype, approximate: int) -> None:
    large = torch.finfo(dtype).max
    # where the gate goes to 0 and 1, and where squares and cubes overflow; each alone, its error relative to itself
    for value in [0.0, -0.0, 1e-4, -1e-4, -5.0, -9.0, -14.5, 20.0, -40.0, 1e4, -1e4, large, -large]:
        check_gelu(simt, torch.tensor([value], dtype=torch.float64).to(dtype), approximate, cotangents=1)


@pytest.mark.parametrize("approximate", range(len(APPROXIMATIONS)), ids=APPROXIMATIONS)
def test_gelu_passes_nan_on(simt: Tower, approximate: int) -> None:
    x, out, gradient = torch.tensor([torch.nan, 1.0]), torch.zeros(2), torch.ones(1, 2)
    simt.gelu_out(x, approximate, out=out)
    simt.gelu_backward_(gradient, x, approximate)
    assert out.isnan().tolist() == gradient[0].isnan().tolist() == [True, False]
