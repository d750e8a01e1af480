"""Guards gate_shift_fuse on every backend: against the authors' steps one by one in float64, and its derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast import functional, reference
from tests.ops.support import BACKENDS, DTYPES, accumulation, assert_same_bits, normal, running_on
from tests.tolerances import assert_close

# (B, T, C, H, W), used channels
CASES = {
    "clips": ((2, 3, 8, 5, 7), 8),  # planes of no whole register
    "channels that pass": ((2, 4, 21, 4, 4), 12),
    "one frame": ((1, 1, 4, 3, 3), 4),  # nothing comes from anywhere
    "one position": ((3, 5, 16, 1, 1), 16),
    "planes in several blocks": ((1, 2, 4, 47, 53), 4),
    "more channels than one task takes": ((1, 2, 24, 40, 40), 24),
    "no clips": ((0, 2, 4, 3, 3), 4),
    "planes in two parts": ((1, 2, 8, 61, 70), 8),
}


def step_by_step(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, used: int) -> Tensor:
    """Frame by frame and group by group, as the paper has it."""
    frames, half = x.shape[1], used // 2
    groups = []
    for k, step in enumerate((1, -1)):
        u = x[:, :, k * half : (k + 1) * half]
        passed = u * gate[:, k, :, None]
        rest = u - passed
        steps = [passed[:, t + step] if 0 <= t + step < frames else 0 * passed[:, t] for t in range(frames)]
        moved = torch.stack(steps, 1)
        pair = torch.stack([moved.mean((3, 4)), rest.mean((3, 4))], 1).transpose(2, 3)  # B, 2, f/2, T
        phi = F.conv2d(pair, weight[k : k + 1], bias[k : k + 1], padding=1).sigmoid()[:, 0].transpose(1, 2)
        fused = phi[..., None, None] * moved + (1 - phi[..., None, None]) * rest
        order = [j for pair in zip(range(half // 2), range(half // 2, half), strict=True) for j in pair]
        groups.append(fused[:, :, order])
    return torch.cat([*groups, x[:, :, used:]], 2)


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    b, t, _, *size = shape
    wide = accumulation(dtype)
    gate = normal(b, 2, t, *size, seed=2).tanh().to(dtype)
    return [normal(*shape, seed=1, dtype=dtype), gate, normal(2, 2, 3, 3, seed=3, dtype=wide), normal(2, dtype=wide)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, case: str) -> None:
    shape, used = CASES[case]
    given = inputs(shape, dtype)
    gradient = normal(*shape, seed=4, dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in given]
    wide = [t.double().clone().requires_grad_() for t in given]
    with running_on(backend):
        ours = functional.gate_shift_fuse(*leaves, used)
        ours.backward(gradient)
    theirs = step_by_step(*wide, used)
    theirs.backward(gradient.double())
    assert_close(ours, theirs, "formula", dtype)
    assert torch.equal(ours[:, :, used:], leaves[0][:, :, used:])
    for leaf, expected in zip(leaves, wide, strict=True):
        assert_close(leaf.grad, expected.grad, "formula", leaf.dtype)


def test_formula_is_the_same() -> None:
    shape, used = CASES["channels that pass"]
    given = inputs(shape, torch.float64)
    assert_close(reference.gate_shift_fuse(*given, used), step_by_step(*given, used), "formula", torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_values(backend: str, dtype: torch.dtype) -> None:
    """Gates of 0 and ±1, weights of 0 and 1, and a frame far above the others, against float64."""
    shape, used = CASES["clips"]
    x, gate, weight, bias = inputs(shape, dtype)
    x[:, 1] *= math.sqrt(torch.finfo(dtype).max) / 16
    gate[:, 0], gate[:, 1, ..., :3], gate[:, 1, ..., 3:] = 0, 1, -1
    bias = torch.tensor([1e6, -1e6], dtype=bias.dtype)
    wide = [t.double() for t in (x, gate, weight * 0, bias)]
    with running_on(backend):
        ours = functional.gate_shift_fuse(x, gate, weight * 0, bias, used)
    for frame, theirs in enumerate(step_by_step(*wide, used).unbind(1)):
        assert_close(ours[:, frame], theirs, "formula", dtype)
    nothing = x.clone().fill_(0)
    with running_on(backend):
        assert torch.equal(functional.gate_shift_fuse(nothing, gate, weight, bias, used), nothing)
        x[0, 0, 0, 0, 0] = math.nan
        spoiled = functional.gate_shift_fuse(x, gate, weight, bias, used).isnan()
    assert spoiled[0].any()
    assert not spoiled[1].any()  # a clip's NaN stays in the clip


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_dtypes_of_the_small_ones(backend: str) -> None:
    shape, used = CASES["clips"]
    x, gate, weight, bias = inputs(shape, torch.float64)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1), gate.flip(4), weight.transpose(2, 3), bias.flip(0)
    with running_on(backend):
        leaf = strided[0].clone(memory_format=torch.preserve_format).requires_grad_()
        out = functional.gate_shift_fuse(leaf, *strided[1:], used)
        assert_close(out, step_by_step(*strided, used), "formula", torch.float64)
        out.sum().backward()  # an expanded gradient
    wide = strided[0].clone().requires_grad_()
    step_by_step(wide, *strided[1:], used).sum().backward()
    assert_close(leaf.grad, wide.grad, "formula", torch.float64)
    with running_on(backend):
        mixed = functional.gate_shift_fuse(x.float(), gate, weight, bias, used)  # a gate and weights of another dtype
    assert mixed.dtype == torch.float32
    assert_close(mixed, step_by_step(x, gate, weight, bias, used), "formula", torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_any_order(backend: str) -> None:
    given = [t.requires_grad_() for t in inputs((1, 2, 5, 2, 1), torch.float64)]

    def call(*tensors: Tensor) -> Tensor:
        return functional.gate_shift_fuse(*tensors, 4)

    with running_on(backend):
        assert torch.autograd.gradcheck(call, given)
        assert torch.autograd.gradgradcheck(call, given)
        for frozen in range(4):  # each subset of inputs has a way of its own through further derivatives
            some = [t.detach() if i == frozen else t for i, t in enumerate(given)]
            assert torch.autograd.gradcheck(call, some)
            out = call(*some)
            wanted = [t for t in some if t.requires_grad]
            first = torch.autograd.grad(out.sum(), wanted, create_graph=True)
            assert all(g.shape == t.shape for g, t in zip(first, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # PyTorch compiles its own rules with it
def test_transforms() -> None:
    given = inputs((2, 3, 4, 2, 2), torch.float64)
    tangent = normal(2, 3, 4, 2, 2, seed=9)
    _, ours = torch.func.jvp(lambda t: functional.gate_shift_fuse(t, *given[1:]), (given[0],), (tangent,))
    _, theirs = torch.func.jvp(lambda t: step_by_step(t, *given[1:], 4), (given[0],), (tangent,))
    assert_close(ours, theirs, "formula", torch.float64)
    with pytest.raises(ValueError, match="used: expected a multiple of 4"):
        torch.func.jvp(lambda t: functional.gate_shift_fuse(t, *given[1:], 2), (given[0],), (tangent,))
    stacked = torch.stack([given[0], tangent])
    mapped = torch.func.vmap(lambda t: functional.gate_shift_fuse(t, *given[1:]))(stacked)
    assert_close(mapped[1], step_by_step(tangent, *given[1:], 4), "formula", torch.float64)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, gate, *_ = inputs((2, 3, 40, 30, 31), torch.float32)
    phi, means = normal(2, 2, 20, 3, dtype=torch.float32), normal(2, 4, 20, 3, dtype=torch.float32)
    operators = torch.ops.prograd_fast

    def call() -> list[Tensor]:
        results = [torch.empty_like(t) for t in (means, x, phi, x, gate)]
        operators.gate_shift_means_out(x, gate, means=results[0])
        operators.gate_shift_fuse_out(x, gate, phi, out=results[1])
        operators.gate_shift_slopes_out(x, x, gate, d_phi=results[2])
        operators.gate_shift_fuse_backward_out(x, x, gate, phi, means, d_x=results[3], d_gate=results[4])
        return results

    assert_same_bits(call)


def test_errors_name_the_argument() -> None:
    x, gate, weight, bias = inputs((2, 3, 8, 2, 2), torch.float32)
    wrong = {
        r"x: expected shape \(clips, frames, channels, height, width\), got \(3, 8, 2, 2\)": (x[0], gate, weight, bias),
        r"gate: expected shape \(2, 2, 3, 2, 2\), got \(2, 3, 2, 2\)": (x, gate[:, 0], weight, bias),
        r"weight: expected shape \(2, 2, 3, 3\), got \(2, 3, 3\)": (x, gate, weight[0], bias),
        r"bias: expected shape \(2,\), got \(\)": (x, gate, weight, bias[0]),
        "used: expected a multiple of 4 from 4 to 8 channels, got 6": (x, gate, weight, bias, 6),
        "used: expected a multiple of 4 from 4 to 8 channels, got 12": (x, gate, weight, bias, 12),
        "used: expected a multiple of 4 from 4 to 8 channels, got 0": (x, gate, weight, bias, 0),
        "x: expected one frame or more": (x[:, :0], gate[:, :, :0], weight, bias),
    }
    for message, call in wrong.items():
        for backend in BACKENDS:
            with running_on(backend), pytest.raises(ValueError, match=message):
                functional.gate_shift_fuse(*call)
    with pytest.raises(TypeError, match="gate: expected"):
        functional.gate_shift_fuse(x, gate.long(), weight, bias)
