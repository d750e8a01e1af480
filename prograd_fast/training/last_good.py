"""A copy of the last state of training whose loss was finite, kept without reading anything from the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class LastGood:
    """The state before the last step of which the loss, and so do all before it, was finite.

    Each tensor has two slots. A step writes the state that it starts from into the slot whose turn it is, and if its
    loss is finite, the turn goes to the other slot. So a state of which the loss is not finite never replaces a good
    one, and each step makes one copy.

    Args:
        state: The tensors under training, which stay where they are.

    Attributes:
        healthy: Whether all losses were finite until now, 0-d bool, on the device.
    """

    def __init__(self, state: Sequence[Tensor]) -> None:
        self._state = state
        self._slots = [torch.stack([tensor, tensor]) for tensor in state]
        device = state[0].device
        self.healthy = torch.ones((), dtype=torch.bool, device=device)
        self._turn = torch.zeros(1, dtype=torch.int64, device=device)

    def step_begins(self) -> None:
        """Copy the state."""
        for slots, tensor in zip(self._slots, self._state, strict=True):
            slots.index_copy_(0, self._turn, tensor.detach()[None])

    def step_ended(self, finite: Tensor) -> None:
        """Whether the loss of the copied state was finite, 0-d bool."""
        self.healthy.logical_and_(finite)
        self._turn.bitwise_xor_(self.healthy)

    @property
    def tensors(self) -> list[Tensor]:
        """The state; waits for the device."""
        good = 1 - int(self._turn)
        return [slots[good] for slots in self._slots]

    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Take up what `tensors` gave."""
        for slots, tensor in zip(self._slots, tensors, strict=True):
            slots.copy_(tensor)
