"""One optimizer step on two gradients that are there already, against the authors' formulation and plain AdamW."""

import pytest
import torch

import prograd_fast as pf
from benchmarks import authors

# one CLIP context; the size of a large head; many tensors as in multi-modal prompts
CASES = {"16x512": [(16, 512)], "10^6": [(1_000_000,)], "200 tensors": [(1_000 + 497 * i,) for i in range(200)]}


def conflicting_gradients(params):
    g = torch.Generator().manual_seed(0)
    for p in params:
        a = torch.randn(p.shape, generator=g)
        yield a, torch.randn(p.shape, generator=g) - 0.5 * a


@pytest.fixture(params=CASES, ids=list(CASES))
def setup(request, benchmark):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in CASES[request.param]]
    pairs = list(conflicting_gradients(params))
    benchmark.group = f"step, {request.param}"
    elements = sum(p.numel() for p in params)
    benchmark.extra_info |= {"elements": elements, "bytes, two reads of each gradient": 40 * elements}
    return params, pairs


def test_authors_formulation_and_adamw(setup, benchmark):
    params, pairs = setup
    opt = torch.optim.AdamW(params)

    def step():
        general = []
        for p, (a, b) in zip(params, pairs, strict=True):
            p.grad = a
            general.append(b.clone())  # as the trainer keeps it while the second backward runs
        authors.project_(params, general)
        opt.step()

    benchmark(step)


@pytest.mark.parametrize("fused", [False, True], ids=["default", "fused"])
def test_prograd_adamw(setup, benchmark, fused):
    params, pairs = setup
    opt = pf.ProGradAdamW(params, fused=fused)
    opt.backward(
        sum((p * a).sum() for p, (a, _) in zip(params, pairs, strict=True)),
        sum((p * b).sum() for p, (_, b) in zip(params, pairs, strict=True)),
    )
    benchmark(opt.step)  # leaves both gradients as they are


@pytest.mark.parametrize("fused", [False, True], ids=["default", "fused"])
def test_plain_adamw_as_the_floor(setup, benchmark, fused):
    params, pairs = setup
    opt = torch.optim.AdamW(params, fused=fused)
    for p, (a, _) in zip(params, pairs, strict=True):
        p.grad = a
    benchmark(opt.step)
