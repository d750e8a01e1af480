"""Wrong and odd calls of all operators: refused with a ValueError or TypeError, or right; never outside of a tensor."""

from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.registry import SHORTCUTS
from tests.fuzz.registry import target
from tests.ops.calls import CALLS, Sizes
from tests.ops.faults import (
    COMPILED_FAULTS,
    NUMBERS,
    TENSOR_FAULTS,
    Arguments,
    by_name,
    is_compiled,
    schema,
    tensors,
    written,
)
from tests.ops.support import BACKENDS, DTYPES, running_on

MARGIN, CANARY = 64, 0xA5  # bytes before and behind what an operator may write to


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape) if x.dim() and len(x) > 1 else x


def _strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2] if x.dim() else x


# what a tensor may also become: not wrong by itself
ODDITIES = {
    "expanded": _expanded,
    "strided": _strided,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "nan": lambda x: torch.full_like(x, torch.nan) if x.is_floating_point() else x,
    "infinite": lambda x: torch.full_like(x, torch.inf) if x.is_floating_point() else x,
    "huge": lambda x: torch.full_like(x, torch.finfo(x.dtype).max) if x.is_floating_point() else x,
    "labels far away": lambda x: x + 10**12 if x.dtype == torch.int64 else x,
    "negative labels": lambda x: -x - 1 if x.dtype == torch.int64 else x,
    "half": lambda x: x.half() if x.is_floating_point() else x,
    "double": lambda x: x.double() if x.is_floating_point() else x,
    "requires grad": lambda x: x.detach().clone().requires_grad_() if x.is_floating_point() else x,
    "negated": lambda x: torch._neg_view(x) if x.is_floating_point() else x,
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "in inference mode": lambda x: _inference(x),
    "another's": lambda x: torch.zeros(3, 5),
}


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def sizes(random: Random) -> Sizes:
    """None, one, few, or more than a register or a block takes."""

    def size() -> int:
        return random.choice([0, 1, 1, 2, 3, 5, 7, 17, 33, random.randrange(200)])

    shapes = tuple(tuple(size() for _ in range(random.randrange(4))) for _ in range(random.randrange(4)))
    small = tuple(tuple(min(n, 9) for n in shape) for shape in shapes)
    options = {"scope": random.randrange(3), "reduction": random.randrange(3), "dtype": random.choice(DTYPES)}
    return Sizes(size(), size(), min(size(), 40), min(size(), 6), small, **options)


def guard(x: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor again, in the middle of memory with a pattern; and all of that memory."""
    memory = torch.full((x.nbytes + 2 * MARGIN,), CANARY, dtype=torch.uint8)
    view = memory[MARGIN : MARGIN + x.nbytes].view(x.dtype).view(x.shape)
    return view.copy_(x.detach()), memory


@target("operators", weight=8)
def wrong_call(random: Random, folder: Path) -> None:
    """One call with up to three faults and oddities; results lie in guarded memory."""
    operator = random.choice(sorted(CALLS))
    call = by_name(operator, CALLS[operator](sizes(random)))
    memories = []
    for place, x in written(operator, call).items():
        view, memory = guard(x)
        place.put(call, view)
        memories.append(memory)
    backend = random.choice(BACKENDS)
    # alone, or PyTorch reads it for a message of its own, and crashes
    if random.random() < 0.1 and backend == "cpu" and is_compiled(operator):
        _damage_a_tensor(random, call, COMPILED_FAULTS)
    else:
        for _ in range(random.randrange(4)):
            _damage(random, call)
    with running_on(backend):
        try:
            _run(random, operator, call)
        except (ValueError, TypeError, NotImplementedError):
            pass
        except RuntimeError as error:
            if not _is_pytorchs(error):
                raise
    for memory in memories:
        edges = torch.cat([memory[:MARGIN], memory[len(memory) - MARGIN :]])
        assert bool((edges == CANARY).all()), f"{operator} wrote outside of its results"


def _damage(random: Random, call: Arguments) -> None:
    lists = [name for name, value in call.items() if isinstance(value, list)]
    numbers = [name for name in call if name in NUMBERS]
    match random.randrange(6):
        case 0 if lists:
            name = random.choice(lists)
            change = random.choice([lambda x: x[:-1], lambda x: x + x[:1], lambda x: [], lambda x: x[::-1]])
            call[name] = change(call[name])
        case 1 if numbers:
            name = random.choice(numbers)
            call[name] = random.choice(NUMBERS[name])
        case 2:
            name = random.choice(sorted(call))
            call[name] = random.choice([None, 0, 1, -1, 1e308, True, float("nan"), [], "text", torch.zeros(2), [None]])
        case _:
            _damage_a_tensor(random, call, TENSOR_FAULTS if random.random() < 0.6 else ODDITIES)


def _damage_a_tensor(random: Random, call: Arguments, faults: dict[str, Any]) -> None:
    places = [place for place in tensors(call) if isinstance(place.get(call), Tensor)]
    if not places:
        return
    place = random.choice(places)
    change = random.choice(list(faults.values()))
    try:
        value = change(place.get(call))
    except (RuntimeError, TypeError, NotImplementedError):  # a fault of a fault, such as sparse meta
        return
    if value is not None:
        place.put(call, value)


def _run(random: Random, operator: str, call: Arguments) -> None:
    """By the dispatcher, or by the fast path of the optimizers."""
    function = getattr(torch.ops.prograd_fast, operator)
    direct = SHORTCUTS.get(operator)
    if direct is not None and random.random() < 0.5:
        named = {argument.name for argument in schema(operator).arguments if argument.kwarg_only}
        positional = [value for name, value in call.items() if name not in named]
        direct(*positional, **{name: value for name, value in call.items() if name in named})
        return
    result = function(**call)
    if random.random() < 0.5:
        results = result if isinstance(result, tuple) else (result,)
        differentiable = [x for x in results or () if isinstance(x, Tensor) and x.requires_grad]
        if differentiable:
            torch.autograd.grad(sum(x.sum() for x in differentiable), _leaves(call), allow_unused=True)


def _leaves(call: Arguments) -> list[Tensor]:
    found = [place.get(call) for place in tensors(call)]
    return [x for x in found if isinstance(x, Tensor) and x.requires_grad]


def _is_pytorchs(error: RuntimeError) -> bool:
    """Whether PyTorch refused before the operator was asked: by its schema, in place on a leaf, in inference mode."""
    text = str(error)
    known = (
        "expected a value of type", "Expected a value of type", "is missing value for argument", "schema",
        "leaf Variable that requires grad", "inference", "Inference", "does not support automatic differentiation",
        "not implemented for", "is not currently supported", "could not run", "Could not run", "Unable to cast",
        "single rows", "out of bounds", "ZeroTensors are immutable",
    )  # fmt: skip
    return any(part in text for part in known)
