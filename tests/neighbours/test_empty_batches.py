"""The neighbours' losses of an empty batch: NaN, as torch's own means of nothing, and a gradient that is empty."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.neighbours.iboot import subsume_loss
from prograd_fast.neighbours.structure_coherence import structure_loss
from prograd_fast.neighbours.subpixel_heatmaps import heatmap_loss
from tests.ops.support import BACKENDS, running_on

PAIR = torch.tensor([[0, 1], [1, 0]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda x: F.mse_loss(x, torch.zeros_like(x)), (0, 3)),
        (lambda x: heatmap_loss(x, torch.zeros(0, 3, 2), 1.0), (0, 3, 4, 4)),
        (lambda x: sum(structure_loss(x, torch.zeros_like(x), PAIR)), (0, 2, 2)),
        (lambda x: sum(structure_loss(x, torch.zeros_like(x), PAIR, reduction="batchmean")), (0, 2, 2)),
        (lambda x: subsume_loss(x, torch.zeros_like(x)), (0, 4, 5)),
    ],
    ids=["torch", "heat maps", "structure", "structure, batchmean", "iboot"],
)
def test_mean_of_nothing(backend: str, loss: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    with running_on(backend):
        value = loss(x)
        value.backward()
    assert value.isnan()
    assert x.grad is not None
    assert x.grad.shape == shape
