"""Both losses and both cotangents on the logits, against the authors' formulation."""

import pytest
import torch

import prograd_fast as pf
from benchmarks import authors


@pytest.mark.parametrize("shape", [(32, 100), (32, 1000), (128, 21841)], ids=str)
@pytest.mark.parametrize("who", ["authors", "DualLoss"])
def test_losses_and_cotangents(benchmark, shape, who):
    batch, classes = shape
    benchmark.group = f"dual loss, {batch}x{classes}"
    benchmark.extra_info["bytes, least"] = 16 * batch * classes
    g = torch.Generator().manual_seed(0)
    student = torch.randn(batch, classes, generator=g).requires_grad_()
    teacher = torch.randn(batch, classes, generator=g)
    labels = torch.randint(classes, (batch,), generator=g)
    criterion = pf.DualLoss(general="soft_ce")

    def both():
        losses = (
            authors.losses(student, teacher, labels, 1.0) if who == "authors" else criterion(student, teacher, labels)
        )
        return [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in losses]

    benchmark(both)
