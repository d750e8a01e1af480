"""The contract between a function that takes several cotangents at once and an optimizer that has two."""

import torch


class TakesCotangentBatches(torch.autograd.Function):
    """A function whose backward is one call for a whole batch of cotangents under `torch.func.vmap`.

    Two backwards through such a node cost little more than one, so `prograd_fast.optim.one_backward` looks for nodes of
    this class. The function has one differentiable output, its first.
    """
