"""What the loss operators share: their gradient is in their results already, and a batch of calls is a loop."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.registry import LIBRARY


def register_losses(name: str, differentiable: int, per_row: bool, losses: int = 2) -> None:
    """Give an operator with the results (loss, ..., cotangents, others ...) its derivative and its vmap rule.

    Args:
        name: the operator.
        differentiable: position of the one argument that has a gradient; cotangents[k] is that of loss k in it. The
            cotangents of a single loss are not stacked.
        per_row: whether the argument has a row for each row of losses. If not, losses without reduction have no
            gradient: the cotangents are sums over the rows.
        losses: how many there are (default: 2, task and general).
    """
    operator = getattr(torch.ops.prograd_fast, name).default

    def keep_cotangents(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[losses:])
        ctx.set_materialize_grads(False)  # a loss that is not used must not contribute 0 · inf = NaN
        ctx.save_for_backward(inputs[differentiable], output[losses])
        ctx.n_inputs = len(inputs)

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        argument, cotangents = ctx.saved_tensors
        total = None
        for gradient, cotangent in zip(gradients[:losses], cotangents if losses > 1 else (cotangents,), strict=True):
            if gradient is not None:
                if gradient.dim() and not per_row:
                    raise RuntimeError(
                        f"{name}: expected reduction 'mean' or 'sum' for a gradient, got the losses of single rows. "
                        "Give the rows their factors as task_weight and general_weight."
                    )
                # (B,) without reduction, else 0-d: a factor per row, or one for all
                factor = gradient.unsqueeze(1) if gradient.dim() else gradient
                part = (factor * cotangent).to(cotangent.dtype)
                total = part if total is None else total + part
        if total is not None and torch.is_grad_enabled():
            total = _FirstDerivative.apply(total, argument)
        results: list[Tensor | None] = [None] * ctx.n_inputs
        results[differentiable] = total
        return tuple(results)

    def one_by_one(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            operator(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    torch.library.register_autograd(f"prograd_fast::{name}", backward, setup_context=keep_cotangents, lib=LIBRARY)
    torch.library.register_vmap(f"prograd_fast::{name}", one_by_one, lib=LIBRARY)


class _FirstDerivative(torch.autograd.Function):
    """The identity on a gradient that depends on `argument` in a way autograd does not know."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, argument: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            "loss: expected to be differentiated once, got a second derivative; the kernels have none. "
            "Use the function of the same name in prograd_fast.reference, which autograd differentiates any number of "
            "times."
        )
