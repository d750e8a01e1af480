"""Guards the normalised focal loss on Triton, against its formula in float64."""

import pytest
import torch

from prograd_fast import functional
from prograd_fast.reference import normalised_focal_loss
from tests.gpu.triton.support import draw
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close


def both(z, labels, settings, factors):
    """Losses and gradients, ours and in float64 by autograd of the formula."""
    wide = z.double().requires_grad_()
    z = z.clone().requires_grad_()
    ours = functional.normalised_focal_loss(z, labels, *settings)
    theirs = normalised_focal_loss(wide.flatten(1), labels.flatten(1), *settings)
    gradients = torch.autograd.grad(ours, z, factors.to(ours.dtype))[0], torch.autograd.grad(theirs, wide, factors)[0]
    return ours, theirs, *gradients


# the published settings; another object weight and cut weights; any exponent
@pytest.mark.parametrize("settings", [(0.5, 2.0, -1.0), (0.25, 1.0, 1.5), (0.9, 0.5, -1.0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalised_focal_loss(dtype, settings):
    """Two parts of a picture and a rest, odd; no pixel counts in the last picture."""
    labels = torch.randint(-1, 2, (3, 1, 5, 917), generator=torch.Generator().manual_seed(3))
    labels[2] = -1
    ours, theirs, gradient, expected = both(
        draw(3, 1, 5, 917, dtype=dtype, scale=3), labels, settings, torch.tensor([1.0, -2.0, 3.0]).double()
    )
    assert_close(ours, theirs, "formula", accumulation(dtype))
    assert_close(gradient, expected, "formula", dtype)
    assert ours[2] == 0
    assert not gradient[labels == -1].any()


def test_sure_pixels_and_nothing():
    z = torch.tensor([[30.0, 20.0, -25.0, 90.0, -200.0], [25.0, 24.0, -22.0, 60.0, 23.0]])
    labels = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 0, 1, 1]])
    ours, theirs, gradient, expected = both(z, labels, (0.5, 2.0, -1.0, 1e-12), torch.ones(2).double())
    for i in range(2):
        assert_close(ours[i], theirs[i], "formula", torch.float32)
        assert_close(gradient[i], expected[i], "formula", torch.float32)
    assert functional.normalised_focal_loss(z[:0], labels[:0]).shape == (0,)
    assert functional.normalised_focal_loss(z[:, :0], labels[:, :0]).tolist() == [0, 0]


def test_unknown_labels():
    """Make NaN of the loss of their picture, and of no other."""
    labels = torch.tensor([[1, 0, 2], [-2, -1, 0], [1, 0, -1]])
    losses = functional.normalised_focal_loss(torch.zeros(3, 3), labels)
    assert losses.isnan().tolist() == [True, True, False]
