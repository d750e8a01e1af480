"""A CUDA graph's part played on the CPU: records what a step dispatches without running it, and runs it again."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# Each waits for the device: during a capture CUDA ends it with an error.
READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"}


class Recorder(TorchDispatchMode):
    """Notes each operator with its arguments and results, and what memory held before it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []
        self._before = {}  # by address: the memory, and its content

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        schema = operator._schema
        if schema.name.split("::")[1] in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {schema.name}")
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = kwargs.get(argument.name) if argument.kwarg_only or i >= len(args) else args[i]
                for tensor in _tensors(value):
                    self._remember(tensor.untyped_storage())
        result = operator(*args, **kwargs)
        aliases = any(returned.alias_info is not None for returned in schema.returns)
        args, kwargs = tree_map(lambda leaf: leaf, (args, kwargs))  # lists of its own: the caller may change its lists
        self.calls.append((operator, args, kwargs, [] if aliases else _tensors(result)))
        return result

    def _remember(self, memory):
        if memory.data_ptr() not in self._before:
            self._before[memory.data_ptr()] = memory, memory.clone()

    def undo(self):
        """Put everything back that was written to."""
        for memory, before in self._before.values():
            memory.copy_(before)

    @torch.no_grad()
    def replay(self):
        """Run all of it again, with results where they were."""
        for operator, args, kwargs, results in self.calls:
            for result, new in zip(results, _tensors(operator(*args, **kwargs)), strict=False):  # none of a view
                if not result.is_mkldnn:
                    result.copy_(new)


def record_on_cpu(step: Callable[[], Tensor], generators: list[Generator]) -> tuple[Callable[[], None], Tensor]:
    """In the place of `prograd_fast.training.graphed_step.record`."""
    states = [generator.get_state() for generator in generators]
    recorder = Recorder()
    try:
        with torch.random.fork_rng(), recorder:
            result = step()
    finally:
        recorder.undo()
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
    return recorder.replay, result


def _tensors(value) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
