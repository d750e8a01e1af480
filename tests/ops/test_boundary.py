"""Guards the boundary of the operators: a wrong call is refused, whoever makes it, and changes nothing."""

import pytest
import torch
from torch import Tensor

from tests.ops.calls import CALLS, Sizes
from tests.ops.faults import by_name, faults, is_compiled, written
from tests.ops.support import BACKENDS, running_on

operators = torch.ops.prograd_fast


def has_memory(x: Tensor | None) -> bool:
    return x is not None and x.is_cpu and not x.is_sparse and x.untyped_storage().nbytes() > 0


def content(x: Tensor) -> bytes:
    return bytes(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


@pytest.mark.parametrize("operator", sorted(CALLS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_argument_is_looked_at(backend: str, operator: str) -> None:
    accepted, other_errors, changed = [], [], []
    with running_on(backend):
        compiled = is_compiled(operator)
    for what, wrong in faults(operator, by_name(operator, CALLS[operator](Sizes())), compiled=compiled):
        before = {place: content(x) for place, x in written(operator, wrong).items() if has_memory(x)}
        with running_on(backend):
            try:
                getattr(operators, operator)(**wrong)
            except (ValueError, TypeError) as error:
                if ": expected" not in str(error):
                    other_errors.append(f"{what}: {type(error).__name__}: {error}")
            except Exception as error:
                other_errors.append(f"{what}: {type(error).__name__}: {error}")
            else:
                accepted.append(what)
        changed += [f"{what}: {place.name}" for place, was in before.items() if content(place.get(wrong)) != was]
    assert not accepted
    assert not other_errors
    assert not changed
