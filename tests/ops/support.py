"""Shared by the tests of the operators: the backends that run here, and inputs that are awkward on purpose."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from prograd_fast import backends

# The reference against itself proves the operators' own code; the compiled kernels are in every developer's install.
BACKENDS = [name for name in ("reference", "cpu") if backends.missing(name) is None]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@contextmanager
def running_on(name: str) -> Iterator[None]:
    """Run the operators of the CPU on a backend."""
    before = backends.active()["cpu"]
    backends.use(name)
    try:
        yield
    finally:
        backends.use(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_same_bits(call: Callable[[], Sequence[Tensor]]) -> None:
    """Fail unless every number of threads gives the same bits, and so do threads of the caller's own."""
    with threads(1):
        expected = call()
    results = []
    for count in (2, 3, 5, 1):
        with threads(count):
            results.append(call())
    with ThreadPoolExecutor(2) as pool:
        results += pool.map(lambda _: call(), range(4))
    for result in results:
        assert all(torch.equal(got, want) for got, want in zip(result, expected, strict=True))


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and losses."""
    return torch.promote_types(dtype, torch.float32)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same for every dtype but for rounding."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scale_of(*terms: Tensor) -> Tensor:
    """The scale that sums and differences of these are measured against."""
    return torch.cat([term.detach().flatten() for term in terms])
