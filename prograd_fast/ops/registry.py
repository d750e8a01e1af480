"""The operators' namespace `torch.ops.prograd_fast`: PyTorch's dispatcher is the registry of kernels."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

LIBRARY = torch.library.Library("prograd_fast", "DEF")

Check = Callable[[dict[str, Any]], None]

# C++ in place of slower Python, by name: operators without the dispatcher; `fit`, see optim/states.py; `weighted_sum`,
# see losses.py; and what Python cannot do, `release_graph`, see optim/one_backward.py, `empty` and `release_memory`,
# see csrc/common/kept_memory.h. To box some twenty arguments for the dispatcher takes several times as long as the step
# of a small prompt. A backend puts its functions in while it is in use.
SHORTCUTS: dict[str, Callable[..., Any]] = {}

_checks: dict[str, Check] = {}  # by operator


def define(
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
    *,
    check: Check,
) -> None:
    """Define an operator.

    Args:
        schema: name, arguments and results in the dispatcher's notation, without the namespace.
        reference: its kernel wherever no backend has registered one, in plain PyTorch.
        fake: its results without their contents, for compilation. None for an operator that only writes into its
            arguments.
        check: takes the arguments by name and raises ValueError or TypeError where the operator has no result for them.
            Kernels in C++ have checks of their own.
    """
    name = schema.partition("(")[0]
    _checks[name] = check
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, checked(name, reference), "CompositeExplicitAutograd")
    torch.library.register_fake(f"prograd_fast::{name}", checked(name, fake or _writes_only), lib=LIBRARY)
    if fake is None:
        _count_writes(name)
        _refuse_negated_results(name)


def checked(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel in Python behind the operator's check of its arguments."""
    check = _checks[name]
    arguments = getattr(torch.ops.prograd_fast, name).default._schema.arguments
    names = [argument.name for argument in arguments]
    tensors = [argument.name for argument in arguments if str(argument.type) == "Tensor"]

    @wraps(kernel)
    def checking(*args: Any, **kwargs: Any) -> Any:
        call = dict(zip(names, args, strict=False), **kwargs)
        for argument in tensors:  # the dispatcher takes None for any tensor
            if call[argument] is None:
                raise TypeError(f"{argument}: expected a tensor, got None.")
        check(call)
        try:
            return kernel(*args, **kwargs)
        except IndexError as error:  # of a label, from PyTorch's own losses
            raise ValueError(str(error)) from error

    return checking


def operator_for(name: str, tensor: Tensor) -> Callable[..., None]:
    """The operator by its shortest way for tensors like this one: in eager mode, on a CPU, unless a profiler looks on.

    Args:
        name: of an operator that writes into its arguments.
        tensor: one of them.

    Returns:
        `torch.ops.prograd_fast.<name>`, or the same kernel without the dispatcher.
    """
    return shortcut_for(name, tensor) or getattr(torch.ops.prograd_fast, name).default


def shortcut_for(name: str, tensor: Tensor) -> Callable[..., Any] | None:
    """The shortcut of this name, if there is one and it may be taken for tensors like this one."""
    plain = tensor.is_cpu and type(tensor) in (Tensor, torch.nn.Parameter)
    if plain and not torch.compiler.is_compiling() and not torch._C._autograd._profiler_enabled():
        return SHORTCUTS.get(name)
    return None


def _writes_only(*args: Any, **kwargs: Any) -> None:
    return None


def _count_writes(name: str) -> None:
    """Raise the version of what the operator writes to, so that autograd notices a stale saved tensor."""
    operator = getattr(torch.ops.prograd_fast, name).default
    arguments = operator._schema.arguments
    written = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
    positions = [i for i, a in enumerate(arguments) if written[i] and not a.kwarg_only]
    keywords = [a.name for i, a in enumerate(arguments) if written[i] and a.kwarg_only]

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> None:
        operator.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)
        for tensors in [args[i] for i in positions] + [kwargs[k] for k in keywords]:
            if tensors is not None:
                increment_version(tensors)

    LIBRARY.impl(name, kernel, "ADInplaceOrView", with_keyset=True)


def _refuse_negated_results(name: str) -> None:
    """TypeError for a result that is a negated view; PyTorch's own fallback looks for a result that is returned.

    It reads beyond the end of its stack where there is none, as for these operators, and the process dies later.
    """
    operator = getattr(torch.ops.prograd_fast, name).default
    below = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.Negative)
    arguments = {a.name: a.alias_info is not None and a.alias_info.is_write for a in operator._schema.arguments}

    def resolved(argument: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [resolved(argument, x) for x in value]
        if not isinstance(value, Tensor) or not value.is_neg():
            return value
        if arguments[argument]:
            raise TypeError(f"{argument}: expected a tensor to write to, got a negated view: call .clone() first.")
        return value.resolve_neg()

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> None:
        given = [resolved(argument, x) for argument, x in zip(arguments, args, strict=False)]
        operator.redispatch(keyset & below, *given, **{k: resolved(k, x) for k, x in kwargs.items()})

    LIBRARY.impl(name, kernel, "Negative", with_keyset=True)
