"""Golden arrays of modules whose parameters have the authors' names; every array must have been looked at."""

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.paths import GOLDEN
from tests.tolerances import assert_close

DTYPES = [torch.float64, torch.float32]


class Golden:
    """The arrays of a file in one dtype, and its recipe.

    Args:
        name: of the file.
        dtype: that floating-point arrays are computed in.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.arrays, self.dtype = dict(np.load(GOLDEN / f"{name}.npz")), dtype
        self.recipe: dict[str, Any] = json.loads(str(self.arrays.pop("recipe")))
        self.unread = set(self.arrays)

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        array = torch.from_numpy(self.arrays[name])
        return array.to(self.dtype) if array.is_floating_point() else array

    def leaf(self, name: str) -> Tensor:
        return self[name].clone().requires_grad_()

    def names(self, prefix: str) -> list[str]:
        """Names that begin with a prefix, without it."""
        return [name[len(prefix) :] for name in self.arrays if name.startswith(prefix)]

    def load(self, module: nn.Module, prefix: str, ignore: tuple[str, ...] = ()) -> nn.Module:
        """The module in this dtype with the authors' weights; beside counters, `ignore` may keep its own."""
        module = module.to(self.dtype)
        with torch.no_grad():
            for name, own in module.state_dict(keep_vars=True).items():
                if not name.endswith("num_batches_tracked") and not name.startswith(ignore or ("\0",)):
                    assert own.shape == self[prefix + name].shape, name
                    own.copy_(self[prefix + name])
        return module

    def close(self, actual: Tensor, name: str) -> None:
        expected = self[name]
        assert actual.dtype in (self.dtype, torch.int64), name
        assert_close(actual, expected, "golden trajectory", self.dtype)

    def gradients(self, module: nn.Module, prefix: str) -> None:
        """Compare every gradient that the file has for this module."""
        parameters = dict(module.named_parameters())
        for name in self.names(prefix):
            if name in parameters:
                gradient = parameters[name].grad
                assert gradient is not None, name
                self.close(gradient, prefix + name)

    def all_compared(self) -> None:
        assert not self.unread, sorted(self.unread)
