"""Support of the cases for Triton's interpreter; `test_interpreter.py` says how they run.

The cases reach the kernels through the operators, as users do, here registered for CPU tensors. They compare with
float64 formulas that share no code with the kernels: torch's losses, autograd and optimizers.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from prograd_fast.backends import triton as triton_backend
from prograd_fast.backends.triton_kernels import tensor_lists as launches
from tests.ops.support import running_on

torch.set_num_threads(1)
ops = torch.ops.prograd_fast


@contextmanager
def running_on_triton() -> Iterator[None]:
    """Run the operators of the CPU on the Triton kernels."""
    with running_on("reference"):  # the C++ kernels would be in the way where they are built
        unregister = triton_backend.register("CPU")
        try:
            yield
        finally:
            unregister()


@pytest.fixture(scope="module", autouse=True)
def triton_on_the_cpu() -> Iterator[None]:
    with running_on_triton():
        yield


def draw(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return (scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)


def expected_losses(z, t, labels, offset=None, weights=(None, None), temperature=1.7, soft_ce=False, reduction=1):
    """From torch's float64 losses; 0 · log 0 = 0."""
    t = t if offset is None else t + offset.double()
    task = F.cross_entropy(z, labels, reduction="none")
    log_p, log_q = (z / temperature).log_softmax(1), (t / temperature).log_softmax(1)
    q = log_q.exp()
    seen = q > 0
    terms = torch.where(seen, q, 0) * ((0 if soft_ce else log_q.where(seen, 0)) - log_p.where(seen, 0))
    losses = torch.stack([task, temperature**2 * terms.sum(1)])
    losses = torch.stack([x if w is None else x * w.double() for x, w in zip(losses, weights, strict=True)])
    return (losses, losses.mean(1), losses.sum(1))[reduction]


# ---- lists of tensors

# 0-d, one element, odd, a context, class-specific contexts, empty ones; all in one launch
SMALL = [(), (1,), (7, 3, 5), (16, 512), (10, 4, 32), (0,), (3, 0), (0, 5)]
# several chunks in a tensor, and in a row, of odd length; one that has room to spare; one that starts unaligned
LARGE = [(2, launches.CHUNK + 905), (3, 16), (5,)]
SCOPES = {"tensor": 0, "row": 1, "global": 2}


@pytest.fixture(params=["one launch", "two launches"])
def shapes(request, monkeypatch):
    """Shapes that one launch covers, and shapes for which the limit is lowered: the interpreter is slow."""
    launches.cached_plan.cache_clear()
    if request.param == "one launch":
        return SMALL
    monkeypatch.setattr(launches, "ONE_LAUNCH", launches.CHUNK)
    return LARGE


def tensors(shapes, dtype=torch.float64, seed=0):
    """Random lists; `dtype` "mixed" alternates."""
    kinds = [torch.float32, torch.bfloat16] if dtype == "mixed" else [dtype]
    return [draw(*shape, seed=seed + 10 * i).reshape(shape).to(kinds[i % len(kinds)]) for i, shape in enumerate(shapes)]


def units(a, scope):
    """The tensors of every unit, as flat float64 pieces."""
    if scope == "global":
        return [torch.cat([x.double().flatten() for x in a])]
    if scope == "tensor":
        return [x.double().flatten() for x in a]
    return [row.flatten() for x in a for row in (x.double() if x.dim() else x.double().reshape(1, 1))]


def expected_entries(a, b, scope):
    return torch.stack(
        [torch.stack([u @ u, u @ v, v @ v]) for u, v in zip(units(a, scope), units(b, scope), strict=True)]
    )


def expected_projection(a, b, scope, coefficients):
    """Alpha·a + beta·b per unit, cut back into the tensors."""
    pieces = [
        u if (alpha, beta) == (1, 0) else alpha * u + (beta * v if beta else 0)
        for u, v, (alpha, beta) in zip(units(a, scope), units(b, scope), coefficients.double().tolist(), strict=True)
    ]
    flat = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64)
    return [x.reshape(t.shape) for x, t in zip(flat.split([t.numel() for t in a]), a, strict=True)]


def prograd(entries, lambda_):
    """(alpha, beta) of every unit in plain Python."""
    rows = []
    for _, dot, norm in entries.tolist():
        usable = math.isfinite(dot) and math.isfinite(norm) and norm > 0
        rows.append([1.0, -lambda_ * min(0.0, dot) / norm if usable else 0.0])
    return torch.tensor(rows, dtype=torch.float64)
