"""The packed tower as two operators, into which torch.compile does not look.

    encode_prompts             features, and what the backward needs
    encode_prompts_backward    the gradients of the context and of the deep prompts

A graph holds tensors and numbers only, so it has an encoder's number. Whatever else the packed tower computes with is
looked up when the graph runs, as in eager mode: a weight that has changed since is read again. The sizes of the results
are arguments, since a compiler keeps its graphs for later processes, where a number means another encoder.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from prograd_fast.clip.packed.encode import NO_SECOND_DERIVATIVE, EncodePlan, gradients_of, results_of
from prograd_fast.clip.packed.forward import mlp_rows
from prograd_fast.ops.common import accumulation_dtype
from prograd_fast.ops.registry import LIBRARY


class Encoder(Protocol):
    """An encoder as the operators see it."""

    def plan(self, groups: int, dtype: torch.dtype | None, *, unit: bool, differentiable: bool) -> EncodePlan | None:
        """How G contexts are encoded, in this dtype or that of now; None where the tower's own code has to run."""


_encoders: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = count()


def number_of(encoder: Encoder) -> int:
    """A new number for an encoder, by which graphs find it as long as it lives."""
    number = next(_numbers)
    _encoders[number] = encoder
    return number


def encode_compiled(
    context: Tensor, deep: Tensor | None, encoder: int, dtype: torch.dtype, unit: bool
) -> Tensor | None:
    """Features while torch.compile traces: as `encode.encode`; None where the tower's own code has to be traced.

    The dtype of the products is an argument, so that the compiler sees where it comes from: a tower that is moved to
    another one is compiled anew.
    """
    differentiable = torch.is_grad_enabled()
    groups = len(context.unbind())  # a constant, of which the chunks depend; shape[0] may be a symbol
    sizes = _sizes(encoder, groups, dtype, unit, differentiable)
    if sizes is None:
        return None
    deep = None if deep is None else deep.to(dtype)
    encode = torch.ops.prograd_fast.encode_prompts
    features: Tensor = encode(context, deep, encoder, dtype, sizes, unit, differentiable)[0]
    return features


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _sizes(encoder: int, groups: int, dtype: torch.dtype, unit: bool, differentiable: bool) -> list[int] | None:
    plan = _encoders[encoder].plan(groups, dtype, unit=unit, differentiable=differentiable)
    if plan is None:
        return None
    weights, every = plan.prompts.part.weights, plan.prompts.part
    part, rows = (plan.prompts.prefix(), every.n_prefix) if plan.chunks else (every, len(plan.prompts.words))
    n_encoded = len(every.offsets) - 1
    n_classes = n_encoded if plan.share is None else plan.share.n_classes
    hidden = [block.up.weight.shape[0] for block in weights.blocks]
    sizes = [n_classes, int(plan.share is not None) * n_encoded, n_encoded, rows, len(part.offsets) - 1]
    return [*sizes, weights.features, *hidden]


def _plan(encoder: int, context: Tensor, dtype: torch.dtype, unit: bool, differentiable: bool) -> EncodePlan:
    found = _encoders.get(encoder)
    if found is None:
        raise RuntimeError("class_features: expected the net for which this was compiled, got one that is gone.")
    plan: EncodePlan | None = found.plan(len(context), dtype, unit=unit, differentiable=differentiable)
    if plan is None:
        raise RuntimeError(
            "class_features: expected the text tower as it was when this was compiled, got one that is trained, has "
            "hooks or other modules. Call torch.compiler.reset() and compile again."
        )
    return plan


def _encode(
    context: Tensor,
    deep: Tensor | None,
    encoder: int,
    dtype: torch.dtype,
    sizes: Sequence[int],
    unit: bool,
    differentiable: bool,
) -> list[Tensor]:
    plan = _plan(encoder, context, dtype, unit, differentiable)
    return [x.contiguous() for x in results_of(context, deep, plan)]


def _fake(
    context: Tensor,
    deep: Tensor | None,
    encoder: int,
    dtype: torch.dtype,
    sizes: Sequence[int],
    unit: bool,
    differentiable: bool,
) -> list[Tensor]:
    n_classes, n_shared, n_encoded, n_rows, n_ends, width, *hidden = sizes
    groups, d = context.shape[0], context.shape[-1]
    wide = accumulation_dtype(context.new_empty((), dtype=dtype))

    def new(*shape: int) -> Tensor:
        return context.new_empty(shape, dtype=dtype)

    def norm(rows: int) -> list[Tensor]:
        return [new(rows, d), context.new_empty(rows, 2, dtype=wide)]

    results = [new(groups, n_classes, width)]
    if not differentiable:
        return results
    if unit:
        results += [*([new(groups, n_shared, width)] if n_shared else []), new(groups, n_encoded, 1)]
    rows = groups * n_rows
    for i, up in enumerate(hidden):
        last = i == len(hidden) - 1
        results += norm(rows)
        results += [new(groups, n_ends, d), new(groups, n_rows, 2 * d)] if last else [new(groups, n_rows, 3 * d)]
        rows = groups * n_ends if last else rows
        results += norm(rows)
        step = mlp_rows(results[-2])
        results += [new(min(step, rows - start), up) for start in range(0, max(rows, 1), step)]
    return results + norm(rows)


def _encode_backward(
    cotangent: Tensor,
    context: Tensor,
    deep: Tensor | None,
    results: Sequence[Tensor],
    encoder: int,
    dtype: torch.dtype,
    unit: bool,
) -> list[Tensor]:
    plan = _plan(encoder, context, dtype, unit, True)
    return [gradient.contiguous() for gradient in gradients_of(cotangent, results, context, deep, plan)]


def _fake_backward(cotangent: Tensor, context: Tensor, deep: Tensor | None, *_: Any) -> list[Tensor]:
    contiguous = torch.contiguous_format
    return [torch.empty_like(x, memory_format=contiguous) for x in (context, deep) if x is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    context, deep, *ctx.others, ctx.differentiable = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(context, deep, *output)


def _backward(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    rest = (None,) * 5
    if cotangents[0] is None:
        return None, None, *rest
    context, deep, *results = ctx.saved_tensors
    encoder, dtype, _, unit = ctx.others
    encode_backward = torch.ops.prograd_fast.encode_prompts_backward
    d_context, *d_deep = encode_backward(cotangents[0], context, deep, results, encoder, dtype, unit)
    return d_context, d_deep[0] if d_deep else None, *rest


def _no_second_derivative(ctx: Any, gradients: list[Tensor]) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


def _define(schema: str, kernel: Any, fake: Any, backward: Any, keep: Any = None) -> None:
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"prograd_fast::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"prograd_fast::{name}", backward, setup_context=keep, lib=LIBRARY)


_define(
    "encode_prompts(Tensor context, Tensor? deep, int encoder, ScalarType dtype, int[] sizes, bool unit, "
    "bool differentiable) -> Tensor[]",
    _encode,
    _fake,
    _backward,
    _keep,
)
_define(
    "encode_prompts_backward(Tensor cotangent, Tensor context, Tensor? deep, Tensor[] results, int encoder, "
    "ScalarType dtype, bool unit) -> Tensor[]",
    _encode_backward,
    _fake_backward,
    _no_second_derivative,
)
