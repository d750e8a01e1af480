"""local_soft_argmax on every backend: values, gradients, borders, ties, and wrong calls."""

import math

import pytest
import torch
from torch import Tensor

from prograd_fast import functional, reference
from tests.ops.support import BACKENDS, DTYPES, accumulation, assert_same_bits, normal, running_on
from tests.tolerances import assert_close


def by_hand(maps: Tensor, window: int, temperature: float) -> Tensor:
    """Map by map on a padded copy, as the definition says."""
    half, points = window // 2, torch.empty(*maps.shape[:2], 2, dtype=maps.dtype)
    for b, map_of in enumerate(maps):
        for n, h in enumerate(map_of):
            r, c = divmod(int(h.argmax()), h.shape[1])
            around = torch.nn.functional.pad(h, [half] * 4)[r : r + window, c : c + window]
            w = (temperature * around).flatten().softmax(0).view(window, window)
            steps = torch.arange(window, dtype=maps.dtype) - half
            points[b, n] = torch.stack([c + (w.sum(0) * steps).sum(), r + (w.sum(1) * steps).sum()])
    return points


# one pixel; a window larger than the map; a row; more than a vector of pixels and a rest
@pytest.mark.parametrize(
    ("shape", "window", "temperature"),
    [((1, 1, 1, 1), 1, 1.0), ((2, 3, 4, 3), 7, 3.0), ((1, 2, 1, 9), 5, 10.0), ((2, 3, 19, 33), 5, 10.0)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, shape: tuple[int, ...], window: int, temperature: float) -> None:
    maps = normal(*shape, dtype=dtype).requires_grad_()
    wide, cotangent = maps.detach().double().requires_grad_(), normal(*shape[:2], 2, seed=1)
    with running_on(backend):
        points = functional.local_soft_argmax(maps, window, temperature)
        (gradient,) = torch.autograd.grad(points, maps, cotangent.to(points.dtype))
    expected = by_hand(wide, window, temperature)
    assert points.dtype == accumulation(dtype)
    assert_close(points, expected, "formula", accumulation(dtype), scale=torch.tensor(float(max(shape))))
    of_wide = torch.autograd.grad(expected, wide, cotangent)[0]
    assert_close(gradient, of_wide, "formula", dtype, scale=torch.tensor(temperature))


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives(backend: str) -> None:
    maps = normal(2, 2, 4, 5).requires_grad_()
    with running_on(backend):
        assert torch.autograd.gradcheck(lambda h: functional.local_soft_argmax(h, 3, 2.0), maps)
        assert torch.autograd.gradgradcheck(lambda h: functional.local_soft_argmax(h, 3, 2.0), maps)
        jacobian = torch.func.jacrev(lambda h: functional.local_soft_argmax(h, 3, 2.0))(maps.detach())
        many = torch.vmap(functional.local_soft_argmax, in_dims=1)(maps.detach()[:, None])
        assert_close(many[0], functional.local_soft_argmax(maps), "formula", torch.float64)
    expected = torch.autograd.functional.jacobian(lambda h: reference.local_soft_argmax(h, 3, 2.0), maps.detach())
    assert_close(jacobian, expected, "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values(backend: str) -> None:
    """The first of equal values; NaN only in maps that have one; -inf around a peak has no weight."""
    flat = torch.zeros(1, 1, 5, 6)
    alone = torch.full((1, 1, 5, 6), -math.inf)
    alone[0, 0, 2, 3] = 1.0
    ties = flat.clone()
    ties[0, 0, 3, 1] = ties[0, 0, 1, 4] = 50.0
    bad = flat.clone()
    bad[0, 0, 1, 1] = math.nan
    with running_on(backend):
        points = functional.local_soft_argmax(torch.cat([flat, alone, ties, bad], 1), 3)
    assert points[0, :3].tolist() == [[0.0, 0.0], [3.0, 2.0], [4.0, 1.0]]
    assert points[0, 3].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_of_many(backend: str, dtype: torch.dtype) -> None:
    """Kernels go through a map in parts: the first of equal peaks in two of them, the first of two NaN, all -inf."""
    maps = torch.zeros(1, 4, 40, 41, dtype=dtype)
    maps[0, 0, 9, 7] = maps[0, 0, 30, 3] = 60.0
    maps[0, 1, 12, 5] = maps[0, 1, 35, 0] = math.nan
    maps[0, 2] = -math.inf
    maps[0, 3, 5, 5], maps[0, 3, 39, 40] = 1.0, math.inf
    with running_on(backend):
        points, peaks = torch.ops.prograd_fast.local_soft_argmax(maps, 3, 10.0)
        gradient = torch.ones(1, 4, 2, dtype=points.dtype)
        d_maps = torch.ops.prograd_fast.local_soft_argmax_backward(gradient, maps, peaks, 3, 10.0)
    assert peaks[0].tolist() == [9 * 41 + 7, 12 * 41 + 5, 0, 39 * 41 + 40]
    assert points[0, 0].tolist() == [7.0, 9.0]
    assert points[0, 1].isnan().all()
    assert d_maps[0, 1].isnan().nonzero().tolist() == [[r, c] for r in (11, 12, 13) for c in (4, 5, 6)]
    expected = reference.local_soft_argmax(maps[:, 2:3], 3)
    assert_close(points[:, 2:3], expected, "formula", accumulation(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_threads(backend: str) -> None:
    maps = normal(9, 8, 40, 30, dtype=torch.float32)
    with running_on(backend):
        expected = functional.local_soft_argmax(maps)
        assert_close(functional.local_soft_argmax(maps.transpose(2, 3)).flip(2), expected, "formula", torch.float32)
        assert torch.equal(functional.local_soft_argmax(maps.repeat_interleave(2, 3)[..., ::2]), expected)
        assert functional.local_soft_argmax(maps[:0]).shape == (0, 8, 2)
        gradient = normal(9, 8, 2, dtype=torch.float32)
        backward, peaks = torch.ops.prograd_fast.local_soft_argmax_backward, maps.flatten(2).argmax(2)
        assert_same_bits(lambda: [functional.local_soft_argmax(maps), backward(gradient, maps, peaks, 5, 10.0)])
        strided = peaks.repeat_interleave(2, 1)[:, ::2]
        assert torch.equal(backward(gradient, maps, strided, 5, 10.0), backward(gradient, maps, peaks, 5, 10.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_gradients(dtype: torch.dtype) -> None:
    """What is written past the caches, in rows that begin anywhere, has the same bits."""
    maps = normal(1, 2200, 61, 63, dtype=dtype)
    gradient, peaks = normal(1, 2200, 2, dtype=torch.float32), maps.flatten(2).argmax(2)
    d_maps = torch.full_like(maps, math.nan)
    assert d_maps.nbytes >= 2**24
    torch.ops.prograd_fast.local_soft_argmax_backward_out(gradient, maps, peaks, 5, 10.0, d_maps=d_maps)
    for some in (slice(0, 1100), slice(1100, 2200)):
        parts = (x[:, some] for x in (gradient, maps, peaks))
        assert torch.equal(torch.ops.prograd_fast.local_soft_argmax_backward(*parts, 5, 10.0), d_maps[:, some])


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels")
def test_peaks_outside() -> None:
    """A CPU says so; no other backend reads or writes outside."""
    maps, gradient = normal(1, 2, 4, 5, dtype=torch.float32), torch.ones(1, 2, 2)
    for place in (-1, 20):
        peaks = torch.tensor([[3, place]])
        with running_on("cpu"), pytest.raises(ValueError, match=f"peaks: expected places from 0 to 19, got {place}"):
            torch.ops.prograd_fast.local_soft_argmax_backward(gradient, maps, peaks, 3, 1.0)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"maps": torch.zeros(1, 1, 4, 4).long()}, TypeError, "maps: expected a floating-point tensor"),
        ({"maps": torch.zeros(1, 4, 4)}, ValueError, r"maps: expected shape \(batch, landmarks, height, width\)"),
        ({"maps": torch.zeros(1, 1, 0, 4)}, ValueError, r"maps: expected shape"),
        ({"window": 4}, ValueError, "window: expected an odd number of pixels below 64, got 4. Use 5"),
        ({"window": 65}, ValueError, "window: expected an odd number of pixels below 64, got 65"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a number above 0"),
    ],
)
def test_wrong_calls(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.local_soft_argmax(**{"maps": torch.zeros(1, 1, 4, 4), **settings})  # type: ignore[arg-type]
