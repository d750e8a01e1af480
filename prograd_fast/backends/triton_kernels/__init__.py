"""Triton kernels, one file for each family of operators: the jitted functions, and the Python that launches them.

Nothing here is imported before `operators` is called, so Triton may be missing. The families share `launch` (device,
precision, strides), `sums` (softmax and sums over programs) and `tensor_lists` (lists of tensors on the device).

All kernels keep to these rules, and `tests/gpu/triton/test_source.py` checks them:
* every value is cast to the accumulation dtype in the expression that loads it, and to its storage dtype in the one
  that stores it: float32 arithmetic for 16-bit storage, float64 for float64 tensors; what only goes into a product on
  tensor cores is cast to `launch.product_operand`, and products add up in the accumulation dtype;
* reductions have a fixed order (no float atomics, no order of arrival), so results are the same from run to run;
* hyper-parameters are run-time float64 scalars: a schedule never compiles anything anew;
* no libdevice calls and no inline assembly, so that the same source runs in the interpreter.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules


def operators() -> dict[str, Callable[..., None]]:
    """The operators that have Triton kernels, by name: what every module here lists in `OPERATORS`."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {launch.__name__: launch for module in modules for launch in getattr(module, "OPERATORS", ())}
