"""Guards the residual sum with layer norm on every backend: against PyTorch's in float64 and its autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.support import BACKENDS, DTYPES, accumulation, normal, running_on, scale_of, threads
from tests.tolerances import assert_close

operators = torch.ops.prograd_fast


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


def test_any_number_of_threads_gives_the_same_bits() -> None:
    given = norm_arguments(300, 515, torch.float32)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            total, normed, statistics = norm(*(given[name] for name in ("x", "branch", "weight", "bias")))
            d_total = given["d_total"].clone()
            operators.layer_norm_backward_(d_total, given["d_normed"], total, statistics, given["weight"])
            results.append((total, normed, statistics, d_total))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
