"""Functions that differentiate for several cotangents at once, and how two backwards meet in them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class TakesCotangentBatches(torch.autograd.Function):
    """A function that takes K cotangents through its backward in one call, for little more than the price of one.

    A subclass writes `vjps` in the place of `backward`. It has one differentiable output, its first, and calls
    `ctx.set_materialize_grads(False)`. While a node of it has an attribute `meeting`, two backwards meet there.
    """

    @staticmethod
    def vjps(ctx: Any, cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of all inputs for K cotangents.

        Args:
            ctx: of the forward.
            cotangents: (K, ...), of the first output.

        Returns:
            For each input (K, ...), or None where it needs no gradient.
        """
        raise NotImplementedError

    @classmethod
    def backward(cls, ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients for one cotangent, which may wait for another one in a `Meeting`."""
        cotangent = gradients[0]
        if cotangent is None:
            return (None,) * len(ctx.needs_input_grad)
        vjps = partial(cls.vjps, ctx)
        if torch._C._functorch.is_legacy_batchedtensor(cotangent):
            raise RuntimeError(
                "class_features: expected one cotangent in a backward, got a batch by is_grads_batched=True. Take "
                "torch.func.vmap(lambda g: torch.autograd.grad(features, context, g))(cotangents), or "
                "torch.func.jacrev."
            )
        meeting: Meeting | None = getattr(ctx, "meeting", None)
        return _one_of(vjps(cotangent[None]), 0) if meeting is None else meeting.through(ctx, vjps, cotangent)


class Meeting:
    """Two backwards that go through one node together.

    The first one that comes to a node with this meeting waits there, and runs the second one from its loss on. When
    that comes to the same node, it takes both cotangents through, and goes on with its own gradients until it ends.
    Then the first one goes on with those that were left for it. The engine has run its hooks for both by then, and runs
    all later ones for both. A backward that meets nobody goes through alone.

    Args:
        run_second: the second backward.

    Attributes:
        second: its result; None as long as it did not run.
    """

    def __init__(self, run_second: Callable[[], tuple[Tensor | None, ...]]) -> None:
        self.second: tuple[Tensor | None, ...] | None = None
        self._run_second = run_second
        self._waiting: tuple[Any, Tensor] | None = None  # the first one's node and cotangent
        self._left: tuple[Tensor | None, ...] | None = None  # for the first one

    def through(
        self, ctx: Any, vjps: Callable[[Tensor], tuple[Tensor | None, ...]], cotangent: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs of a node for whoever comes to it."""
        if self._waiting is None:
            self._waiting = ctx, cotangent
            self.second = self._run_second()
            if self._left is not None:
                return self._left
        elif self._waiting[0] is ctx:
            both = vjps(torch.stack([self._waiting[1], cotangent]))
            self._left = _one_of(both, 0)
            return _one_of(both, 1)
        return _one_of(vjps(cotangent[None]), 0)


def only_reverse_mode() -> bool:
    """Whether no derivatives are taken but those of such functions: in reverse mode, once.

    Forward mode and other transforms of torch.func, such as vmap or a derivative of a derivative, need the formula.
    """
    if forward_ad._current_level >= 0:
        return False
    if not torch._C._are_functorch_transforms_active():
        return True
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return [level.key() for level in levels] == [torch._C._functorch.TransformType.Grad]


def _one_of(gradients: tuple[Tensor | None, ...], k: int) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else gradient[k] for gradient in gradients)
