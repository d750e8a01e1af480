"""Ways to make a valid call of an operator wrong, each of which must be refused before anything is read or written."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.ops.calls import Call

Arguments = dict[str, Any]
"""A call by the names of its arguments."""


class Place(NamedTuple):
    """An argument, or a tensor in a list."""

    name: str
    index: int | None = None

    def get(self, call: Arguments) -> Any:
        return call[self.name] if self.index is None else call[self.name][self.index]

    def put(self, call: Arguments, value: Any) -> None:
        if self.index is None:
            call[self.name] = value
        else:
            call[self.name] = [value if i == self.index else x for i, x in enumerate(call[self.name])]


def schema(operator: str) -> Any:
    return getattr(torch.ops.prograd_fast, operator).default._schema


def by_name(operator: str, call: Call) -> Arguments:
    """The arguments of a call with their names."""
    names = [argument.name for argument in schema(operator).arguments if not argument.kwarg_only]
    return dict(zip(names, call[0], strict=True)) | call[1]


def tensors(call: Arguments) -> list[Place]:
    """Where its tensors are."""
    places = [Place(name) for name, value in call.items() if isinstance(value, Tensor)]
    lists = {n: v for n, v in call.items() if isinstance(v, list) and not any(isinstance(x, int) for x in v)}
    return places + [Place(n, i) for n, v in lists.items() for i in range(len(v))]


def written(operator: str, call: Arguments) -> dict[Place, Tensor]:
    """The tensors that the operator may write to."""
    writes = {a.name for a in schema(operator).arguments if a.alias_info is not None and a.alias_info.is_write}
    return {place: place.get(call) for place in tensors(call) if place.name in writes}


def _freed(x: Tensor) -> Tensor:
    copy = x.detach().clone()
    copy.untyped_storage().resize_(0)
    return copy


# what may become of a tensor; None where the fault does not exist for it
TENSOR_FAULTS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "meta": lambda x: x.to("meta"),
    "another dtype": lambda x: x.detach().to(torch.int32 if x.is_floating_point() else torch.float32),
    "complex": lambda x: x.detach().to(torch.complex64),
    "bool": lambda x: x.detach().bool(),
    "float8": lambda x: x.detach().to(torch.float8_e4m3fn),
    "a dimension more": lambda x: torch.stack([x, x]),
    "one row less": lambda x: x[:-1] if x.dim() and len(x) > 1 else None,
    "one row more": lambda x: torch.cat([x, x[:1]]) if x.dim() and len(x) else None,
    "one column less": lambda x: x[..., :-1] if x.dim() > 1 and x.shape[-1] > 1 else None,
    "empty": lambda x: x.flatten()[:0] if x.numel() else None,
    "sparse": lambda x: x.detach().to_sparse() if x.dim() else None,
}
COMPILED_FAULTS: dict[str, Callable[[Tensor], Tensor | None]] = {  # PyTorch's own operators do not look
    "freed": lambda x: _freed(x) if x.numel() else None
}
NUMBERS = {
    "scope": (7, -1, 3, 2**40),
    "reduction": (9, -1, 3, 2**40),
    "approximate": (9, -1, 3),
    "groups": ([], [-1, 6], [2**62, 2**62]),
    "axes": ([3, 0], [0, -3], [2**62, 0]),
    "heads": (0, -2, 10**6),
    "leading": (-1, 3, 2**40),
    "window": (0, -1, 2, 2**40),
    "gamma": (0.0, float("nan"), float("inf")),
    "temperature": (0.0, -1.0, float("nan"), float("inf")),
    "lambda_": (-1.0, float("nan"), float("inf")),
    "noise_floor": (-1.0, float("nan"), float("inf")),
}
# what is not wrong: another number of cotangents, samples or classes where nothing else has it
ALLOWED = {
    ("gelu_backward_", "gradient", "one row less"),
    ("gelu_backward_", "gradient", "one row more"),
    ("sampled_cross_entropy", "logits", "one row less"),
    ("sampled_cross_entropy", "logits", "one row more"),
    ("sampled_log_probs_out", "logits", "one row less"),
    ("sampled_log_probs_out", "logits", "one row more"),
    ("sampled_log_probs", "logits", "one row less"),
    ("sampled_log_probs", "logits", "one row more"),
    ("sampled_log_probs", "logits", "one column less"),
    ("sampled_log_probs", "logits", "meta"),
    ("sampled_cross_entropy", "logits", "one column less"),
    ("local_soft_argmax", "maps", "one column less"),
    ("local_soft_argmax_out", "maps", "one column less"),
    ("local_soft_argmax_backward", "maps", "one column less"),
    ("local_soft_argmax_backward_out", "maps", "one column less"),
    ("local_soft_argmax", "maps", "meta"),
    ("local_soft_argmax", "maps", "one row less"),
    ("local_soft_argmax", "maps", "one row more"),
    ("linear_cross_entropy", "classes", "one row less"),
    ("linear_cross_entropy", "classes", "one row more"),
}


def is_compiled(operator: str) -> bool:
    """Whether a kernel in C++ runs it on a CPU now: some operators are made of PyTorch's on every device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"prograd_fast::{operator}", "CPU")


def faults(operator: str, call: Arguments, compiled: bool) -> Iterator[tuple[str, Arguments]]:
    """All ways to make one argument wrong: what was done, and the call.

    Args:
        operator: its name.
        call: a valid call; it is not changed.
        compiled: whether kernels in C++ are meant, which look at memory too.
    """
    kinds = TENSOR_FAULTS | (COMPILED_FAULTS if compiled else {})
    for place in tensors(call):
        for kind, change in kinds.items():
            value = None if (operator, place.name, kind) in ALLOWED else change(place.get(call))
            if value is not None:
                wrong = dict(call)
                place.put(wrong, value)
                yield f"{place.name} {place.index}: {kind}", wrong
    for argument in schema(operator).arguments:
        if str(argument.type) == "Tensor":  # for which the dispatcher takes None
            yield f"{argument.name}: None", call | {argument.name: None}
    for name, value in call.items():
        if isinstance(value, list):
            yield f"{name}: one more", call | {name: [*value, value[-1] if value else torch.zeros(4, 3)]}
            if value:
                yield f"{name}: one less", call | {name: value[:-1]}
        for number in NUMBERS.get(name, ()):
            yield f"{name}: {number}", call | {name: number}
    if "d_prefix" in call:
        yield "d_prefix: None", call | {"d_prefix": None}
        yield "prefix: None", call | {"prefix": None}
    for amount in ("amsgrad",) if "amsgrad" in call else ():
        yield "amsgrad without its state", call | {amount: True}
    for amount in ("momentum",) if "momentum" in call else ():
        yield "momentum without its state", call | {amount: 0.9, "momentum_buffers": []}
