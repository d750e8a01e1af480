"""Guards operators whose arguments are negated views: inputs are read as they are, results are refused by name."""

import pytest
import torch

from tests.ops.support import BACKENDS, running_on


@pytest.mark.parametrize("backend", BACKENDS)
def test_negated_views(backend: str) -> None:
    x = torch.linspace(-1, 2, 6)
    loss, cotangents = torch.empty(()), torch.empty(6)
    options = (False, 2.0, 20.0, 0.5, 1.0)
    with running_on(backend):
        torch.ops.prograd_fast.difference_loss_out(
            torch._neg_view(x), torch.zeros(6), *options, loss=loss, cotangents=cotangents
        )
        torch.testing.assert_close(cotangents, -2 * x)
        for _ in range(100):  # what died did so later
            with pytest.raises((TypeError, ValueError), match="cotangents: expected a tensor to write to"):
                torch.ops.prograd_fast.difference_loss_out(
                    x, torch.zeros(6), *options, loss=loss, cotangents=torch._neg_view(torch.empty(6))
                )
