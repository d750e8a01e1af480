"""Products of matrices for a chunk of rows at a time, so that logits of all rows are never stored."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_ALIGNED_ROWS = 8  # of 16 bits, of any number of classes: the next matrix of the chunk begins on 16 bytes


def multiplies_as_stored(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch multiplies 16-bit matrices of this dtype there and gives the float32 sums."""
    known = "dtype_out" in torch.ops.aten.addmm.overloads() and torch.version.hip is None
    return known and device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def row_chunks(n_rows: int, row_bytes: int, limit: int) -> Iterator[slice]:
    """As few as the limit in bytes allows, of one size but for the last; one without rows, if there are none."""
    most = max(1, limit // max(1, row_bytes))
    size = max(1, math.ceil(n_rows / max(1, math.ceil(n_rows / most))))
    if n_rows > most >= _ALIGNED_ROWS:
        size = min(size + -size % _ALIGNED_ROWS, most - most % _ALIGNED_ROWS)
    for begin in range(0, max(1, n_rows), size):
        yield slice(begin, min(begin + size, n_rows))


def multiply(a: Tensor, b: Tensor, result: Tensor, beta: float, alpha: float) -> None:
    """Result = beta · result + alpha · a b, of two matrices or of a batch of them, added up in the result's dtype."""
    product = torch.addmm if a.dim() == 2 else torch.baddbmm
    dtypes = {} if a.dtype == result.dtype else {"out_dtype": result.dtype}
    product(result, a, b, **dtypes, beta=beta, alpha=alpha, out=result)
