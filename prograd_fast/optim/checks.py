"""Checks of what `backward` is given, before anything moves."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.optim.rules import Rule
from prograd_fast.optim.shards import any_sharded, check_sharded

_BUILT_LATER = ", after fully_shard. Leave set_requires_gradient_sync alone: accumulate() is its like"


def check_lambda(lambda_: Any) -> None:
    """Raise TypeError or ValueError unless `lambda_` is a number of at least 0."""
    if isinstance(lambda_, bool) or not isinstance(lambda_, (int, float)):
        raise TypeError(f"lambda_: expected a number, got {type(lambda_).__name__}. 1.0 removes the whole conflict.")
    if not 0 <= lambda_ < float("inf"):
        raise ValueError(f"lambda_: expected a number of at least 0, got {lambda_}. 1.0 removes the whole conflict.")


def check_groups(groups: Iterable[dict[str, Any]], rule: Rule | None) -> None:
    """Raise TypeError or ValueError for the λ of a parameter group."""
    for group in groups:
        if "lambda_" in group:
            if rule is not None:
                raise ValueError(
                    f"lambda_: expected it in the rule, got {group['lambda_']} in a parameter group beside {rule!r}. "
                    "Take it out of the group."
                )
            check_lambda(group["lambda_"])


def check_parameters(params: Iterable[Tensor]) -> None:
    """Raise TypeError for parameters that no projection is defined for."""
    for p in params:
        if p.is_complex() or p.layout != torch.strided:
            kind = f"layout {p.layout}" if p.layout != torch.strided else f"{p.dtype}"
            raise TypeError(
                f"backward: expected dense parameters of real numbers, got one of shape {tuple(p.shape)} and {kind}. "
                "Keep it in an optimizer of its own."
            )
        if p.grad is not None and p.grad.layout != torch.strided:
            raise TypeError(
                f"backward: expected a dense .grad to add to, got layout {p.grad.layout} for a parameter of shape "
                f"{tuple(p.shape)}. Use sparse=False in the embedding that made it."
            )
        check_sharded(p)


def check_loss(name: str, loss: Any) -> None:
    """Raise TypeError or ValueError unless a loss is one element with a graph."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: expected a loss tensor, got {type(loss).__name__}.")
    if loss.numel() != 1:
        raise ValueError(f"{name}: expected a loss of one element, got shape {tuple(loss.shape)}. Take its mean.")
    if not loss.requires_grad:
        raise ValueError(
            f"{name}: expected a loss with a graph, got one that does not require grad. Compute it from the "
            "parameters, outside of torch.no_grad()."
        )


def check_gradients(name: str, gradients: Sequence[Tensor | None], params: Sequence[Tensor]) -> None:
    """Raise ValueError where a loss reaches no parameter, TypeError for a gradient that is not dense and real."""
    if all(gradient is None for gradient in gradients):
        raise ValueError(
            f"{name}: expected a loss that depends on a parameter of this optimizer, got one that reaches none. "
            f"Compute it from the parameters that the optimizer was built with{_BUILT_LATER * any_sharded(params)}."
        )
    check_dense(name, gradients, params)


def check_dense(name: str, gradients: Sequence[Tensor | None], params: Sequence[Tensor]) -> None:
    """Raise TypeError for a gradient that is not dense and real."""
    for gradient, p in zip(gradients, params, strict=True):
        if gradient is not None and (gradient.layout != torch.strided or not gradient.is_floating_point()):
            kind = gradient.dtype if gradient.layout == torch.strided else f"layout {gradient.layout}"
            raise TypeError(
                f"{name}: expected dense gradients of real numbers, got {kind} for the parameter of shape "
                f"{tuple(p.shape)}. Use sparse=False in an embedding; keep complex parameters in an optimizer of their "
                "own."
            )
