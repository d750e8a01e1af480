"""The operators `torch.ops.prograd_fast.*`, one file for each family.

A family's file reads from top to bottom: the formulas in plain PyTorch; the operators, with their schema, check, fake,
derivative and the kernel that runs where no backend has registered a faster one; the functions that users call.
`prograd_fast.functional` and `prograd_fast.reference` are the functions' and the formulas' public names.

Importing this package defines the operators. Backends register kernels for the operators that write into their
arguments (`*_out`, `*_`); the others allocate and call these.

A wrong call is refused before anything is read or written, with a ValueError or TypeError that names the argument, what
was expected and what came (`checks.py`; csrc for kernels in C++). All tensors of a call are on one device, but for
`lr_tensor`, which may be on the CPU. What a kernel writes has a place of its own for each element; strides are free
unless said otherwise.

Common to all: float32 arithmetic straight after the load (float64 for float64 tensors), one rounding at the store;
reductions in an order that depends on the sizes alone; hyper-parameters are run-time values; no value is read back to
the host. Accumulation dtype: float32, or float64 for float64 tensors.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
