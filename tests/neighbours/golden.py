"""Golden arrays of one system, in float64 or float32, each of which a test compares or gives away."""

import json
from collections.abc import Callable, Container
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.paths import GOLDEN
from tests.tolerances import assert_close

DTYPES = [torch.float64, torch.float32]


class Golden:
    """Arrays as tensors, floats in the dtype of the test, and the recipe. It notes which were used."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.arrays = dict(np.load(GOLDEN / f"{name}.npz"))
        self.recipe: dict[str, Any] = json.loads(str(self.arrays.pop("recipe")))
        self.dtype = dtype
        self.unused = set(self.arrays)

    def __getitem__(self, name: str) -> Tensor:
        self.unused.discard(name)
        value = torch.from_numpy(self.arrays[name])
        return value.to(self.dtype) if value.is_floating_point() else value

    def leaf(self, name: str) -> Tensor:
        return self[name].clone().requires_grad_()

    def close(self, actual: Tensor, name: str) -> None:
        self.unused.discard(name)
        expected = torch.from_numpy(self.arrays[name])
        assert_close(actual.reshape(expected.shape), expected, "golden network", self.dtype)

    def load(self, module: nn.Module, prefix: str, rename: Callable[[str], str], strict: bool = True) -> None:
        """Give a module its parameters and buffers from arrays that begin with the prefix; all if strict."""
        own = module.to(self.dtype).state_dict()
        state = {key: value for key, value in own.items() if not value.is_floating_point()}
        for name, key in self._pairs(prefix, rename, own):
            state[key] = self[name].reshape(own[key].shape)
        module.load_state_dict(state, strict)

    def gradients_close(self, module: nn.Module, prefix: str, rename: Callable[[str], str]) -> None:
        """Compare every gradient of the file that begins with the prefix and is one of the module's."""
        parameters = dict(module.named_parameters())
        for name, key in self._pairs(prefix, rename, parameters):
            gradient = parameters[key].grad
            assert gradient is not None, name
            self.close(gradient, name)

    def _pairs(self, prefix: str, rename: Callable[[str], str], known: Container[str]) -> list[tuple[str, str]]:
        names = [name for name in self.arrays if name.startswith(prefix)]
        return [(name, key) for name in names if (key := rename(name.removeprefix(prefix))) in known]
