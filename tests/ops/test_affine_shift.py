"""Guards affine_shift on every backend: against torch.roll in float64, its derivatives, and its bits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prograd_fast import functional, reference
from tests.ops.support import BACKENDS, DTYPES, assert_same_bits, normal, running_on
from tests.tolerances import assert_close

# clips; pictures with an odd rest; one axis in several chunks; one position; nothing
CASES = {
    "clips": ((2, 7, 3, 4, 5), (1, 1, 1, 1, 1, 2), (1, -1, 2, -3, 3, 0)),
    "pictures": ((3, 5, 9, 17), (2, 0, 3), (-1, 2, -2)),
    "rows as long as a register": ((1, 2, 5, 16), (1, 1), (2, -2)),
    "one axis, several chunks": ((1, 3, 5003), (1, 1, 1), (1, -1, 0)),
    "frames longer than a chunk": ((1, 2, 3, 53, 47), (1, 1), (-1, 1)),
    "one position": ((2, 3, 1, 1), (1, 1, 1), (1, -2, 0)),
    "no pictures": ((0, 2, 3, 3), (1, 1), (1, -1)),
    "no positions": ((2, 2, 3, 0), (1, 1), (1, -2)),
}


def by_roll(x: Tensor, scale: Tensor | None, bias: Tensor | None, groups: Any, axes: Any) -> Tensor:
    """Channel by channel; what comes around from the other side is set to zero."""
    y = x.clone()
    for c, axis in enumerate(axis for axis, size in zip(axes, groups, strict=True) for _ in range(size)):
        if axis and x.numel():
            y[:, c] = x[:, c].roll(1 if axis > 0 else -1, abs(axis))
            y[:, c].select(abs(axis), 0 if axis > 0 else -1).zero_()
    y = y if scale is None else torch.einsum("bc...,bc->bc...", y, scale)
    return y if bias is None else y + bias


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    scale_dtype = torch.promote_types(dtype, torch.float32)
    return (
        normal(*shape, seed=1, dtype=dtype),
        normal(*shape[:2], seed=2, dtype=scale_dtype),
        normal(*shape, seed=3, dtype=dtype),
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, case: str) -> None:
    shape, *shift = CASES[case]
    x, scale, bias = inputs(shape, dtype)
    gradient = normal(*shape, seed=4, dtype=dtype)
    for given in ((x, scale, bias), (x, None, bias), (x, scale, None), (x, None, None)):
        leaves = [None if t is None else t.clone().requires_grad_() for t in given]
        wide = [None if t is None else t.double().clone().requires_grad_() for t in given]
        with running_on(backend):
            ours = functional.affine_shift(*leaves, *shift)
            ours.backward(gradient)
        theirs = by_roll(*wide, *shift)
        theirs.backward(gradient.double())
        assert_close(ours, theirs, "formula", dtype)
        for name, leaf, expected in zip(("x", "scale", "bias"), leaves, wide, strict=True):
            if leaf is not None:
                kind = torch.promote_types(dtype, torch.float32) if name == "scale" else dtype
                products = (x.double() * gradient.double()).abs().flatten(2).sum(2) if name == "scale" else None
                assert_close(leaf.grad, expected.grad, "formula", kind, products)


def test_formula_is_the_same() -> None:
    shape, *shift = CASES["clips"]
    given = inputs(shape, torch.float64)
    assert_close(reference.affine_shift(*given, *shift), by_roll(*given, *shift), "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend: str) -> None:
    shape, *shift = CASES["pictures"]
    x, scale, bias = inputs(shape, torch.float64)
    strided = x.to(memory_format=torch.channels_last)[:, :, :, 1:], scale.T.contiguous().T, bias.flip(0)[..., 1:]
    expected = by_roll(*strided, *shift)
    with running_on(backend):
        leaf = strided[0].clone(memory_format=torch.preserve_format).requires_grad_()
        out = functional.affine_shift(leaf, strided[1].requires_grad_(), strided[2], *shift)
        assert_close(out, expected, "formula", torch.float64)
        out.sum().backward()  # an expanded gradient
    ones = by_roll(torch.ones_like(x[..., 1:]), scale, None, shift[0], [-a for a in shift[1]])
    assert_close(leaf.grad, ones, "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_any_order(backend: str) -> None:
    x, scale, bias = (t.clone().requires_grad_() for t in inputs((2, 4, 2, 3, 2), torch.float64))
    shift = (1, 1, 1, 1), (1, -2, 3, 0)

    def call(*given: Tensor) -> Tensor:
        return functional.affine_shift(*given, *shift)

    with running_on(backend):
        assert torch.autograd.gradcheck(call, (x, scale, bias))
        assert torch.autograd.gradgradcheck(call, (x, scale, bias))
        for frozen in range(3):  # each subset of inputs has a way of its own through the backward
            given = [t.detach() if i == frozen else t for i, t in enumerate((x, scale, bias))]
            assert torch.autograd.gradcheck(call, given)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # PyTorch compiles its own rules with it
def test_transforms() -> None:
    x, scale, bias = inputs((2, 4, 3, 2), torch.float64)
    shift = (1, 1, 1, 1), (1, -2, 2, 0)
    tangents = inputs((2, 4, 3, 2), torch.float64)[::-1]
    _, tangent = torch.func.jvp(lambda t: functional.affine_shift(t, scale, bias, *shift), (x,), (tangents[0],))
    assert_close(tangent, by_roll(tangents[0], scale, None, *shift), "formula", torch.float64)
    with pytest.raises(ValueError, match="groups: expected sizes"):
        torch.func.jvp(lambda t: functional.affine_shift(t, None, None, (1, 2), (0, 0)), (x,), (x,))
    stacked = torch.stack([x, bias])
    mapped = torch.func.vmap(lambda t: functional.affine_shift(t, scale, bias, *shift))(stacked)
    assert_close(mapped[1], by_roll(bias, scale, bias, *shift), "formula", torch.float64)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, scale, bias = inputs((3, 5, 40, 130), torch.float32)
    shift = [2, 3], [1, -2]

    def call() -> list[Tensor]:
        out, d_x, d_scale = torch.empty_like(x), torch.empty_like(x), torch.empty_like(scale)
        torch.ops.prograd_fast.affine_shift_out(x, scale, bias, *shift, out=out)
        torch.ops.prograd_fast.affine_shift_backward_out(bias, x, scale, *shift, d_x=d_x, d_scale=d_scale)
        return [out, d_x, d_scale]

    assert_same_bits(call)


def test_errors_name_the_argument() -> None:
    x, scale, bias = inputs((2, 4, 3, 3), torch.float32)
    shift = (2, 2), (1, -1)
    wrong = {
        r"x: expected shape \(batch, channels, 1 to 3 positions\), got \(2, 4\)": (x[..., 0, 0], scale, None, *shift),
        r"scale: expected shape \(2, 4\), one per channel, got \(4,\)": (x, scale[0], None, *shift),
        r"bias: expected shape \(2, 4, 3, 3\) as x, got \(4, 3, 3\)": (x, None, bias[0], *shift),
        r"groups: expected sizes that add up to 4 channels, got \[2, 3\]": (x, None, None, (2, 3), (1, -1)),
        r"groups: expected sizes that add up to 4 channels, got \[-1, 5\]": (x, None, None, (-1, 5), (1, -1)),
        "axes: expected 2, one for each group, got 1": (x, None, None, (2, 2), (1,)),
        r"axes: expected -2 ... 2 for shape .2, 4, 3, 3., got \[3, 0\]": (x, None, None, (2, 2), (3, 0)),
    }
    for message, call in wrong.items():
        for backend in BACKENDS:
            with running_on(backend), pytest.raises(ValueError, match=message):
                functional.affine_shift(*call)
    with pytest.raises(TypeError, match=r"bias: expected torch.float32 as x, got torch.float64"):
        functional.affine_shift(x, None, bias.double(), *shift)
    with pytest.raises(TypeError, match="scale: expected a floating-point tensor"):
        functional.affine_shift(x, scale.long(), None, *shift)
