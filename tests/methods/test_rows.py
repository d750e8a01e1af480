"""Lengths and unit rows have the values and gradients of PyTorch's."""

import torch
from torch.nn import functional as F

from prograd_fast.methods.rows import lengths, unit_rows


def test_values_and_gradients_are_those_of_normalize():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64)
    own, theirs = (torch.autograd.grad((f(x) * weight).sum(), x)[0] for f in (unit_rows, F.normalize))
    torch.testing.assert_close(unit_rows(x), F.normalize(x))
    torch.testing.assert_close(own, theirs)
    assert torch.autograd.gradcheck(lengths, x)
    assert torch.autograd.gradgradcheck(lengths, x)


def test_the_gradient_of_a_row_of_zeros_is_zero():
    x = torch.zeros(2, 3, requires_grad=True)
    lengths(x).sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()
