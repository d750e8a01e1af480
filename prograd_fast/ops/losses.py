"""The common part of the loss operators: one that returns, around one that writes, its derivatives and its vmap rule.

Their results hold their gradient already: the cotangents. Autograd takes further derivatives through the formula.

Cotangents are in the accumulation dtype, also of 16-bit inputs: the gradient is rounded to 16 bits once, in the
backward, when it has the upstream factors. Rounded before, small cotangents of a mean are zero in float16, and
GradScaler's factor makes inf of the others. To form them in the backward instead would save their memory, and take
every exponential again in each of two backwards, by kernels of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from prograd_fast.ops.registry import LIBRARY, SHORTCUTS, Check, define

_formulas: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {}  # by operator
_ones: dict[tuple[torch.device, torch.dtype], Tensor] = {}  # what a backward of a loss starts with
_nodes: set[str] = set()  # names of the operators' nodes in a graph


def first_gradient(loss: Tensor) -> Tensor | None:
    """Give the 1 that the backward of a loss may start with in the place of None: the same tensor each time.

    A loss operator's backward knows it, and multiplies nothing by it: the kernel that fills it is saved, and so is the
    product. The gradient then is the operator's own memory. So this is for a graph that nobody goes through again.

    Args:
        loss: what a backward starts from.

    Returns:
        0-d, or None where the loss is not an operator's own result, has hooks, or a graph of kernels is recorded.
    """
    if loss.dim() or type(loss) is not Tensor or type(loss.grad_fn).__name__ not in _nodes:
        return None
    if loss._backward_hooks:  # they may write to it by `.data` or numpy, which nobody is told
        return None
    key = loss.device, loss.dtype
    if key not in _ones or _ones[key]._version > 0:  # somebody has written to it
        if loss.is_cuda and torch.cuda.is_current_stream_capturing():
            return None  # its memory would be the recording's
        with torch.inference_mode(False):
            _ones[key] = torch.ones((), device=loss.device, dtype=loss.dtype)
    return _ones[key]


def _is_one(gradient: Tensor) -> bool:
    return gradient is _ones.get((gradient.device, gradient.dtype)) and gradient._version == 0


def _weighted_sum(gradients: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensor:
    """Σ_k gradients[k]·cotangents[k]; a gradient is (B,) without reduction, else 0-d."""
    if len(gradients) == 1 and _is_one(gradients[0]):
        return cotangents[0]
    shortcut, tensors = SHORTCUTS.get("weighted_sum"), (*gradients, *cotangents)
    if shortcut is not None and all(type(x) is Tensor and x.is_cpu for x in tensors):
        total: Tensor | None = shortcut(gradients, cotangents)
        if total is not None:
            return total
    factors = (g.unsqueeze(1) if g.dim() else g for g in gradients)
    parts = [c if _is_one(g) else g * c for g, c in zip(factors, cotangents, strict=True)]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def goes_through_formula() -> bool:
    """Whether derivatives are taken that an operator with a backward of its own does not have.

    They are those of `torch.func` (grad, jacrev, jvp, hessian) and forward mode, where its tangent would be lost.
    """
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Grad for level in levels)


def losses_of(name: str, *args: Any) -> tuple[Tensor, ...]:
    """The losses that the operator `name` gives for these arguments; its formula where that is differentiated."""
    if goes_through_formula():
        value = _formulas[name](*args)
        return value if isinstance(value, tuple) else (value,)
    results: tuple[Tensor, ...] = getattr(torch.ops.prograd_fast, name)(*args)
    return results if isinstance(results, tuple) else (results,)


def define_loss(
    name: str,
    inputs: str,
    writes: Sequence[str],
    returns: str,
    *,
    kernel: Callable[..., None],
    empty: Callable[..., tuple[Tensor, ...]],
    formula: Callable[..., Tensor | tuple[Tensor, Tensor]],
    check: Check,
    differentiable: int,
    per_row: bool,
) -> None:
    """Define `<name>_out`, which writes its results, and `<name>`, which returns them and can be differentiated.

    Args:
        name: of the loss.
        inputs: its arguments in the dispatcher's notation.
        writes: names of the results of `<name>_out`: the losses, the cotangents, and others. Two losses are one result
            of shape (2,) or (2, B), and cotangents[k] is that of loss k, in the accumulation dtype.
        returns: the results of `<name>` in the dispatcher's notation. Two losses are two results.
        kernel: `<name>_out` wherever no backend has registered one, in plain PyTorch.
        empty: the results of `<name>_out` for these inputs, without their contents.
        formula: the loss, or the pair of losses, for these inputs; autograd differentiates it in every derivative but
            the first.
        check: see `registry.define`.
        differentiable: position of the one input that has a gradient.
        per_row: whether that input has a row for each row of losses. If not, losses without reduction have no
            gradient: the cotangents are sums over the rows.
    """
    letters = "abc"
    written = ", ".join(f"Tensor({letters[i]}!) {result}" for i, result in enumerate(writes))
    define(f"{name}_out({inputs}, *, {written}) -> ()", reference=kernel, check=check)
    write = getattr(torch.ops.prograd_fast, f"{name}_out").default
    count = returns.count("Tensor") - len(writes) + 1  # losses

    def separate(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if count == 1:
            return results
        losses, *others = results
        return losses[0].clone(), losses[1].clone(), *others  # results of an operator share no memory

    def returning(*args: Any) -> tuple[Tensor, ...]:
        results = empty(*args)
        write(*args, **dict(zip(writes, results, strict=True)))
        return separate(results)

    def fake(*args: Any) -> tuple[Tensor, ...]:
        return separate(empty(*args))

    define(f"{name}({inputs}) -> ({returns})", reference=returning, fake=fake, check=check)
    operator = getattr(torch.ops.prograd_fast, name).default
    _formulas[name] = formula

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[count:])
        ctx.set_materialize_grads(False)  # a loss that is not used must not contribute 0 · inf = NaN
        tensors = [x if isinstance(x, Tensor) else None for x in inputs]
        ctx.save_for_backward(output[count], *tensors)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        cotangents, *tensors = ctx.saved_tensors
        used = {k: g for k, g in enumerate(gradients[:count]) if g is not None}
        for gradient in used.values():
            if gradient.dim() and not per_row:
                raise RuntimeError(
                    f"{name}: expected reduction 'mean' or 'sum' for a gradient, got the losses of single rows. "
                    "Give the rows their factors as task_weight and general_weight."
                )
        results: list[Tensor | None] = [None] * len(tensors)
        if used and torch.is_grad_enabled():  # with create_graph=True
            given = [other if x is None else x for x, other in zip(tensors, ctx.others, strict=True)]
            results[differentiable] = through_formula(given, used)
        elif used:
            total = _weighted_sum(list(used.values()), [cotangents if count == 1 else cotangents[k] for k in used])
            results[differentiable] = total.to(tensors[differentiable].dtype)
        return tuple(results)

    def through_formula(given: list[Any], gradients: dict[int, Tensor]) -> Tensor:
        value = formula(*given)
        losses = value if isinstance(value, tuple) else (value,)
        return torch.autograd.grad(
            [losses[k] for k in gradients], given[differentiable], list(gradients.values()), create_graph=True
        )[0]

    def one_by_one(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = [
            operator(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    torch.library.register_autograd(f"prograd_fast::{name}", backward, setup_context=keep, lib=LIBRARY)
    _nodes.add(f"GeneratedBackwardFor_prograd_fast_{name}_defaultBackward")
    torch.library.register_vmap(f"prograd_fast::{name}", one_by_one, lib=LIBRARY)
