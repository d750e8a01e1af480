"""The operators' namespace `torch.ops.prograd_fast`: PyTorch's dispatcher is the only registry of kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import increment_version

LIBRARY = torch.library.Library("prograd_fast", "DEF")


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any] | None = None) -> None:
    """Define an operator.

    Args:
        schema: name, arguments and results in the dispatcher's notation, without the namespace.
        reference: its kernel wherever no backend has registered one, in plain PyTorch.
        fake: its results without their contents, for compilation. None for an operator that only writes into its
            arguments.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"prograd_fast::{name}", fake or _writes_only, lib=LIBRARY)
    if fake is None:
        _count_writes(name)


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
        for tensors in [args[i] for i in positions] + [kwargs[k] for k in keywords]:
            increment_version(tensors)
        operator.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)

    LIBRARY.impl(name, kernel, "ADInplaceOrView", with_keyset=True)
